"""Readers: the same rows from four formats, Spider's layouts, the hub, and what each error says."""

import csv
import json
import sqlite3
import sys
from contextlib import closing
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.sources import identify, local_path, read_files, read_hub, split_files

RECORDS = [
    {"question": " How old is Zoë? ", "context": "CREATE TABLE p (name TEXT, age INT)", "answer": "SELECT age FROM p"},
    {"question": 'Who said "hi,\nyou"?', "context": "CREATE TABLE q (who TEXT)", "answer": "SELECT who FROM q"},
    {"question": "What is love?", "context": "CREATE TABLE q (who TEXT)", "answer": None},
]


def write(path, records):
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path, ending):
    (tmp_path / "mine").mkdir()
    rows = read_files([write(tmp_path / "mine" / f"rows{ending}", RECORDS)], {})
    assert [row.problem for row in rows] == [None, None, None]
    assert rows[0].example == {
        "example_id": "rows-1",
        "source": f"mine/rows{ending}",
        "question": "How old is Zoë?",
        "context": "CREATE TABLE p (name TEXT, age INT)",
        "gold": "SELECT age FROM p",
        "gold_sql": None,
        "database": None,
        "evidence": None,
        "answerable": True,
        "kind": [],
        "license": "unknown",
    }
    assert (rows[1].example["question"], rows[1].number, rows[1].cut_key) == (
        'Who said "hi,\nyou"?', 2, 'who said "hi,\nyou"?'
    )  # fmt: skip
    assert (rows[2].example["gold"], rows[2].example["answerable"]) == (None, False)


def test_columns_are_mapped(tmp_path):
    path = write(tmp_path / "rows.json", [{"nl": "q", "ddl": "CREATE TABLE t (x)", "sql": "SELECT 1", "hint": "h"}])
    columns = {"question": "nl", "context": "ddl", "gold": "sql", "evidence": "hint"}
    example = read_files([path], columns)[0].example
    assert (example["question"], example["context"], example["gold"], example["evidence"]) == (
        "q", "CREATE TABLE t (x)", "SELECT 1", "h"
    )  # fmt: skip


def test_a_missing_column_names_file_columns_and_key(tmp_path):
    path = write(tmp_path / "rows.csv", [{"question": "q", "schema": "s", "answer": "a"}])
    with pytest.raises(ValueError) as caught:
        read_files([path], {})
    message = str(caught.value)
    assert f"{path} lacks the column context." in message
    assert "Found are question, schema, answer; needed are question (for question), context (for context)" in message
    assert "data.columns: {context: question}" in message
    with pytest.raises(ValueError, match="lacks the column note"):
        read_files([path], {"context": "schema", "evidence": "note"})


def test_an_unknown_key_of_columns_is_an_error(tmp_path):
    path = write(tmp_path / "rows.json", RECORDS)
    with pytest.raises(ValueError, match="unknown key answer. Allowed are question, context, gold, database, evidence"):
        read_files([path], {"answer": "sql"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n\n{"a": \n{"a": 3}\n', "rows.jsonl, line 3, column 7: .*one JSON object a line"),
        ("rows.jsonl", '{"a": 1}\n[2]\n', "rows.jsonl, line 2 is a JSON list"),
        ("rows.json", '[\n{"a": 1},\n{"a" 2}]', "rows.json, line 3, column 6: .*one JSON list of objects"),
        ("rows.json", '{"a": 1}\n{"a": 2}\n', "rows.json, line 2, column 1: .* belong in a file that ends in .jsonl: rename it"),
        ("rows.json", '{"rows": []}', "rows.json holds one JSON dict"),
        ("rows.json", '[{"a": 1}, "b"]', "rows.json, item 2 is a JSON str"),
        ("rows.csv", 'question,context\n"open,x\n', "rows.csv, in the row that starts on line 2: .*CSV file in UTF-8"),
        ("rows.csv", b"question\nZo\xeb\n", "rows.csv: .*Expected is a CSV file in UTF-8"),
        ("rows.parquet", "PAR0", "rows.parquet: .*Expected is a Parquet file"),
    ],
)
def test_malformed_files_name_file_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_files([path], {})


def test_a_csv_row_with_fewer_or_more_cells_than_the_header_and_a_long_schema(tmp_path):
    wide = f"CREATE TABLE t ({', '.join(f'c{number} INT' for number in range(20_000))})"
    path = tmp_path / "rows.csv"
    path.write_text(f'question,context,answer\nq,s\nq,s,\n"q","{wide}",a\nq,s,a,x\n')
    rows = read_files([path], {})
    assert [row.problem for row in rows] == [("malformed_row", "the row has fewer cells than the header"), None, None,
                                             ("malformed_row", "the row has more cells than the header")]
    assert rows[2].example["context"] == wide


@pytest.mark.parametrize("column", ["question", "context", "answer"])
def test_half_a_character_is_a_problem_of_its_row(tmp_path, column):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [RECORDS[0], RECORDS[0] | {column: "half \ud83d"}])))
    rows = read_files([path], {})
    assert [row.problem for row in rows] == [None, (
        "malformed_text", f"the column {column} holds half a character (a lone surrogate) at character 6")]


def test_rows_with_a_problem_are_kept_with_its_reason(tmp_path):
    good = RECORDS[0]
    bad = [
        {**good, "question": " "},
        {**good, "context": None},
        {"question": "q", "context": "CREATE TABLE t (x)"},
        {**good, "answer": ""},
        {**good, "answer": 7},
        {**good, "question": ["q"]},
    ]
    rows = read_files([write(tmp_path / "rows.jsonl", [good, *bad])], {})
    assert [row.problem and row.problem[0] for row in rows] == [
        None, "no_question", "no_context", "no_gold", "no_gold", "no_gold", "no_question"
    ]  # fmt: skip
    assert (rows[3].number, rows[3].content) == (4, bad[2])


def test_a_csv_row_with_too_many_cells_is_a_problem(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,context,answer\nq,CREATE TABLE t (x),SELECT 1,more\nq,CREATE TABLE t (x),SELECT 1\n")
    assert [row.problem and row.problem[0] for row in read_files([path], {})] == ["malformed_row", None]


TABLES = [
    {
        "db_id": name,
        "table_names_original": ["t"],
        "column_names_original": [[-1, "*"], [0, "x"]],
        "column_types": ["text", "number"],
        "primary_keys": [],
        "foreign_keys": [],
    }
    for name in ("flat", "paper")
]


@pytest.fixture
def spider(tmp_path):
    """Spider's layout with a database of each kind: own folder, flat, only in tables.json, damaged, missing."""
    folder = tmp_path / "spider"
    (folder / "database" / "nested").mkdir(parents=True)
    for path, column in (("nested/nested.sqlite", "a"), ("flat.sqlite", "b")):
        with closing(sqlite3.connect(folder / "database" / path)) as connection:
            connection.execute(f"CREATE TABLE t ({column} INTEGER PRIMARY KEY)")
    (folder / "database" / "damaged.sqlite").write_bytes(b"not SQLite " * 200)
    write(folder / "tables.json", TABLES)
    names = ["nested", "flat", "paper", "damaged", "missing"]
    rows = [{"db_id": name, "question": f"What of {name}?", "query": "SELECT * FROM t"} for name in names]
    write(folder / "train_spider.json", rows)
    write(folder / "train_others.json", rows[:1])
    write(folder / "dev.json", rows[:2])
    return folder


def test_spider_rows_take_the_schema_of_their_database(spider):
    files = split_files(spider, "train")
    assert [file.name for file in files] == ["train_spider.json", "train_others.json"]
    nested, flat, paper, damaged, missing, other = read_files(files, {})
    assert nested.example["context"] == "CREATE TABLE t (a INTEGER PRIMARY KEY)"
    assert nested.example["database"] == str(spider / "database" / "nested" / "nested.sqlite")
    assert flat.example["context"] == "CREATE TABLE t (b INTEGER PRIMARY KEY)"
    assert flat.example["database"] == str(spider / "database" / "flat.sqlite")
    assert (paper.example["context"], paper.example["database"]) == ("CREATE TABLE t (x NUMERIC)", None)
    assert damaged.problem[0] == missing.problem[0] == "no_database"
    assert "damaged.sqlite is not a readable" in damaged.problem[1] and "missing.sqlite" in missing.problem[1]
    assert (nested.example["example_id"], other.example["example_id"]) == ("train_spider-1", "train_others-1")
    assert nested.cut_key == "nested" and nested.example["source"] == "spider/train_spider.json"


def test_spiders_test_set_has_databases_and_tables_of_its_own(spider):
    (spider / "test_database" / "exam").mkdir(parents=True)
    with closing(sqlite3.connect(spider / "test_database" / "exam" / "exam.sqlite")) as connection:
        connection.execute("CREATE TABLE e (c TEXT)")
    write(spider / "test_tables.json", [TABLES[1] | {"db_id": "sheet"}])
    path = write(spider / "test.json", [{"db_id": name, "question": f"{name}?", "query": "SELECT 1"} for name in ("exam", "sheet", "nested", "none")])
    exam, sheet, nested, none = read_files([path], {})
    assert exam.example["database"] == str(spider / "test_database" / "exam" / "exam.sqlite") and exam.problem is None
    assert sheet.example["context"] == "CREATE TABLE t (x NUMERIC)" and nested.example["context"] == "CREATE TABLE t (a INTEGER PRIMARY KEY)"
    assert none.problem[0] == "no_database"
    assert set(identify(spider, "test")) == {"test.json", "tables.json", "test_tables.json", "database", "test_database"}


def test_a_schema_comes_from_the_database_or_from_a_column(spider):
    path = write(spider / "dev.json", [{"q": "a", "db": "flat", "schema": "CREATE TABLE z (k INT)", "query": "SELECT 1"}])
    with pytest.raises(ValueError, match=r"data.columns maps context \(schema\) and database \(db\).* Take one of the two out"):
        read_files([path], {"question": "q", "database": "db", "context": "schema"})


def test_spider_without_databases_and_tables_is_an_error(tmp_path):
    path = write(tmp_path / "dev.json", [{"db_id": "a", "question": "q", "query": "SELECT 1"}])
    with pytest.raises(ValueError, match="beside it stand neither database/ nor tables.json"):
        read_files([path], {})


def test_a_database_name_never_leaves_the_folder(spider):
    with closing(sqlite3.connect(spider / "secret.sqlite")) as connection:
        connection.execute("CREATE TABLE t (x)")
    path = write(spider / "dev.json", [{"db_id": "../secret", "question": "q", "query": "SELECT 1"}])
    (row,) = read_files([path], {})
    assert row.problem == ("no_database", "'../secret' is not the name of a database")


def test_identity_follows_content_and_not_place(spider, tmp_path):
    before = identify(spider, "dev")
    assert set(before) == {"dev.json", "tables.json", "database"}
    moved = spider.rename(tmp_path / "moved")
    assert identify(moved, "dev") == before == identify(moved / "dev.json", "test")
    (moved / "database" / "flat.sqlite").write_bytes(b"other")
    assert identify(moved, "dev")["database"] != before["database"]


def test_a_folder_with_two_files_for_a_split_is_an_error(tmp_path):
    write(tmp_path / "dev.json", RECORDS)
    write(tmp_path / "dev.csv", RECORDS)
    with pytest.raises(ValueError, match=r"holds dev.json and dev.csv. One file a split"):
        split_files(tmp_path, "dev")


def test_local_path_tells_files_from_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "rows.json", RECORDS)
    assert local_path("rows.json", "data.source").resolve() == path
    assert local_path("b-mc2/sql-create-context", "--data") is None
    missing = [("a/rows.json", "--data"), ("../spider", "data.source"), ("rows", "--data"), ("owner/name", "data.dev")]
    for where, key in missing:
        with pytest.raises(ValueError, match=f"{key}: there is no file or folder {where}. Allowed are"):
            local_path(where, key)
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in .xlsx. Readable are .json, .jsonl, .csv, .parquet"):
        local_path("rows.xlsx", "data.dev")


def load_nothing(name):
    raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nand more lines")


def test_a_hub_that_cannot_be_reached_names_the_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_nothing))
    with pytest.raises(ValueError) as caught:
        read_hub("b-mc2/sql-create-context", {})
    message = str(caught.value)
    assert "b-mc2/sql-create-context is no local file or folder" in message and "Couldn't reach" in message
    assert "`data.source: embedded`" in message and "local JSON, JSONL, CSV or Parquet" in message


def test_hub_splits_become_ours(monkeypatch):
    data = {"train": RECORDS[:2], "validation": RECORDS[2:], "other": RECORDS}
    loaded = {split: SimpleNamespace(to_list=lambda rows=rows: rows) for split, rows in data.items()}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name: loaded))
    splits = read_hub("b-mc2/sql-create-context", {})
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "dev": 1}
    example = splits["train"][1].example
    assert (example["example_id"], example["source"], example["license"]) == (
        "sql-create-context-train-2", "b-mc2/sql-create-context", "CC BY 4.0"
    )  # fmt: skip
