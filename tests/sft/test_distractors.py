"""Distractors: more columns and tables, and never another meaning of gold."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sft.ddl import split_tables
from sft.distractors import add_distractors

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "sql_create_context" / "train.jsonl"


def example(number, context, gold, question="Who?", database=None):
    return {
        "example_id": f"e-{number}",
        "question": question,
        "context": context,
        "gold": gold,
        "gold_sql": gold,
        "database": database,
    }


def columns(context):
    return [re.match(r"\w+", column).group().lower() for table in split_tables(context) for column in table.columns]


DONORS = [
    example(900 + number, f"CREATE TABLE donor_{number} (city TEXT, height INT, rate REAL)", "SELECT * FROM donor_0")
    for number in range(3)
]


def test_only_the_share_of_schema_only_rows_changes_and_old_columns_keep_their_order():
    rows = [example(n, "CREATE TABLE p (name TEXT, age INT)", "SELECT name FROM p WHERE age > 3") for n in range(400)]
    rows += [example(n, "CREATE TABLE p (name TEXT)", "SELECT name FROM p", database="p.sqlite") for n in (500, 501)]
    result = add_distractors(rows + DONORS, share=0.5, seed=1)
    changed = [new for old, new in zip(rows, result) if old != new]
    assert 160 < len(changed) < 240  # 200 expected, standard deviation 10
    assert result[400:402] == rows[400:402]
    for new in changed:
        found = columns(new["context"])
        assert [name for name in found if name in ("name", "age")] == ["name", "age"]
        assert len(found) > 2 and {*found} <= {"name", "age", "city", "height", "rate"}
    assert len({columns(new["context"]).index("name") for new in changed}) > 1  # not always at the front
    assert any(len(split_tables(new["context"])) == 2 for new in changed)
    assert add_distractors(rows + DONORS, share=0.5, seed=1) == result
    assert add_distractors(rows + DONORS, share=0.5, seed=2) != result
    assert add_distractors(rows + DONORS, share=0, seed=1) == rows + DONORS


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT * FROM p",
        "SELECT DISTINCT * FROM p",
        "SELECT age, p.* FROM p",
        "SELECT age FROM p NATURAL JOIN q",
        "SELECT age FROM p JOIN q USING (name)",
    ],
)
def test_gold_that_reads_all_columns_is_left_alone(gold):
    rows = [example(1, "CREATE TABLE p (name TEXT, age INT)", gold)]
    assert add_distractors(rows + DONORS, share=1, seed=0)[0] == rows[0]


def test_counting_all_rows_is_no_reading_of_all_columns():
    rows = [example(1, "CREATE TABLE p (name TEXT)", "SELECT COUNT(*) FROM p")]
    assert add_distractors(rows + DONORS, share=1, seed=0)[0] != rows[0]


def test_names_of_gold_schema_and_question_are_never_added():
    # city is an alias in gold, height a double-quoted literal, rate a word of the question: nothing is left to add.
    gold = 'SELECT name AS city FROM p WHERE name = "Height" ORDER BY city'
    rows = [example(n, "CREATE TABLE p (name TEXT)", gold, question="Whose rates?") for n in range(50)]
    for old, new in zip(rows, add_distractors(rows + DONORS, share=1, seed=0)):
        own = [table for table in split_tables(new["context"]) if table.name == "p"]
        assert own == split_tables(old["context"])


def test_columns_that_are_tied_or_do_not_load_are_never_lent():
    rows = [example(n, "CREATE TABLE p (name TEXT)", "SELECT name FROM p") for n in range(50)]
    donors = [
        example(900, "CREATE TABLE d (key_of INT PRIMARY KEY, other INT REFERENCES e(x))", "SELECT * FROM d"),
        example(901, "CREATE TABLE e (group VARCHAR, more INT)", "SELECT * FROM e"),
    ]
    result = add_distractors(rows + donors, share=1, seed=0)
    assert all(set(columns(new["context"])) == {"name"} for new in result[:50])


def test_shared_rows_still_mean_the_same():
    if not SHARED.exists():
        pytest.skip("the development data (../shared) is not there")
    with open(SHARED) as file:
        rows = [json.loads(line) for _, line in zip(range(1500), file)]
    rows = [example(n, row["context"], row["answer"], row["question"]) for n, row in enumerate(rows)]

    def plan(row):
        """What gold reads: SQLite's authorizer reports each (table, column), or the error."""
        reads = set()
        with closing(sqlite3.connect(":memory:")) as connection:
            try:
                connection.executescript(row["context"])
                connection.set_authorizer(
                    lambda action, table, column, *_: reads.add((action, table, column)) or sqlite3.SQLITE_OK
                )
                connection.execute(row["gold"])
            except sqlite3.Error as error:
                return str(error)
        return reads

    sound = [row for row in rows if isinstance(plan(row), set)]
    result = add_distractors(sound, share=1, seed=0)
    changed = [(old, new) for old, new in zip(sound, result) if old != new]
    assert len(changed) > 0.9 * len(sound)
    assert [new["context"] for old, new in changed if plan(old) != plan(new)] == []
