"""Distractors: columns and tables that a question does not need, for schemas that give the answer's columns away."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from contextlib import closing
from random import Random

from sft.ddl import Table, split_tables

_STAR = re.compile(r"(?:SELECT|DISTINCT|,|\.)\s*\*|\bNATURAL\b|\bUSING\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9]+")
_NAME = re.compile(r'"(?:[^"]|"")+"|`[^`]+`|\[[^\]]+\]|\w+')
# What ties a column or a table to others; it would mean nothing, or something else, in another schema.
_TIED = re.compile(r"\b(?:PRIMARY|REFERENCES|FOREIGN|UNIQUE|CHECK|GENERATED|DEFAULT|NOT\s+NULL)\b", re.IGNORECASE)
MOST_COLUMNS = 4
TABLE_SHARE = 0.3  # of the changed examples, those that get a further table as well


def add_distractors(examples: list[dict], *, share: float, seed: int) -> list[dict]:
    """Examples of which about `share` of those with only a schema got 1 to 4 columns, some also a table, of other rows.

    Nothing that gold means can change: a new name occurs neither in gold, as a name or a literal, nor in the schema,
    and a gold that reads all columns of a table (`*`, NATURAL, USING) is left alone. No word of a new column's name
    stands in the question, so that the old columns stay the best reading. New columns stand anywhere among the old
    ones. Deterministic by (seed, example_id) and the examples' schemas; order and other fields are kept.

    Example: "How old is Ann?" on `person (name, age)` may become `person (city, name, age, height)`.
    """
    schemas = [split_tables(example["context"]) if example["database"] is None else None for example in examples]
    distinct = {table.statement(): table for tables in schemas for table in tables or []}
    pool = [table for statement, table in distinct.items() if _lends(statement)]
    donors: dict[tuple[str, str], list[Table]] = defaultdict(list)
    for table in pool:
        donors["table", _name(table.name)].append(table)
        for column in table.columns:
            donors["column", _name(column)].append(table)
    changed = []
    for example, tables in zip(examples, schemas, strict=True):
        random = Random(f"{seed}:distractors:{example['example_id']}")
        if tables and random.random() < share and not _STAR.search(example["gold"] or ""):
            example = {**example, "context": _extend(example, tables, donors, pool, random)}
        changed.append(example)
    return changed


def _lends(statement: str) -> bool:
    """Whether a table can lend columns: nothing ties it to others and SQLite takes it as it is written."""
    if _TIED.search(statement):
        return False
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(statement)
        except sqlite3.Error:
            return False
    return True


def _name(column: str) -> str:
    """The lower-cased bare name that a column definition, or a table's name as written, starts with."""
    match = _NAME.match(column)
    return match.group().strip('"`[]').lower() if match else ""


def _words(text: str) -> set[str]:
    """The lower-cased words of a text or name, without a plural's s."""
    return {word.lower().removesuffix("s") for word in _WORD.findall(text)}


def _extend(example: dict, tables: list[Table], donors: dict, pool: list[Table], random: Random) -> str:
    """The context with new columns in its tables, and perhaps one more table."""
    gold_text = f"{example['gold'] or ''} {example['gold_sql'] or ''}".lower()
    asked = _words(example["question"])
    taken = {_name(column) for table in tables for column in table.columns} | {_name(table.name) for table in tables}

    def fits(name: str) -> bool:
        """Whether a name is new to schema and gold, and shares no word with the question."""
        return (
            bool(name)
            and name not in taken
            and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", gold_text) is None
            and asked.isdisjoint(_words(name))
        )

    wider = [Table(table.name, list(table.columns), table.constraints) for table in tables]
    for _ in range(random.randint(1, MOST_COLUMNS)):
        table = random.choice(wider)
        # A table of the same name, or else with a column of the same name, lends the most plausible neighbours.
        namesakes = donors.get(("table", _name(table.name)), [])
        relatives = donors.get(("column", _name(random.choice(table.columns))), []) if table.columns else []
        for source in (namesakes, relatives, pool):
            tries = [random.choice(random.choice(source).columns) for _ in range(8)] if source else []
            column = next((column for column in tries if fits(_name(column))), None)
            if column:
                taken.add(_name(column))
                table.columns.insert(random.randint(0, len(table.columns)), column)
                break
    if random.random() < TABLE_SHARE:
        tries = [random.choice(pool) for _ in range(8)] if pool else []
        if further := next((table for table in tries if fits(_name(table.name))), None):
            wider.insert(random.randint(0, len(wider)), further)
    separator = ";\n" if ";\n" in example["context"] else "; "
    return separator.join(table.statement() for table in wider)
