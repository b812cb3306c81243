"""Mutants: edits that change the meaning, none that provably do not."""

from reward.judge import Judge
from reward.mutants import make_mutants
from reward.schema import Schema

EMPTY = Schema([], {})


def test_kinds_of_edits():
    mutants = make_mutants("SELECT DISTINCT a FROM t WHERE b > 5 AND c LIKE '%x%' ORDER BY a LIMIT 3", EMPTY)
    for expected in (
        "SELECT a FROM t WHERE b > 5 AND c LIKE '%x%' ORDER BY a LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b >= 5 AND c LIKE '%x%' ORDER BY a LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b > 6 AND c LIKE '%x%' ORDER BY a LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b > 5 AND c LIKE 'x' ORDER BY a LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b > 5 ORDER BY a LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b > 5 OR c LIKE '%x%' ORDER BY a LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b > 5 AND c LIKE '%x%' ORDER BY a DESC LIMIT 3",
        "SELECT DISTINCT a FROM t WHERE b > 5 AND c LIKE '%x%' ORDER BY a",
        "SELECT DISTINCT a FROM t ORDER BY a LIMIT 3",
    ):
        assert expected in mutants
    assert len(set(mutants)) == len(mutants)
    assert len(make_mutants("SELECT a FROM t WHERE b > 5 AND c = 1", EMPTY, at_most=3)) == 3


def test_provably_equal_edits_are_left_out():
    assert "SELECT DISTINCT COUNT(*) FROM t" not in make_mutants("SELECT COUNT(*) FROM t", EMPTY)
    joined = "SELECT t.a FROM t JOIN u ON t.a = u.a WHERE u.b = 1"
    assert not any("LEFT" in mutant for mutant in make_mutants(joined, EMPTY))
    assert any("LEFT" in mutant for mutant in make_mutants(joined.replace("WHERE u.b", "WHERE t.b"), EMPTY))
    assert make_mutants("SELECT ((", EMPTY) == []


def test_kill_score_stands_with_the_question():
    task = {
        "id": 1,
        "gold": "SELECT name FROM city WHERE people > 1000 AND land = 'x' ORDER BY people DESC",
        "candidates": [],
        "context": "CREATE TABLE city (name TEXT, people INT, land TEXT)",
    }
    with Judge() as judge:
        gold = judge.question(task)["gold"]
    assert gold["mutants"] >= 8 and gold["killed"] / gold["mutants"] == gold["kill_score"] >= 0.9


def test_gold_that_nothing_tells_apart_is_bad():
    # 1 = 1 and 2 = 2 hold whatever the rows are: dropping or joining them otherwise changes nothing.
    gold = "SELECT DISTINCT a FROM t WHERE 1 = 1 OR (2 = 2 OR (3 = 3 OR (4 = 4 OR (5 = 5 OR 6 = 6))))"
    task = {"id": 1, "gold": gold, "candidates": [gold], "context": "CREATE TABLE t (a INT)"}
    with Judge() as judge:
        line = judge.question(task)
    assert (line["gold"]["status"], line["gold"]["reason"]) == ("gold_bad", "undiscriminated")
    with Judge(min_kill_score=0.0) as judge:
        assert judge.question(task)["verdicts"][0]["verdict"] == "correct"
