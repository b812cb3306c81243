"""What people say of pairs, kept so that nothing is lost: each word is on disk before the call returns."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

LABELS = ("prefer_chosen", "prefer_rejected", "tie", "both_wrong", "gold_wrong", "unanswerable", "skip")
LONGEST_COMMENT = 10_000
_BUSY_TIMEOUT_S = 30
# Rows are only added; taking a word back dates it. So a file that two people write never loses one's word to the other.
_TABLES = """
CREATE TABLE IF NOT EXISTS labels (
  label_id INTEGER PRIMARY KEY AUTOINCREMENT, pair_id TEXT NOT NULL, content_hash TEXT NOT NULL, annotator TEXT NOT NULL,
  label TEXT NOT NULL, comment TEXT NOT NULL, time TEXT NOT NULL, undone TEXT);
CREATE INDEX IF NOT EXISTS labels_of_pair ON labels (pair_id, annotator);
CREATE INDEX IF NOT EXISTS labels_of_annotator ON labels (annotator, label_id);
CREATE TABLE IF NOT EXISTS comments (
  comment_id INTEGER PRIMARY KEY AUTOINCREMENT, pair_id TEXT NOT NULL, content_hash TEXT NOT NULL,
  annotator TEXT NOT NULL, comment TEXT NOT NULL, time TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rankings (
  ranking_id INTEGER PRIMARY KEY AUTOINCREMENT, example_id TEXT NOT NULL, annotator TEXT NOT NULL, ranks TEXT NOT NULL,
  time TEXT NOT NULL, content_hash TEXT NOT NULL DEFAULT '');
"""


class Label(NamedTuple):
    """One annotator's word on one pair. `content_hash` names the prompt, chosen and rejected text that was seen;
    `time` is UTC, ISO 8601.
    """

    label_id: int
    pair_id: str
    annotator: str
    label: str
    comment: str
    content_hash: str
    time: str


class Ranking(NamedTuple):
    """One annotator's order of a question's queries: canonical SQL -> place from 1 (best). `content_hash` names the question
    and schema that were seen, "" where they are not known.
    """

    ranks: dict[str, int]
    content_hash: str


class LabelFile:
    """A SQLite file of labels, comments and rankings (write-ahead log, every commit synced). Safe across threads and
    processes. Nothing is created before the first word is added.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def add(self, pair_id: str, annotator: str, label: str, comment: str = "", content_hash: str | None = None) -> int:
        """Keep one label and return its number; it is on disk then. The annotator's last word said again adds nothing.

        label: one of LABELS. content_hash: of the texts that were seen; pairs of this project carry it as their id.
        Raises ValueError for a label that is none, an empty or overlong annotator, or an overlong comment.
        """
        if label not in LABELS:
            raise ValueError(f"label is {label!r:.60}; allowed are {', '.join(LABELS)}; choose one of them")
        pair_id, annotator, comment = _pair_id(pair_id), _annotator(annotator), _comment(comment)
        content_hash = _pair_id(content_hash or pair_id)

        def write(connection: sqlite3.Connection) -> int:
            last = connection.execute(
                "SELECT label_id, pair_id, label, comment, content_hash FROM labels WHERE annotator = ? AND undone IS NULL"
                " ORDER BY label_id DESC LIMIT 1", (annotator,)).fetchone()
            if last is not None and last[1:] == (pair_id, label, comment, content_hash):
                return last[0]  # a request that was sent twice
            return connection.execute(
                "INSERT INTO labels (pair_id, content_hash, annotator, label, comment, time) VALUES (?, ?, ?, ?, ?, ?)",
                (pair_id, content_hash, annotator, label, comment, _now())).lastrowid

        return self._write(write)

    def undo(self, annotator: str) -> Label | None:
        """Take back the annotator's newest label and return it; the one before it on that pair holds again."""
        annotator = _annotator(annotator)

        def write(connection: sqlite3.Connection) -> Label | None:
            row = connection.execute(f"{_SELECT} AND annotator = ? ORDER BY label_id DESC LIMIT 1", (annotator,)).fetchone()
            if row is None:
                return None
            connection.execute("UPDATE labels SET undone = ? WHERE label_id = ?", (_now(), row[0]))
            return Label(*row)

        return self._write(write) if self.path.exists() else None

    def comment(self, pair_id: str, annotator: str, comment: str, content_hash: str | None = None) -> int:
        """Keep a comment without a label, and return its number."""
        values = (_pair_id(pair_id), _pair_id(content_hash or pair_id), _annotator(annotator), _comment(comment), _now())
        return self._write(lambda connection: connection.execute(
            "INSERT INTO comments (pair_id, content_hash, annotator, comment, time) VALUES (?, ?, ?, ?, ?)", values
        ).lastrowid)

    def rank(self, example_id: str, annotator: str, ranks: dict[str, int], content_hash: str = "") -> int:
        """Keep an annotator's order of a question's queries: canonical SQL -> place from 1 (best), ties allowed.

        It stands in for the annotator's earlier order of that question; an empty one takes that back. content_hash: of the
        question and schema that were seen (`question.question_hash`).
        """
        if not isinstance(ranks, dict) or not all(
            isinstance(sql, str) and isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= 1000
            for sql, rank in ranks.items()
        ):
            raise ValueError(f"ranks are {ranks!r:.80}; allowed are places from 1 to 1000 for each query; send those")
        values = (_pair_id(example_id), _annotator(annotator), json.dumps(ranks), _now(), content_hash)
        return self._write(lambda connection: connection.execute(
            "INSERT INTO rankings (example_id, annotator, ranks, time, content_hash) VALUES (?, ?, ?, ?, ?)", values).lastrowid)

    def latest(self) -> dict[str, dict[str, Label]]:
        """The label that holds for each pair and annotator."""
        found: dict[str, dict[str, Label]] = {}
        for row in self._read(f"{_SELECT} ORDER BY label_id"):
            found.setdefault(row[1], {})[row[2]] = Label(*row)
        return found

    def of(self, pair_id: str) -> dict[str, Label]:
        """The label that holds for each annotator of one pair."""
        return {row[2]: Label(*row) for row in self._read(f"{_SELECT} AND pair_id = ? ORDER BY label_id", pair_id)}

    def comments(self, pair_id: str) -> list[dict]:
        """The comments on one pair, oldest first: annotator, comment, time."""
        rows = self._read("SELECT annotator, comment, time FROM comments WHERE pair_id = ? ORDER BY comment_id", pair_id)
        return [dict(zip(("annotator", "comment", "time"), row, strict=True)) for row in rows]

    def rankings(self) -> dict[str, dict[str, Ranking]]:
        """The order that holds, by question and annotator."""
        found: dict[str, dict[str, Ranking]] = {}
        for example_id, annotator, ranks, content_hash in self._read(
                "SELECT example_id, annotator, ranks, content_hash FROM rankings ORDER BY ranking_id"):
            found.setdefault(example_id, {})[annotator] = Ranking(json.loads(ranks), content_hash)
        return {example_id: {name: ranking for name, ranking in orders.items() if ranking.ranks}
                for example_id, orders in found.items() if any(ranking.ranks for ranking in orders.values())}

    def version(self) -> tuple:
        """Changes whenever a label does."""
        [row] = self._read("SELECT count(*), max(label_id), count(undone) FROM labels") or [(0, None, 0)]
        return row

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _write(self, change):
        """The result of `change(connection)`, run as one transaction that is on disk when this returns."""
        with self._lock:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = change(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

    def _read(self, query: str, *values: str) -> list[tuple]:
        if self._connection is None and not self.path.exists():
            return []
        with self._lock:
            return self._open().execute(query, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None,
                                             check_same_thread=False)
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = FULL")
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in _TABLES.split(";\n"):
                        connection.execute(statement)
                    if not any(row[1] == "content_hash" for row in connection.execute("PRAGMA table_info(rankings)")):
                        connection.execute("ALTER TABLE rankings ADD COLUMN content_hash TEXT NOT NULL DEFAULT ''")
                    connection.execute("COMMIT")
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
                return connection
            except sqlite3.OperationalError as error:
                # Two processes that both switch a new file to WAL: SQLite tells one of them without waiting.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise ValueError(f"the label file {self.path} cannot be opened ({error}). Needed are a folder that "
                                     "can be written and free space. Mend that and try again.") from None
                time.sleep(0.02)
            except sqlite3.DatabaseError as error:
                raise ValueError(f"{self.path} is no label file ({error}). Allowed is the SQLite file that "
                                 "inspect-preferences writes. Move it away and start anew.") from None


_SELECT = "SELECT label_id, pair_id, annotator, label, comment, content_hash, time FROM labels WHERE undone IS NULL"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be stored


def _pair_id(text: str) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= 500:
        raise ValueError(f"the id is {text!r:.60}; allowed is a text of 1 to 500 characters; take it from the page or "
                         "from `inspect-preferences summary`")
    return _storable(text)


def _annotator(name: str) -> str:
    name = name.strip() if isinstance(name, str) else ""
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise ValueError(f"the annotator is {name!r:.60}; allowed is a printable name of 1 to 100 characters; give one "
                         "with --annotator")
    return name


def _comment(text: str) -> str:
    if not isinstance(text, str) or len(text) > LONGEST_COMMENT:
        raise ValueError(f"the comment has {len(text) if isinstance(text, str) else 'no'} characters; allowed are up to "
                         f"{LONGEST_COMMENT:,}; shorten it")
    return _storable(text)
