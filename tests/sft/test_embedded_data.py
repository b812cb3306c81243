"""The embedded databases and questions: sound, various, split by database and the same for the same seed."""

import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

from sft.embedded import phrases
from sft.embedded.grammar import Draft
from sft.embedded.questions import SIZES, build, is_sound, query_key, question_key
from sft.embedded.schema import load_databases

COLUMNS = {
    "example_id",
    "source",
    "question",
    "context",
    "gold",
    "gold_sql",
    "database",
    "evidence",
    "answerable",
    "kind",
    "split",
    "license",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("databases")


@pytest.fixture(scope="module")
def splits(folder) -> dict[str, list[dict]]:
    return build(0, folder)


@pytest.fixture(scope="module")
def rows(splits) -> list[dict]:
    return [row for split in splits.values() for row in split]


def execute(row: dict, sql: str | None = None) -> list[tuple]:
    with closing(sqlite3.connect(row["database"])) as connection:
        return connection.execute(sql or row["gold_sql"]).fetchall()


def test_sizes_and_columns(splits, rows):
    assert (
        {split: len(members) for split, members in splits.items()} == SIZES == {"train": 2000, "dev": 400, "test": 500}
    )
    assert all(set(row) == COLUMNS for row in rows)
    assert len({row["example_id"] for row in rows}) == len(rows)


def test_same_seed_same_rows_and_other_seed_other_rows(splits, folder, tmp_path):
    again = build(0, tmp_path / "again")
    assert [_without_path(row) for row in again["train"]] == [_without_path(row) for row in splits["train"]]
    for database in folder.glob("*.sqlite"):
        assert _dump(database) == _dump(tmp_path / "again" / database.name)
    other = build(1, tmp_path / "other")
    same = {row["question"] for row in other["dev"]} & {row["question"] for row in splits["dev"]}
    assert len(same) < len(splits["dev"]) / 4
    assert _dump(folder / "clinic.sqlite") != _dump(tmp_path / "other" / "clinic.sqlite")


def _without_path(row: dict) -> dict:
    return {**row, "database": Path(row["database"]).name}


def _dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_a_database_is_in_one_split(splits):
    members = {split: {row["database"] for row in members} for split, members in splits.items()}
    assert {split: len(databases) for split, databases in members.items()} == {"train": 72, "dev": 4, "test": 6}
    # 28 invented databases; those of train stand under three more sets of names each.
    assert len(set.union(*members.values())) == 28 + 3 * 18
    contexts = {split: {row["context"] for row in members} for split, members in splits.items()}
    assert not contexts["train"] & (contexts["dev"] | contexts["test"])


def test_a_slice_covers_all_databases(splits):
    for members in splits.values():
        databases = {row["database"] for row in members}
        assert {row["database"] for row in members[: len(databases)]} == databases


def test_every_gold_has_an_answer(rows):
    for row in rows:
        answer = execute(row)
        assert answer, row
        assert len(answer) > 1 or any(value not in (None, 0) for value in answer[0]), row


def test_no_limit_cuts_a_tie(rows):
    """The row after the last one kept has another sort key: asked again with the keys shown and one row more."""
    limited = [row for row in rows if "limit" in row["kind"]]
    assert len(limited) > 200
    for row in limited:
        tree = sqlglot.parse_one(row["gold_sql"], dialect="sqlite")
        limit = int(tree.args["limit"].expression.name)
        keys = [ordered.this.copy() for ordered in tree.args["order"].expressions]
        tree.set("expressions", keys)
        answer = execute(row, tree.limit(limit + 1).sql(dialect="sqlite"))
        assert len(answer) == limit + 1 and answer[-1] != answer[-2], row


def test_no_duplicates(splits, rows):
    for key in ("question", "gold_sql"):
        counts = Counter((row["database"], row[key].lower() if key == "question" else row[key]) for row in rows)
        assert max(counts.values()) == 1
    for make, key in ((question_key, "question"), (query_key, "gold_sql")):
        seen = {split: {make(row[key]) for row in members} for split, members in splits.items()}
        assert not seen["train"] & seen["dev"]
        assert not seen["train"] & seen["test"]
        assert not seen["dev"] & seen["test"]


def test_near_duplicates_are_recognised():
    assert question_key("How many cakes cost 5 dollars?") == question_key("how many cakes cost 12 dollars")
    assert question_key("How many cakes are there?") != question_key("How many plays are there?")
    assert query_key("SELECT a FROM t WHERE b = 'it''s' AND c1 > 2.5") == "SELECT a FROM t WHERE b = ? AND c1 > ?"


CONSTRUCTS = {  # at least so many in all splits together
    r" WHERE ": 1500,
    r" [<>]=? \d": 400,
    r" <> ": 40,
    r" LIKE ": 70,
    r" BETWEEN ": 90,
    r" IN \('": 60,
    r" OR ": 20,
    r"COUNT\(\*\)": 500,
    r"AVG\(": 150,
    r"SUM\(": 35,
    r"MIN\(": 80,
    r"MAX\(": 80,
    r"COUNT\(DISTINCT": 40,
    r"SELECT DISTINCT": 70,
    r" GROUP BY ": 350,
    r" HAVING ": 70,
    r" ORDER BY .* ASC$": 80,
    r" ORDER BY .* DESC LIMIT": 150,
    r"^[^J]* JOIN [^J]*$": 350,
    r" JOIN .* JOIN ": 80,
    r" LEFT JOIN ": 5,
    r" [<>] \(SELECT AVG": 30,
    r" IN \(SELECT": 60,
    r" NOT IN \(SELECT": 20,
    r" EXISTS \(": 25,
    r" INTERSECT ": 20,
    r" UNION ": 15,
    r" EXCEPT ": 25,
    r" IS NULL": 40,
    r" IS NOT NULL": 12,
    r"strftime\('%Y'": 120,
    r" [<>]=? '\d{4}-": 50,
}


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_constructs(construct, rows):
    assert sum(bool(re.search(construct, row["gold_sql"])) for row in rows) >= CONSTRUCTS[construct]


def test_simple_questions_are_more_frequent(rows):
    simple = sum(
        row["kind"] == ["simple"] or set(row["kind"]) <= {"like", "between", "null", "distinct"} for row in rows
    )
    hard = sum(bool({"join", "nested", "set"} & set(row["kind"])) for row in rows)
    assert 0.28 <= simple / len(rows) <= 0.42
    assert 0.20 <= hard / len(rows) <= 0.30


def test_gold_is_one_select_in_one_style(rows):
    for row in rows:
        tree = sqlglot.parse_one(row["gold_sql"], dialect="sqlite")
        assert isinstance(tree, exp.Select | exp.SetOperation)
        assert '"' not in row["gold_sql"] and ";" not in row["gold_sql"]
        assert ("T1" in row["gold_sql"]) == ("JOIN" in row["gold_sql"])


def test_questions_name_the_values_they_ask_for(rows):
    """Text literals, apart from dates and stored codes, stand in the question in some case."""
    for row in rows:
        for text in re.findall(r"(?:=|<>|LIKE) '((?:[^']|'')+)'", row["gold_sql"]):
            text = text.replace("''", "'").strip("%")
            if not re.match(r"\d{4}(-|$)", text) and row["evidence"] is None:
                assert text.lower() in row["question"].lower(), row


def test_codes_are_explained(rows):
    asked = [row for row in rows if re.search(r"\b(vegan|sex|certified) (=|<>)", row["gold_sql"])]
    assert asked and all(row["evidence"] for row in asked)
    assert sum(row["evidence"] is None for row in rows) > 0.9 * len(rows)


def test_questions_read_like_sentences(rows):
    for row in rows:
        assert not re.search(r"\{|\}|  | \.|None|\b(\w+) \1\b(?<!that that)", row["question"]), row["question"]
        assert not re.search(r"\ba [aeio]", row["question"]) or re.search(r"\ba one", row["question"]), row["question"]
    assert len({row["question"].split()[0] for row in rows}) >= 15


DATABASES = load_databases()


@pytest.mark.parametrize("database", DATABASES, ids=lambda database: database.name)
def test_database_is_described_and_consistent(database, splits, folder):
    assert database.about and 2 <= len(database.tables) <= 6
    with closing(sqlite3.connect(folder / f"{database.name}.sqlite")) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for table in database.tables:
            assert table.about and 3 <= len(table.columns) <= 8
            assert all(len(column.about) > 3 for column in table.columns)
            assert 20 <= connection.execute(f"SELECT COUNT(*) FROM {table.name}").fetchone()[0] <= 200
            if table.label:
                total, names = connection.execute(
                    f"SELECT COUNT(*), COUNT(DISTINCT {table.label.name}) FROM {table.name}"
                ).fetchone()
                assert total == names
            words = Counter(word for c in table.columns if c.role not in ("key", "flag") for word in c.words)
            assert max(words.values()) == 1, f"{table.name}: a word means two columns: {words.most_common(2)}"
    assert any(table.of_role("reference") for table in database.tables)
    assert 60 <= len(database.ddl) / 4 <= 190


def test_most_columns_are_called_otherwise_than_their_name():
    columns = [c for d in DATABASES for t in d.tables for c in t.columns if c.role not in ("key", "reference", "flag")]
    other = [c for c in columns if any(word != c.name.replace("_", " ").lower() for word in c.words)]
    assert len(other) / len(columns) > 0.6


def test_unsound_drafts_are_refused():
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (1, 'y'), (2, 'z')"
        )

        def sound(sql: str, tie: str | None = None) -> bool:
            return is_sound(connection, Draft("?", sql, (), tie))

        assert sound("SELECT b FROM t WHERE a = 1")
        assert not sound("SELECT b FROM t WHERE a = 3")
        assert not sound("SELECT COUNT(*) FROM t WHERE a = 3")
        assert not sound("SELECT MAX(b) FROM t WHERE a = 3")
        assert not sound("SELECT b FROM t WHERE a >= 1")
        assert sound("SELECT b FROM t ORDER BY a DESC LIMIT 1", "a")
        assert not sound("SELECT b FROM t ORDER BY a ASC LIMIT 1", "a")
        assert sound("SELECT b FROM t ORDER BY a ASC LIMIT 2", "a")


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("city", "cities"),
        ("date of birth", "dates of birth"),
        ("branch", "branches"),
        ("birthday", "birthdays"),
        ("species", "species"),
        ("price per day", "prices per day"),
        ("loaf", "loaves"),
    ],
)
def test_plural(noun, plural):
    assert phrases.plural(noun) == plural
