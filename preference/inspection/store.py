"""Reads preference pairs, or candidates, of any size: pages, filters, search, one pair, one question."""

from __future__ import annotations

import difflib
import json
import tempfile
from collections import OrderedDict
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import RLock

import duckdb

from preference.inspection import contents
from preference.inspection.conditions import (
    EITHER_SIDE,
    LABELLED,
    beside,
    filter_condition,
    order,
    search_condition,
    search_words,
)
from preference.inspection.files import Files, connect, find_files, first_line, judge_settings, parquet, read_columns
from preference.inspection.index import message_text, open_index, prompt_text, readable, side_text
from preference.inspection.labels import LabelFile

SHOWN = ("row", "pair_id", "example_id", "question", "chosen_sql", "rejected_sql", "chosen_verdict", "chosen_reason",
         "rejected_verdict", "rejected_reason", "source", "strategy", "kind", "round", "question_length", "chosen_length",
         "rejected_length", "length_difference", "chosen_logp", "rejected_logp", "kill_score", "gold_fallback",
         "person_label")
_REMEMBERED = 16
_COLUMNS_AT_ONCE = 6


def open_store(path: Path) -> Store:
    """The pairs (or candidates) of a run's folder, a file or a TRL dataset.

    Raises ValueError for what is no preference file or cannot be read; what is missing beside it is a warning.
    """
    files = find_files(Path(path))
    keep = []
    if any(file.suffix != ".parquet" for file in files.main):
        keep.append(tempfile.TemporaryDirectory(prefix="inspect-preferences-"))
    connection = connect()
    columns = read_columns(connection, files, Path(keep[0].name) if keep else None)
    keep += open_index(connection, files, columns)
    return Store(connection, files, columns, keep)


class Store:
    """What was opened. Every method may be called from any thread.

    `columns`: those that the files really have; `total`: rows; `kind`: pairs or candidates; `warnings`: what could not
    be read. In rows of candidates the query is `chosen_sql`, its verdict `chosen_verdict`, and there is no other side.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, files: Files, types: list[dict[str, str]], keep: list):
        self.connection = connection
        self.files = files
        self.types = types
        self.columns: set[str] = set().union(*types)
        self.kind = files.kind
        self.warnings = files.warnings
        self.labels_path = files.labels
        self.labels = LabelFile(files.labels)
        self.total: int = self.rows("SELECT count(*) AS n FROM store.pairs")[0]["n"]
        self.judge_databases = judge_settings(files).get("databases")
        self._keep = keep
        self._lock = RLock()
        self._matches: OrderedDict[str, str] = OrderedDict()
        self._names = count()
        self._counts: dict[str, int] = {}
        self._version: tuple | None = None
        self._checked: dict[tuple[str, str], bool] = {}
        self._facets: dict | None = None
        self._label_facets: dict | None = None  # those that change with every label
        self._kinds = [row["kind"] for row in self.rows("SELECT DISTINCT kind FROM store.pairs WHERE kind IS NOT NULL")]

    def close(self) -> None:
        self.labels.close()
        self.connection.close()
        for folder in self._keep:
            folder.cleanup()

    # ------------------------------------------------------------------ lists

    def page(self, filters: dict[str, str] | None = None, search: str = "", sort: str = "", descending: bool = False,
             offset: int = 0, limit: int = 50) -> tuple[int, list[dict]]:
        """(how many rows match, those from `offset` on): short columns only, and `label`, the newest word on a pair.

        filters: any of conditions.FILTERS; verdict and reason hold for either side, lengths (characters) for the longer.
        search: words that must all occur in question, queries or ids, "in quotes" a phrase; case does not count.
        sort: one of conditions.SORTS, or "" for the order of the file. Raises ValueError for what is none of these.
        """
        if offset < 0 or not 1 <= limit <= 1000:
            raise ValueError(f"offset {offset}, limit {limit}; allowed are offset >= 0 and 1 to 1000 rows; choose others")
        where, values = self._where(filters, search)
        total = self._count(where, values)
        rows = self.rows(f"SELECT row FROM store.pairs WHERE {where} ORDER BY {order(sort, descending)} LIMIT {limit} "
                         f"OFFSET {min(offset, 2**40)}", values)
        return total, self.short([row["row"] for row in rows])

    def facets(self) -> dict[str, list[tuple[str, int]]]:
        """The values of each filter that the rows have, with their counts, most frequent first."""
        if self._facets is None:
            self._facets = self._count_facets()
        self._refresh_labels()
        with self._lock:
            if self._label_facets is None:
                labelled = self._count(LABELLED, [])
                words = self.rows("SELECT label, count(DISTINCT pair_id) AS n FROM (SELECT pair_id, label FROM people UNION ALL "
                                  "SELECT pair_id, person_label FROM store.pairs WHERE person_label IS NOT NULL) GROUP BY label "
                                  "ORDER BY n DESC, label")
                self._label_facets = {"labelled": [("yes", labelled), ("no", self.total - labelled)],
                                      "person_label": [(row["label"], row["n"]) for row in words]}
            return self._facets | self._label_facets

    def neighbours(self, pair_id: str, filters: dict[str, str] | None = None, search: str = "", sort: str = "",
                   descending: bool = False) -> tuple[str | None, str | None]:
        """The ids before and after a pair in the list that `page` gives for the same arguments; a pair that stands there again is passed over."""
        order(sort, descending)
        where, values = self._where(filters, search)
        one = f"row IN (SELECT min(row) FROM store.pairs WHERE {where} GROUP BY pair_id)" if self._repeats else where
        here = self.rows(f"SELECT row, {sort or 'row'} AS value FROM store.pairs WHERE pair_id = ? ORDER BY coalesce({where}, FALSE) DESC, "
                         "row LIMIT 1", [pair_id, *values])
        if not here:
            return None, None
        found = []
        for after in (False, True):
            condition, more, ordered = beside(sort, descending, here[0]["value"], here[0]["row"], after=after)
            rows = self.rows(f"SELECT pair_id FROM store.pairs WHERE {one} AND ({condition}) ORDER BY {ordered} LIMIT 1",
                             [*values, *more])
            found.append(rows[0]["pair_id"] if rows else None)
        return found[0], found[1]

    @cached_property
    def _repeats(self) -> bool:
        return self.rows("SELECT count(DISTINCT pair_id) < count(*) AS found FROM store.pairs")[0]["found"]

    def nearest(self, wanted: str) -> list[str]:
        """Ids that a mistyped or shortened id may mean: those that begin with it (or whose question does), else similar."""
        wanted = wanted[:100]
        rows = self.rows("SELECT DISTINCT pair_id FROM store.pairs WHERE starts_with(pair_id, ?) OR "
                         "starts_with(coalesce(example_id, ''), ?) ORDER BY 1 LIMIT 9", [wanted, wanted]) if wanted else []
        if rows:
            return [row["pair_id"] for row in rows]
        rows = self.rows("SELECT pair_id FROM (SELECT DISTINCT pair_id FROM store.pairs) ORDER BY "
                         "jaro_winkler_similarity(pair_id, ?) DESC, pair_id LIMIT 20", [wanted])
        return difflib.get_close_matches(wanted, [row["pair_id"] for row in rows], n=5, cutoff=0)

    # --------------------------------------------------------- one pair, one question, everything

    def pair(self, pair_id: str) -> dict | None:
        """All columns of a pair, traces as dictionaries, `content_hash`, `labels` by annotator and `comments`; None where
        there is none. Texts are as they stand in the file, of any length and content.
        """
        found = self.rows(f"SELECT file, file_row, {', '.join(SHOWN)} FROM store.pairs WHERE pair_id = ? ORDER BY row LIMIT 1",
                          [pair_id])
        if not found:
            return None
        short = found[0] | {"kind": contents.kinds(found[0]["kind"])}
        number = short.pop("file")
        [whole] = self.whole(number, [short.pop("file_row")])
        pair = short | {name: value for name, value in whole.items() if value is not None or name not in short}
        pair |= {"pair_id": pair_id, "row": short["row"], "kind": short["kind"]}
        if self.kind == "candidates":
            pair = (self.question(pair["example_id"])["example"] or {}) | pair
        for side in ("chosen", "rejected"):
            pair[f"{side}_trace"] = contents.trace(pair.get(f"{side}_trace"))
        pair["content_hash"] = contents.hash_of(whole)
        pair["judge_databases"] = self.judge_databases
        pair["database"] = contents.database_path(pair.get("database"), self.files.run)
        try:
            labels, comments = contents.labels_for(whole, self.labels.of(pair_id)), self.labels.comments(pair_id)
        except ValueError:  # said once already, as a warning
            labels, comments = {}, []
        return pair | {"labels": labels, "comments": comments}

    def question(self, example_id: str) -> dict:
        """{"example": its columns, "queries": the distinct ones with verdicts, "pairs": short rows, "rankings":
        {annotator: {canonical SQL: place}}, "warnings"}.
        """
        from preference.inspection.question import read_question

        return read_question(self, example_id)

    def overview(self) -> dict:
        """Counts, distributions and flags of all rows: what `summary` prints and the overview page plots."""
        from preference.inspection.overview import make_overview

        return make_overview(self)

    # ------------------------------------------------------------------ for the modules beside this one

    def rows(self, query: str, values: list | None = None) -> list[dict]:
        """The rows of a query on the index or on Parquet files."""
        with self.connection.cursor() as cursor:
            cursor.execute(query, values or [])
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def short(self, numbers: list[int]) -> list[dict]:
        """Rows by number, in that order, as lists show them."""
        if not numbers:
            return []
        self._refresh_labels()
        found = {row["row"]: row for row in self.rows(
            f"SELECT {', '.join(SHOWN)}, label FROM store.pairs LEFT JOIN (SELECT pair_id, arg_max(label, label_id) AS label "
            f"FROM people GROUP BY pair_id) USING (pair_id) WHERE row IN ({', '.join(map(str, numbers))})")}
        return [found[number] | {"kind": contents.kinds(found[number]["kind"]),
                                 "label": found[number]["label"] or found[number]["person_label"]} for number in numbers]

    def whole(self, number: int, rows: list[int], texts_only: bool = False) -> list[dict]:
        """Rows of one data file, in its order, with all their columns, and chosen_sql, rejected_sql and question in any case.

        texts_only: only what the content hash covers.
        """
        types = self.types[number]
        derived = {}
        if self.kind == "pairs":
            derived = {f"{side}_sql": side_text(types, side) for side in ("chosen", "rejected")}
            derived["question"] = message_text(types, "question") if "question" in types else prompt_text(types)
        wanted = {name: readable(name, kind) for name, kind in types.items()
                  if not texts_only or name in ("prompt", "chosen", "rejected", "pair_id")} | derived
        found: list[dict] = [{} for _ in rows]
        # A few columns at a time: each takes buffers of its own, which for forty together would be hundreds of MiB.
        for start in range(0, len(wanted), _COLUMNS_AT_ONCE):
            part = list(wanted.items())[start:start + _COLUMNS_AT_ONCE]
            columns = ", ".join(f"{sql} AS c{place}" for place, (_, sql) in enumerate(part))
            try:
                read = self.rows(f"SELECT {columns} FROM {parquet(self.files.main[number])} WHERE file_row_number IN "
                                 f"({', '.join(map(str, rows))}) ORDER BY file_row_number")
            except duckdb.Error as error:
                raise ValueError(f"{self.files.main[number]} cannot be read any more ({first_line(error)}). Needed is the "
                                 "file as it was opened. Open it again.") from None
            for row, values in zip(found, read, strict=True):
                row |= zip((name for name, _ in part), values.values(), strict=True)
        return found

    # ------------------------------------------------------------------ within

    def _where(self, filters: dict[str, str] | None, search: str) -> tuple[str, list]:
        self._refresh_labels()
        where, values = filter_condition(filters or {}, self._kinds)
        if words := search_words(search):
            return f"row IN (SELECT row FROM {self._matching(words, where, values)})", []
        return where, values

    def _matching(self, words: list[str], where: str, values: list) -> str:
        """The name of a table of the rows that pass a filter and hold every word; kept, since counting, paging and sorting ask
        again. Few rows pass most filters, so the texts of few are searched.
        """
        key = json.dumps([words, where, values, self._version if "people" in where else None])
        with self._lock:
            if key not in self._matches:
                name = f"matching_{next(self._names)}"
                condition, more = search_condition(words)
                self.rows(f"CREATE TABLE {name} AS SELECT row FROM store.pairs WHERE {where} AND {condition}", values + more)
                self._matches[key] = name
                if len(self._matches) > _REMEMBERED:
                    self.rows(f"DROP TABLE {self._matches.popitem(last=False)[1]}")
                    self._counts.clear()
            self._matches.move_to_end(key)
            return self._matches[key]

    def _count(self, where: str, values: list) -> int:
        key = json.dumps([where, values])
        with self._lock:
            if key not in self._counts:
                self._counts[key] = self.rows(f"SELECT count(*) AS n FROM store.pairs WHERE {where}", values)[0]["n"]
            return self._counts[key]

    def _count_facets(self) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, dict[str, int]] = {name: {} for name in (*EITHER_SIDE, "source", "strategy", "kind", "round")}
        for name, columns in EITHER_SIDE.items():
            for row in self.rows(f"SELECT {', '.join(columns)}, count(*) AS n FROM store.pairs GROUP BY ALL"):
                for value in {row[column] for column in columns} - {None}:
                    found[name][value] = found[name].get(value, 0) + row["n"]
        for name in ("source", "strategy", "round", "kind"):
            for row in self.rows(f"SELECT {name} AS value, count(*) AS n FROM store.pairs WHERE {name} IS NOT NULL "
                                 "GROUP BY ALL ORDER BY n DESC, value LIMIT 200"):
                for value in contents.kinds(row["value"]) if name == "kind" else [str(row["value"])]:
                    found[name][value] = found[name].get(value, 0) + row["n"]
        return {name: sorted(counts.items(), key=lambda item: (-item[1], item[0])) for name, counts in found.items()}

    def _refresh_labels(self) -> None:
        """Bring the table `people` (pair_id, label, label_id) up to the label file, where that has changed."""
        with self._lock:
            try:
                version = self.labels.version()
                held = [label for labels in self.labels.latest().values() for label in labels.values()
                        ] if version != self._version else []
            except ValueError as error:
                version, held = (str(error),), []
                if version != self._version:
                    self.warnings.append(str(error))
            if version == self._version:
                return
            held = self._meant(held)
            self.rows("CREATE OR REPLACE TABLE people AS SELECT unnest(?::VARCHAR[]) AS pair_id, unnest(?::VARCHAR[]) AS label, "
                      "unnest(?::BIGINT[]) AS label_id",
                      [[getattr(label, name) for label in held] for name in ("pair_id", "label", "label_id")])
            self._version = version
            self._counts.clear()
            self._label_facets = None

    def _meant(self, labels: list) -> list:
        """The labels whose texts are those of the pair that has their id now.

        A label whose hash is the pair's id needs no look at the texts, since that id was made of them.
        """
        for pair in contents.pairs_named(self, {label.pair_id for label in labels if label.content_hash != label.pair_id and
                                               (label.pair_id, label.content_hash) not in self._checked}, texts_only=True):
            for found in contents.hashes_of(pair):
                self._checked[pair["pair_id"], found] = True
        return [label for label in labels if label.content_hash == label.pair_id
                or self._checked.setdefault((label.pair_id, label.content_hash), False)]
