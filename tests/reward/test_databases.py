"""Generated databases: what tidy and near promise, checked on the rows themselves."""

import pytest

from reward.conditions import read_conditions
from reward.databases import make_database
from reward.queries import parse
from reward.sandbox import Database, DatabaseError, Sandbox
from reward.schema import read_schema, redeclare_numeric
from reward.values import DATE

DDL = """CREATE TABLE band (id INTEGER PRIMARY KEY, name TEXT NOT NULL, town TEXT);
CREATE TABLE album (album_id INTEGER PRIMARY KEY, band_id INT REFERENCES band(id), title TEXT, sold VARCHAR)"""
GOLD = """SELECT b.name FROM band b JOIN album a ON b.id = a.band_id WHERE a.sold >= 500 AND b.town LIKE '%lin'
GROUP BY b.id HAVING COUNT(*) >= 3"""


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def schema(sandbox):
    return read_schema(sandbox.describe(Database("ddl", "ddl", "schema", None, (DDL,))))


@pytest.fixture(scope="module")
def reading(schema):
    return read_conditions(parse(GOLD), schema)


def rows_of(database):
    return {name: rows for name, _, rows in database.rows}


def test_schema_as_sqlite_reads_it(schema):
    assert list(schema.tables) == ["album", "band"] or list(schema.tables) == ["band", "album"]
    assert schema.tables["band"].keys == [("id",)] and schema.tables["band"].labels() == ["name"]
    assert schema.tables["album"].foreign_keys == [("band_id", "band", "id")]
    assert schema.tables["band"].columns["name"].required


def test_schema_that_does_not_load(sandbox):
    with pytest.raises(DatabaseError, match="already exists"):
        sandbox.describe(Database("twice", "twice", "schema", None, ("CREATE TABLE t (a); CREATE TABLE t (b)",)))
    with pytest.raises(DatabaseError):
        sandbox.describe(Database("attach", "attach", "schema", None, ("ATTACH 'stolen.db' AS s",)))


def test_reading_finds_conditions_pools_and_groups(reading):
    [scope] = reading.scopes
    assert scope.tables == {"b": "band", "a": "album"}
    assert scope.equal == [(("b", "id"), ("a", "band_id"))]
    assert [(c.place, c.operator, c.values) for c in scope.conditions] == [
        (("a", "sold"), ">=", [500]),
        (("b", "town"), "like", ["%lin"]),
    ]
    assert scope.groups == [("b", "id")] and scope.counts == [3]
    assert reading.numeric == {("album", "sold")}
    assert (("band", "id"), ("album", "band_id")) in reading.shared


def test_text_column_compared_with_a_number_is_declared_numeric(schema, reading):
    declared = redeclare_numeric(schema, reading.numeric)
    assert "sold NUMERIC" in " ".join(declared.ddl) and "title TEXT" in " ".join(declared.ddl)
    assert schema.tables["album"].columns["sold"].declared == "VARCHAR"


@pytest.mark.parametrize("column, declared, dates", [
    ("release_date", "VARCHAR", True), ("birthdate", "TEXT", True), ("updated", "TEXT", True), ("Dates", "VARCHAR", True),
    ("opened", "DATETIME", True), ("candidates", "VARCHAR", False), ("mandate", "TEXT", False), ("candidate_id", "INT", False),
    ("date_id", "INTEGER", False), ("date_score", "REAL", False), ("title", "VARCHAR", False),
])
def test_columns_of_dates_are_known_by_name_and_type(sandbox, column, declared, dates):
    schema = read_schema(sandbox.describe(Database(column, column, "schema", None, (f"CREATE TABLE t ({column} {declared})",))))
    reading = read_conditions(parse(f"SELECT {column} FROM t"), schema)
    values = [row[0] for row in rows_of(make_database(schema, reading, "near", "1"))["t"] if row[0] is not None]
    assert values and all((DATE.fullmatch(str(value)) is not None) == dates for value in values)


@pytest.mark.parametrize("seed", ["1", "2", "3", "4", "5"])
def test_tidy_keeps_natural_constraints(schema, reading, seed):
    rows = rows_of(make_database(schema, reading, "tidy", seed))
    bands = [row[0] for row in rows["band"]]
    names = [row[1] for row in rows["band"]]
    assert len(set(bands)) == len(bands) and len(set(names)) == len(names)
    assert {row[1] for row in rows["album"]} <= set(bands)
    assert set(bands) - {row[1] for row in rows["album"]}, "some parent has no child"
    assert all(cell is not None for table in rows.values() for row in table for cell in row)


def test_near_breaks_them(schema, reading):
    rows = rows_of(make_database(schema, reading, "near", "1"))
    assert any(row[2] is None for row in rows["band"]) and any(row[1] is None for row in rows["album"])
    assert all(row[1] is not None for row in rows["band"])  # NOT NULL holds
    assert {row[1] for row in rows["album"]} - {None} - {row[0] for row in rows["band"]}, "an orphan"


def test_same_seed_same_database(schema, reading):
    first, again = (make_database(schema, reading, "tidy", "1") for _ in range(2))
    assert first == again
    assert first.key != make_database(schema, reading, "tidy", "2").key


def test_groups_around_the_wanted_size(schema, reading, sandbox):
    query = GOLD.replace("b.name", "COUNT(*)").replace("HAVING COUNT(*) >= 3", "")
    sizes = set()
    for seed in range(4):
        database = make_database(redeclare_numeric(schema, reading.numeric), reading, "tidy", str(seed))
        [outcome] = sandbox.run(database, [query], 100)
        sizes |= {row[0] for row in outcome.rows}
    assert {2, 3, 4} <= sizes


def made(sandbox, ddl, gold, tier, seed, variant="plain"):
    schema = read_schema(sandbox.describe(Database(f"ddl-{ddl}", "ddl", "schema", None, (ddl,))))
    reading = read_conditions(parse(gold), schema)
    return make_database(redeclare_numeric(schema, reading.numeric), reading, tier, seed, variant=variant)


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_parent_without_children_satisfies_all_other_conditions(sandbox, seed):
    gold = "SELECT b.name FROM band b JOIN album a ON b.id = a.band_id WHERE b.town = 'Berlin'"
    rows = rows_of(made(sandbox, DDL, gold, "tidy", seed))
    assert {row[0] for row in rows["band"] if row[2] == "Berlin"} - {row[1] for row in rows["album"]}


def test_check_clauses_are_kept(sandbox):
    columns = "id INT PRIMARY KEY, salary INT CHECK (salary > 29000), term TEXT CHECK (term IN ('a', 'b'))"
    ddl = f"CREATE TABLE pay ({columns})"
    for gold in ("SELECT id FROM pay", "SELECT id FROM pay WHERE salary > 40000 AND term = 'a'"):
        for row in rows_of(made(sandbox, ddl, gold, "tidy", "1"))["pay"]:
            assert row[1] > 29000 and row[2] in ("a", "b")


def test_variants(sandbox):
    ddl = "CREATE TABLE room (id INTEGER PRIMARY KEY, name TEXT, price INT); CREATE TABLE stay (room INT, nights INT)"
    gold = "SELECT name FROM room WHERE price > (SELECT AVG(price) FROM room)"
    prices = {row[2] for row in rows_of(made(sandbox, ddl, gold, "near", "1", "flat"))["room"]} - {None}
    assert len(prices) == 1
    gold = "SELECT name FROM room r JOIN stay s ON r.id = s.room"
    rows = rows_of(made(sandbox, ddl, gold, "near", "1", "starved"))
    assert rows["stay"] == [] and rows["room"]


def test_or_branches_one_by_one(sandbox):
    ddl = "CREATE TABLE city (name TEXT, land TEXT, people INT)"
    rows = rows_of(made(sandbox, ddl, "SELECT name FROM city WHERE land = 'x' OR people = 7", "tidy", "1"))["city"]
    assert {(row[1] == "x", row[2] == 7) for row in rows} >= {(True, False), (False, True)}
