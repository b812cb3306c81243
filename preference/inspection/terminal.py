"""How untrusted texts, bars and result tables look in a terminal: nothing hidden, no markup, no escape sequences."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from preference.report_page.text import visible

LONGEST_TEXT = 4_000
LONGEST_CELL = 60
_SHOWN_COLUMNS = 8
_BLOCKS = " ▏▎▍▌▋▊▉█"
_COLUMNS = "▁▂▃▄▅▆▇█"
_TOKEN_STYLES = {"word": "bold", "string": "green", "blob": "green", "number": "cyan"}


def shown(value: object, limit: int = LONGEST_TEXT, style: str = "") -> Text:
    """A value of any origin as text that is only text: hidden characters written out, cut with a note."""
    if value is None:
        return Text("NULL", style="dim italic")
    written = value if isinstance(value, str) else str(value)
    rest = len(written) - limit
    text = Text(visible(written[:limit]).replace("\t", "    "), style=style)
    return text.append(f" … ({rest:,} more characters)", style="dim") if rest > 0 else text


def one_line(value: object, limit: int = LONGEST_CELL) -> Text:
    """A value for a cell of a table: line ends become ⏎."""
    if isinstance(value, str):
        value = value[: limit + 1].replace("\r\n", "\n").replace("\n", "⏎") + value[limit + 1:]
    return shown(value, limit)


def bar(share: float, width: int) -> str:
    """A share from 0 to 1 as a bar of at most `width` characters, in eighths."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")


def columns(counts: list[int]) -> str:
    """A histogram as one line: a sign a step, empty steps blank."""
    most = max(counts, default=0)
    return "".join(_COLUMNS[min(7, (8 * count - 1) // most)] if count else " " for count in counts)


def queries(left: str, right: str, coloured: bool) -> tuple[Text, Text]:
    """Both queries with their differing tokens on a ground of their own, or in ⟦brackets⟧ where there are no colours."""
    from preference.inspection.differences import marked

    sides = marked(left[:LONGEST_TEXT], right[:LONGEST_TEXT])
    return tuple(_query(parts, ground if coloured else "", len(text))
                 for parts, ground, text in zip(sides, ("on dark_green", "on dark_red"), (left, right), strict=True))


def _query(parts: list, ground: str, length: int) -> Text:
    text = Text()
    inside = False
    for part in parts:
        if part.differs != inside and not ground:
            text.append("⟦" if part.differs else "⟧")
        inside = part.differs
        style = _TOKEN_STYLES.get(part.kind, "")
        text.append(visible(part.text).replace("\t", "    "), style=f"{style} {ground}" if part.differs else style)
    if inside and not ground:
        text.append("⟧")
    if length > LONGEST_TEXT:
        text.append(f" … ({length - LONGEST_TEXT:,} more characters)", style="dim")
    return text


def result_table(title: str, found: dict, rows: int = 12) -> Table:
    """One side's answer on one database; rows that differ carry a mark, so that no colour is needed to see them."""
    heading = Text(title, style="bold").append_text(Text(f"  {_told(found)}", style="dim"))
    table = Table(title=heading, title_justify="left", show_lines=False, pad_edge=False, expand=False)
    table.add_column("", width=1)
    for name in found["columns"][:_SHOWN_COLUMNS]:
        table.add_column(one_line(name, 30), overflow="fold", max_width=40)
    order = sorted(range(len(found["rows"])), key=lambda index: (not found["differs"][index], index))[:rows]
    for index in sorted(order):
        differs = found["differs"][index]
        table.add_row("≠" if differs else "", *(one_line(cell) for cell in found["rows"][index][:_SHOWN_COLUMNS]),
                      style="bold red" if differs else "")
    left_out = found["row_count"] - len(order)
    notes = ([f"{left_out:,} more rows"] if found["status"] == "ok" and left_out > 0 else []) + (
        [f"{len(found['columns']) - _SHOWN_COLUMNS:,} more columns"] if len(found["columns"]) > _SHOWN_COLUMNS else [])
    table.caption = ", ".join(notes) or None
    return table


def _told(found: dict) -> str:
    if found["status"] != "ok":
        return visible(f"{found['status'].replace('_', ' ')}: {found['message']}"[:300])
    words = [f"{found['row_count']:,} row" + ("" if found["row_count"] == 1 else "s")]
    if found["missing"]:
        words.append(f"{found['missing']:,} of gold's rows missing")
    if found["difference"]:
        words.append(f"differs in {found['difference']}")
    return ", ".join(words)
