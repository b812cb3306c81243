"""What an audit found, as a table that a person can act on: reasons with their counts, an example, and what to do."""

import csv
import json
import textwrap
from array import array
from collections import Counter
from pathlib import Path

WHAT_TO_DO = {
    "sql_error": "Gold does not run on its schema. Correct the column, table or syntax that the detail names.",
    "schema": "The CREATE TABLE text does not load, or the database cannot be read. Correct the schema or the path.",
    "parse": "Gold is no text that can be read as one query. Close quotes and brackets, or write the query anew.",
    "not_select": "Gold is no single SELECT. Keep one query; drop statements that change data.",
    "empty": "Gold never has a row, so any empty answer equals it. Look for a condition that nothing can satisfy, or "
    "for a literal that is not in the database.",
    "unstable": "Gold's answer depends on chance, the clock or the order of rows in storage. Add ORDER BY, or name in "
    "GROUP BY what is selected.",
    "undiscriminated": "The databases tell too few small mistakes in gold apart from it. Look for conditions that "
    "change nothing; else give a database file.",
    "timeout": "Gold needs more steps than a query is given. Look for a JOIN without its condition.",
    "memory": "Gold needs more memory than a query is given. Look for a JOIN without its condition.",
    "rows_limit": "Gold returns more rows than are compared. Look for a JOIN without its condition, or add LIMIT.",
    "worker": "The judge itself failed here, which says nothing of gold. Audit this row alone to see why.",
}
COLUMNS = ("line", "id", "reason", "detail", "question", "gold", "mutants", "killed", "what_to_do")


class AuditTable:
    """The lines of an audit's output, read once: counts by reason, and where the lines of each stand in the file."""

    def __init__(self, audited: Path):
        self.audited = audited
        self.statuses: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.remarks: dict[str, list[int]] = {}
        self._offsets: dict[str, array] = {}
        offset = 0
        with audited.open("rb") as file:
            for text in file:
                line = json.loads(text)
                self.statuses[line["status"]] += 1
                if line["status"] == "ok" and line.get("detail"):
                    self.remarks.setdefault(line["detail"], []).append(line["line"])
                if line["status"] == "gold_bad":
                    self._offsets.setdefault(line["reason"], array("q")).append(offset)
                    self.examples.setdefault(line["reason"], _named(line))
                offset += len(text)

    def text(self, width: int = 100) -> str:
        """The table in at most `width` characters a line, the commonest reason first."""
        total = self.statuses.total()
        shares = [
            f"{self.statuses[status]:,} {status} ({self.statuses[status] / total:.2%})"
            for status in ("ok", "gold_bad", "unanswerable")
            if self.statuses[status]
        ]
        rows = [f"{total:,} rows: {', '.join(shares)}" if total else "0 rows"]
        for remark, lines in self.remarks.items():
            rows.append(f"{len(lines):,} of the ok rows, for example line {lines[0]}: {remark}")
        if not self._offsets:
            return "\n".join(rows)
        head = ("reason", "rows", "share", "for example", "what to do")
        body = [
            (reason, f"{len(offsets):,}", f"{len(offsets) / total:.2%}", self.examples[reason], _what_to_do(reason))
            for reason, offsets in self._sorted()
        ]
        widths = [max(len(row[index]) for row in (head, *body)) for index in range(4)]
        indent = sum(widths) + 2 * len(widths)
        rows.append("")
        for row in (head, *body):
            cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3].ljust(widths[3])]
            advice = textwrap.wrap(row[4], max(24, width - indent))
            rows.append("  ".join([*cells, advice[0]]))
            rows += [" " * indent + rest for rest in advice[1:]]
        return "\n".join(rows)

    def write_csv(self, target: Path) -> int:
        """Writes every line that is gold_bad, sorted by reason and the commonest first; how many there are."""
        temporary = target.with_name(target.name + ".part")
        # A lone half of a surrogate pair is text that JSON can hold and UTF-8 cannot.
        with (
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            self.audited.open("rb") as source,
        ):
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            for reason, offsets in self._sorted():
                for offset in offsets:
                    source.seek(offset)
                    line = json.loads(source.readline())
                    table.writerow({"id": line.get("example_id"), **line, "what_to_do": _what_to_do(reason)})
        temporary.replace(target)
        return self.statuses["gold_bad"]

    def _sorted(self) -> list[tuple[str, array]]:
        return sorted(self._offsets.items(), key=lambda item: (-len(item[1]), item[0]))


def _what_to_do(reason: str) -> str:
    return WHAT_TO_DO.get(reason, "Read the details.")


def _named(line: dict) -> str:
    name = line.get("id", line.get("example_id"))
    return f"line {line['line']}" + (f", id {name}"[:30] if name is not None else "")
