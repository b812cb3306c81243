"""Queries run again: which rows differ, on which databases, and that nothing typed gets out of the sandbox or hangs it."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from preference.inspection import rerun
from preference.inspection.store import open_store

SCHEMA = "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER); CREATE TABLE visit (pet INTEGER REFERENCES pet(id), fee REAL)"
HOSTILE = [
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c", "SELECT zeroblob(900000000)",
    "SELECT hex(zeroblob(400000000))", "SELECT load_extension('x')", "ATTACH 'x.db' AS x", "DROP TABLE pet", "PRAGMA writable_schema = 1",
    "SELECT name FROM pet; DELETE FROM pet", "SELECT writefile('/tmp/x', 'y')", "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "WITH RECURSIVE f(a, b) AS (SELECT 0, 1 UNION SELECT b, (a + b) % 1000000007 FROM f) SELECT count(*) FROM f",
    "SELECT * FROM pet a, pet b, pet c, pet d, pet e, pet f, pet g, pet h, pet i", "SELECT 'x\ud800'", "SELECT \0", "x" * 1_000_000, "", "  ", ";",
    "SELECT random()", "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT x, printf('%1000s', x) FROM c",
]


@pytest.fixture
def pets(tmp_path):
    """A pair on a database file."""
    path = tmp_path / "pets.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO pet VALUES (?, ?, ?)", [(1, "Ada", 3), (2, "Bo", 5), (3, "Cy", 8), (4, "Bo", 9), (5, None, 2)])
        connection.commit()
    return {"database": str(path), "context": SCHEMA, "gold_sql": "SELECT name, age FROM pet WHERE age > 4", "seed": 0,
            "chosen_sql": "SELECT name, age FROM pet WHERE age >= 5", "rejected_sql": "SELECT name, age FROM pet WHERE age > 2",
            "judge_databases": "given"}


@pytest.fixture(autouse=True, scope="module")
def closed():
    yield
    rerun.close()


def tables(pair, **edited):
    found = rerun.run_pair(pair, edited)
    json.dumps(found, allow_nan=False)  # what the page gets
    return found["databases"][0]["tables"]


def test_rows_that_differ_are_marked_on_both_sides(pets):
    found = rerun.run_pair(pets)
    [database] = found["databases"]
    assert (database["name"], database["tier"], database["told_apart"], found["message"]) == ("given", "given", True, None)
    gold, chosen, rejected = (database["tables"][side] for side in ("gold", "chosen", "rejected"))
    assert chosen["rows"] == gold["rows"] == [["Bo", 5], ["Cy", 8], ["Bo", 9]] and chosen["differs"] == [False] * 3
    assert (chosen["difference"], chosen["missing"], chosen["columns"]) == (None, 0, ["name", "age"])
    assert rejected["rows"] == [["Ada", 3], ["Bo", 5], ["Cy", 8], ["Bo", 9]] and rejected["differs"] == [True, False, False, False]
    assert (rejected["difference"], rejected["missing"], rejected["row_count"]) == ("rows", 0, 4)


@pytest.mark.parametrize(("sql", "differs", "missing", "difference"), [
    ("SELECT name, age FROM pet WHERE age > 8", [False], 2, "rows"),
    ("SELECT name, age FROM pet WHERE age > 4 UNION ALL SELECT 'Bo', 5", [False, False, False, True], 0, "duplicates"),
    ("SELECT name FROM pet WHERE age > 4", [True, True, True], 3, "columns"),
    ("SELECT name, age + 0.0 FROM pet WHERE age > 4 ORDER BY age DESC", [False] * 3, 0, None),
    ('SELECT name, age FROM pet WHERE name = "Cy"', [False], 2, "rows"),  # a double-quoted value, as the judge reads it
    ("SELECT nothing FROM pet", [], 0, "sql_error"),
])
def test_an_edited_query(pets, sql, differs, missing, difference):
    found = tables(pets, rejected=sql)["rejected"]
    assert (found["differs"], found["missing"], found["difference"]) == (differs, missing, difference)


def test_an_order_that_counts(pets):
    pair = pets | {"gold_sql": "SELECT name FROM pet WHERE age > 2 ORDER BY age", "chosen_sql": "SELECT name FROM pet WHERE age > 2 ORDER BY age"}
    found = tables(pair, rejected="SELECT name FROM pet WHERE age > 2 ORDER BY name")["rejected"]
    assert found["difference"] == "order" and found["rows"] == [["Ada"], ["Bo"], ["Bo"], ["Cy"]]
    assert found["differs"] == [False, False, True, True] and found["missing"] == 0


def test_an_edited_gold_and_chosen(pets):
    found = rerun.run_pair(pets, {"gold": "SELECT name, age FROM pet WHERE age > 2", "chosen": "SELECT 1"})
    [database] = found["databases"]
    assert database["told_apart"] and database["tables"]["rejected"]["difference"] is None
    assert found["queries"]["chosen"] == "SELECT 1" and database["tables"]["chosen"]["difference"] == "columns"


def test_a_differing_row_is_shown_among_many_equal_ones(tmp_path):
    path = tmp_path / "many.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE n (v INTEGER)")
        connection.executemany("INSERT INTO n VALUES (?)", [(number,) for number in range(700)])
        connection.commit()
    pair = {"database": str(path), "gold_sql": "SELECT v FROM n", "chosen_sql": "SELECT v FROM n", "judge_databases": "given",
            "rejected_sql": "SELECT CASE v WHEN 600 THEN -1 ELSE v END FROM n"}
    found = tables(pair)["rejected"]
    assert len(found["rows"]) == rerun.SHOWN_ROWS and found["row_count"] == 700 and found["missing"] == 1
    assert [row for row, differs in zip(found["rows"], found["differs"], strict=True) if differs] == [[-1]]


def test_values_of_all_kinds_fit_into_json(pets):
    found = tables(pets, rejected="SELECT x'00ff', 1e999, NULL, printf('%2000s', 'x'), 9223372036854775807, -0.0")["rejected"]
    [row] = found["rows"]
    assert row[:3] == ["x'00ff'", "inf", None] and row[3].endswith("… (1,700 more characters)") and row[4] == 9223372036854775807


def test_every_pair_of_a_run_meets_its_own_databases_again(clinic_run):
    store = open_store(clinic_run)
    for short in store.page()[1]:
        pair = store.pair(short["pair_id"])
        found = rerun.run_pair(pair)
        assert found["message"] is None, "the suite is that of the stored verdict"
        named = next(place for place in found["databases"] if place["name"] == pair["rejected_trace"]["database"])
        assert named["told_apart"] and named["tables"]["rejected"]["difference"] == pair["rejected_reason"]
        assert all(place["tables"]["chosen"]["difference"] is None for place in found["databases"])
    store.close()


def test_a_schema_as_tables_and_links(pets):
    found = rerun.schema_of(pets)
    assert found["message"] is None and [table["name"] for table in found["tables"]] == ["pet", "visit"]
    assert found["tables"][0]["columns"][0] == {"name": "id", "type": "INTEGER", "key": True}
    assert found["tables"][1]["links"] == [("pet", "pet", "id")]
    for pair, message in ((pets | {"database": None, "context": "CREATE TABLE ("}, "the schema cannot be read"),
                          ({"database": None}, "no schema"), (pets | {"database": __file__}, "the schema cannot be read")):
        found = rerun.schema_of(pair)
        assert found["tables"] == [] and message in found["message"]


@pytest.mark.parametrize(("changes", "message", "databases"), [
    ({"database": "/gone.sqlite"}, "'/gone.sqlite' is gone; shown is the schema, filled with generated rows", True),
    ({"database": "/gone.sqlite", "context": None}, "is gone and it has no schema", False),
    ({"database": None, "context": " "}, "names no database and it has no schema", False),
    ({"database": str(Path(__file__))}, "no databases to judge on: schema", True),
    ({"gold_sql": None}, "there is no gold query|made for the chosen query", True),
    ({"gold_sql": None, "chosen_sql": None, "rejected_sql": None}, "there is no gold query", True),
    ({"gold_sql": "DELETE FROM pet"}, "gold makes no databases to judge on: not_select", True),
    ({"suite_hash": "of another day"}, "differ from those of the stored verdict", True),
    ({"seed": "seven", "judge_databases": "both"}, None, True),
])
def test_what_is_missing_is_said_and_the_rest_is_shown(pets, changes, message, databases):
    import re

    found = rerun.run_pair(pets | changes)
    assert bool(found["databases"]) == databases
    assert found["message"] is None if message is None else re.search(message, found["message"]), found["message"]


def test_hostile_queries_are_refused_or_limited_and_the_next_one_runs(pets, tmp_path):
    before = Path(pets["database"]).read_bytes()
    for sql in HOSTILE:
        started = time.monotonic()
        found = tables(pets, rejected=sql)
        assert found["rejected"]["status"] != "ok" or sql.startswith("SELECT "), sql[:60]
        assert time.monotonic() - started < 20, sql[:60]
        assert found["chosen"]["status"] == "ok" and len(found["rejected"]["rows"]) <= rerun.SHOWN_ROWS
    assert Path(pets["database"]).read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {"pets.sqlite"}


def test_a_query_without_end_is_stopped_on_one_database_and_not_tried_on_the_others(pets):
    found = rerun.run_pair(pets | {"judge_databases": "both"}, {"rejected": HOSTILE[0]})
    statuses = [place["tables"]["rejected"]["status"] for place in found["databases"]]
    assert len(statuses) > 1 and statuses == ["timeout"] + ["not_run"] * (len(statuses) - 1)
    assert "not run here: timeout on given" in found["databases"][1]["tables"]["rejected"]["message"]
