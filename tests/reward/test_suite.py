"""Suites: what is chosen, counted and repeated."""

import shutil

import pytest

from reward.judge import Judge

DDL = """CREATE TABLE band (id INTEGER PRIMARY KEY, name TEXT, town TEXT);
CREATE TABLE album (album_id INTEGER PRIMARY KEY, band_id INT REFERENCES band(id), title TEXT, sold INT)"""
CITY = "CREATE TABLE city (name TEXT, people INT, land TEXT)"


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def names(suite):
    return [member.database.name for member in suite.members]


def test_three_tidy_and_three_near(judge):
    suite = judge.suite("SELECT name FROM city WHERE people > 1000", None, CITY)
    assert [member.database.tier for member in suite.members] == ["tidy"] * 3 + ["near"] * 3
    assert all(member.denotation.row_count for member in suite.members if member.database.tier == "tidy")


def test_kill_score_stands_with_the_question(judge):
    gold = "SELECT name FROM city WHERE people > 1000 AND land = 'x' ORDER BY people DESC"
    line = judge.question({"id": 1, "gold": gold, "candidates": [], "context": CITY})["gold"]
    assert line["mutants"] >= 8 and line["killed"] / line["mutants"] == line["kill_score"] == 1.0


def test_provably_equal_mutants_do_not_count(judge):
    # DISTINCT beside a key, MIN of a constant: no database tells them apart, and the score is whole all the same.
    suite = judge.suite("SELECT id, town FROM band WHERE town = 'x' ORDER BY town", None, DDL)
    assert suite.status == "ok" and suite.killed == suite.mutants and suite.survivors == ()


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT b.name FROM band b JOIN album a ON b.id = a.band_id",
        "SELECT b.name, COUNT(*) FROM band b JOIN album a ON b.id = a.band_id GROUP BY b.id",
        "SELECT a.title FROM album a JOIN band b ON b.id = a.band_id WHERE a.sold > 5",
        "SELECT b.name FROM band b JOIN album a ON b.id = a.band_id ORDER BY a.sold LIMIT 1",
        "SELECT name FROM band WHERE id IN (SELECT b.id FROM band b JOIN album a ON b.id = a.band_id)",
        "SELECT b.name FROM band b JOIN album a ON b.id = a.band_id GROUP BY b.id ORDER BY COUNT(*) DESC LIMIT 1",
        "SELECT DISTINCT b.town FROM band b JOIN album a ON b.id = a.band_id",
    ],
)
def test_left_join_is_told_apart(judge, gold):
    suite = judge.suite(gold, None, DDL)
    assert not [mutant for mutant in suite.survivors if mutant.kind == "left_join"]
    left = gold.replace(" JOIN", " LEFT JOIN")
    [verdict] = judge.question({"id": 1, "gold": gold, "candidates": [left], "context": DDL})["verdicts"]
    assert verdict["verdict"] in ("wrong", "unclear")


def test_same_seed_same_suite(judge):
    gold = "SELECT town, COUNT(*) FROM band GROUP BY town HAVING COUNT(*) > 2"
    with Judge(seed=0) as again, Judge(seed=1) as other:
        first, second, third = (j.suite(gold, None, DDL) for j in (judge, again, other))
    assert first == second and first.suite_hash != third.suite_hash


def test_a_file_that_moved_keeps_its_suite_hash(make_database, tmp_path):
    path = make_database(CITY + "; INSERT INTO city VALUES ('a', 1, 'x'), ('b', 2000, 'x'), ('c', 3000, 'y')", "cities")
    moved = shutil.copy(path, tmp_path / "moved.sqlite")
    other = make_database(CITY + "; INSERT INTO city VALUES ('a', 1, 'x'), ('b', 2001, 'x'), ('c', 3000, 'y')", "others")
    gold = "SELECT name FROM city WHERE people > 1000"
    with Judge() as judge:
        first, second, third = (judge.suite(gold, str(place)) for place in (path, moved, other))
    assert names(first) == names(second) and names(first)[0] == "given"
    assert first.suite_hash == second.suite_hash != third.suite_hash


def test_the_given_file_counts(make_database):
    script = CITY + "; INSERT INTO city VALUES ('a', 1, 'x'), ('b', 2000, 'x'), ('c', 3000, 'y'), ('d', 3000, 'y')"
    path = make_database(script, "cities")
    gold = "SELECT name FROM city WHERE people > 1000"
    with Judge(databases="given") as judge:
        suite = judge.suite(gold, path)
        assert names(suite) == ["given"] and 0 < suite.killed < suite.mutants
        assert suite.mutants - suite.killed == len(suite.survivors)
    with Judge() as judge:
        suite = judge.suite(gold, path)
        assert names(suite)[0] == "given" and suite.killed == suite.mutants
    with Judge(mutants=0) as judge:
        suite = judge.suite(gold, path)
        assert (suite.mutants, suite.killed) == (0, 0) and len(suite.members) == 7


def test_gold_that_nothing_tells_apart_is_bad():
    # 1 = 1 and 2 = 2 hold whatever the rows are: dropping or joining them otherwise changes nothing.
    gold = "SELECT DISTINCT a FROM t WHERE 1 = 1 OR (2 = 2 OR (3 = 3 OR (4 = 4 OR (5 = 5 OR 6 = 6))))"
    task = {"id": 1, "gold": gold, "candidates": [gold], "context": "CREATE TABLE t (a INT)"}
    with Judge() as judge:
        line = judge.question(task)
    assert (line["gold"]["status"], line["gold"]["reason"]) == ("gold_bad", "undiscriminated")
    with Judge(min_kill_score=0.0) as judge:
        assert judge.question(task)["verdicts"][0]["verdict"] == "correct"
