"""CREATE TABLE text: made from SQLite files and from tables.json, taken apart and put together."""

import sqlite3
from contextlib import closing

import pytest

from sft.ddl import Table, compact_schema, from_spider_tables, from_sqlite, identifier, split_tables


def make_database(path, script):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def test_from_sqlite_is_compact_and_loads(tmp_path):
    path = make_database(
        tmp_path / "shop.sqlite",
        """CREATE TABLE "order" (id INTEGER PRIMARY KEY AUTOINCREMENT, -- the key
               "made on" varchar(10)  NOT NULL DEFAULT 'x', total numeric ( 8,2 ) CHECK (total > 0));
           CREATE TABLE line (order_id INT, number INT, item, PRIMARY KEY (order_id, number),
               FOREIGN KEY (order_id) REFERENCES "order" ON DELETE CASCADE);
           CREATE INDEX by_item ON line (item);
           CREATE VIEW items AS SELECT item FROM line;
           INSERT INTO "order" (total) VALUES (3);""",
    )
    context = from_sqlite(path)
    # AUTOINCREMENT makes sqlite_sequence, which is SQLite's own; the reference without a column means the primary key.
    assert context == (
        'CREATE TABLE "order" (id INTEGER PRIMARY KEY, "made on" varchar(10), total numeric ( 8,2 ));\n'
        "CREATE TABLE line (order_id INT, number INT, item, PRIMARY KEY (order_id, number), "
        'FOREIGN KEY (order_id) REFERENCES "order"(id))'
    )
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(context)


def test_from_sqlite_leaves_the_file_as_it_was(tmp_path):
    path = make_database(tmp_path / "a b#1.sqlite", "CREATE TABLE t (x)")
    before = path.read_bytes()
    assert from_sqlite(path) == "CREATE TABLE t (x)"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a b#1.sqlite"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"no database at all, only text" * 50, "not a readable SQLite"), (b"", "holds no table")]
)
def test_from_sqlite_names_the_file_it_cannot_read(tmp_path, content, message):
    path = tmp_path / "broken.sqlite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken.sqlite.*{message}"):
        from_sqlite(path)


def test_from_spider_tables_with_single_and_composite_keys():
    entry = {
        "db_id": "school",
        "table_names_original": ["Pupil", "takes", "sqlite_sequence"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "born"], [1, "pupil"], [1, "course"], [2, "seq"]],
        "column_types": ["text", "number", "time", "number", "text", "others"],
        "primary_keys": [1, [3, 4]],
        "foreign_keys": [[3, 1]],
    }
    assert from_spider_tables(entry) == (
        "CREATE TABLE Pupil (id NUMERIC PRIMARY KEY, born TEXT);\n"
        "CREATE TABLE takes (pupil NUMERIC, course TEXT, PRIMARY KEY (pupil, course), "
        "FOREIGN KEY (pupil) REFERENCES Pupil(id))"
    )


def test_identifier_quotes_only_what_sqlite_needs_quoted():
    names = ["age", "rank", "order", "group", "first name", "2nd", 'say "hi"', "straße"]
    assert [identifier(name) for name in names] == [
        "age", "rank", '"order"', '"group"', '"first name"', '"2nd"', '"say ""hi"""', '"straße"'
    ]  # fmt: skip


def test_split_tables_takes_statements_apart_and_puts_them_together():
    context = (
        'CREATE TABLE "a, b" (x DEC(2, 1) DEFAULT \'),(\', [c d] INT, check_in DATE, CHECK (x > 0));\n'
        "create table k (y TEXT, PRIMARY KEY (y))"
    )
    tables = split_tables(context)
    assert tables == [
        Table('"a, b"', ["x DEC(2, 1) DEFAULT '),('", "[c d] INT", "check_in DATE"], ["CHECK (x > 0)"]),
        Table("k", ["y TEXT"], ["PRIMARY KEY (y)"]),
    ]
    assert tables[1].statement() == "CREATE TABLE k (y TEXT, PRIMARY KEY (y))"


def test_comments_stay_out_of_what_is_taken_apart():
    context = ("-- towns\nCREATE TABLE town (\n name TEXT, -- the name, in full\n people  INTEGER /* of both sexes */ NOT NULL -- (2020)\n);"
               "\nCREATE TABLE lake (/* c */ depth DEC(2, /* x */ 1), note TEXT DEFAULT '--')")
    tables = split_tables(context)
    assert [table.columns for table in tables] == [["name TEXT", "people  INTEGER NOT NULL"], ["depth DEC(2, 1)", "note TEXT DEFAULT '--'"]]
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("; ".join(table.statement() for table in tables))
    assert compact_schema(context) == "town(name, people)\nlake(depth, note)"


def test_links_of_quoted_composite_and_implied_keys():
    context = """CREATE TABLE "my t" ("a""b" INT, [d e] INT REFERENCES [my o](id), 'q r' TEXT, x INT, y INT REFERENCES o,
        FOREIGN KEY (x) REFERENCES b, FOREIGN KEY (x, y) REFERENCES "b c" (u, "v w"), FOREIGN KEY ([d e]) REFERENCES c(z) ON DELETE CASCADE)"""
    assert compact_schema(context).splitlines() == [
        """"my t"("a""b", [d e], 'q r', x, y)""", '"my t".[d e] = [my o].id', '"my t".y = o', '"my t".x = b', '"my t".x = "b c".u',
        '"my t".y = "b c"."v w"', '"my t".[d e] = c.z']


def test_virtual_tables_are_left_out(tmp_path):
    with closing(sqlite3.connect(tmp_path / "v.sqlite")) as connection:
        connection.executescript("CREATE TABLE t (a INT); PRAGMA writable_schema = 1; INSERT INTO sqlite_master VALUES "
                                 "('table', 'idx', 'idx', 0, 'CREATE VIRTUAL TABLE idx USING VirtualSpatialIndex()')")
    assert from_sqlite(tmp_path / "v.sqlite") == "CREATE TABLE t (a INT)", "its module is nowhere here"


def test_generated_columns_are_columns(tmp_path):
    with closing(sqlite3.connect(tmp_path / "g.sqlite")) as connection:
        connection.execute("CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a * 2) VIRTUAL, c REAL AS (a + 1) STORED)")
    assert from_sqlite(tmp_path / "g.sqlite") == "CREATE TABLE t (a INT, b INT, c REAL)"


@pytest.mark.parametrize(
    "context", ["DROP TABLE a", "CREATE TABLE a (x", "CREATE TABLE a AS SELECT 1", "CREATE TABLE a ('", "CREATE TABLE a ()",
                "CREATE TABLE a (x INT, )"]
)
def test_split_tables_gives_up_on_anything_else(context):
    assert split_tables(context) is None
