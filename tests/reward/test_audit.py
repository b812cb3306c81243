"""The audit of gold, on hand-made examples and on real rows where they are present."""

import csv
import gzip
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reward.audit import EMPTY_ON_ITS_OWN, audit, audit_example
from reward.audit_table import WHAT_TO_DO, AuditTable
from reward.judge import Judge

PROJECT = Path(__file__).parents[2]
DDL = "CREATE TABLE t (a INTEGER, b VARCHAR)"


def first(example):
    [line] = audit([example], progress=False)
    return line


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("SELECT a FROM t WHERE", "sql_error"),
        ("SELECT a FROM", "sql_error"),
        ("SELECT 'a", "parse"),
        ("UPDATE t SET a = 1", "not_select"),
        ("SELECT a FROM t; SELECT b FROM t", "not_select"),
        ("SELECT c FROM t", "sql_error"),
        ("SELECT a FROM t OFFSET 1", "sql_error"),
        ("SELECT a FROM t WHERE 1 = 2", "empty"),
        ("SELECT a FROM t WHERE a > 5 AND a < 3", "empty"),
        ("SELECT a FROM t WHERE a > random()", "unstable"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n", "timeout"),
    ],
)
def test_bad_gold(gold, reason):
    line = first({"question": "?", "context": DDL, "gold": gold})
    assert (line["status"], line["reason"]) == ("gold_bad", reason)
    assert line["gold_sql"] is None and line["detail"]


def test_good_gold_is_normalised_and_scored():
    line = first({"question": "?", "context": DDL, "answer": 'SELECT COUNT(*) FROM t WHERE a > 3 AND b = "x"'})
    mutants, killed = line.pop("mutants"), line.pop("killed")
    assert mutants > 4 and killed > mutants / 2
    assert line == {
        "status": "ok",
        "reason": None,
        "detail": None,
        "gold_sql": "SELECT COUNT(*) FROM t WHERE a > 3 AND b = 'x'",
        "kinds": ["aggregate"],
        "kill_score": round(killed / mutants, 4),
    }


def test_without_mutants_there_is_no_score():
    [line] = audit([{"context": DDL, "gold": "SELECT a FROM t WHERE a > 3"}], progress=False, mutants=0)
    assert (line["status"], line["kill_score"], line["mutants"]) == ("ok", None, 0)


def test_gold_that_its_databases_hardly_tell_from_its_mutants():
    # The same condition twice: what changes one of them alone changes nothing.
    with Judge(min_kill_score=1.0, tidy=1, near=0, attempts=1) as judge:
        line = audit_example(judge, {"context": DDL, "gold": "SELECT a FROM t WHERE a > 3 OR a > 3 OR a > 2"})
    assert (line["status"], line["reason"]) == ("gold_bad", "undiscriminated")
    assert 0 < line["killed"] < line["mutants"] and line["kill_score"] < 1
    assert "mutants told apart" in line["detail"] and "the same everywhere: SELECT" in line["detail"]


def test_schema_and_missing_gold():
    assert first({"context": DDL + "; " + DDL, "gold": "SELECT a FROM t"})["reason"] == "schema"
    assert first({"gold": "SELECT 1"})["reason"] == "schema"
    assert first({"database": "absent.sqlite", "gold": "SELECT 1"})["reason"] == "schema"
    assert first({"context": DDL, "gold": None})["status"] == "unanswerable"


def test_gold_that_is_empty_on_its_own_database(shop):
    # Right or not: databases that have rows for it can tell. Judged on its file alone, nothing can.
    empty = {"database": shop, "gold": "SELECT name FROM shop WHERE city = 'Rome'"}
    assert (first(empty)["status"], first(empty)["detail"]) == ("ok", EMPTY_ON_ITS_OWN)
    [line] = audit([empty], progress=False, databases="given", mutants=0)
    assert (line["status"], line["reason"]) == ("gold_bad", "empty") and "on its database" in line["detail"]
    line = first({"database": shop, "gold": "SELECT name FROM shop WHERE city = 'Oslo'"})
    assert (line["status"], line["detail"]) == ("ok", None)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ([], "list"),
        ({"context": DDL}, "neither gold nor answer"),
        ({"context": DDL, "gold": 1}, "gold is 1"),
        ({"context": 1, "gold": "SELECT 1"}, "context is 1"),
        ({"database": ["x"], "gold": "SELECT 1"}, "database is"),
    ],
)
def test_malformed_example(example, words):
    with pytest.raises(ValueError, match=words):
        list(audit([example], progress=False))


def test_two_workers_and_a_generator_give_the_same_lines():
    examples = [{"context": DDL, "gold": f"SELECT {column} FROM t"} for column in "abcab"]
    found = audit((example for example in examples), workers=2, progress=False)
    assert list(found) == list(audit(examples, progress=False))


def test_command_ends_in_a_table_and_a_csv(tmp_path):
    rows = [
        {"id": "a", "question": "How many?", "context": DDL, "answer": "SELECT COUNT(*) FROM t WHERE a > 3"},
        {"context": DDL},
        {"id": "b", "question": "=c", "context": DDL, "gold": "SELECT c FROM t"},
        {"id": "c", "context": DDL, "gold": None},
        {"id": "d", "question": "\ud800", "context": "", "gold": "SELECT a FROM t"},
        {"example_id": "e", "context": "CREATE", "gold": "SELECT a FROM t"},
    ]
    source, target = tmp_path / "rows.jsonl.gz", tmp_path / "audit.jsonl"
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    command = [sys.executable, "-m", "reward.audit", "--input", str(source), "--output", str(target), "--no-cache"]
    command += ["--table", str(tmp_path / "bad.csv")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert result.returncode == 0 and "line 2:" in result.stderr
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    keys = "line id question gold status reason detail gold_sql kinds kill_score mutants killed".split()
    assert list(lines[0]) == keys and lines[0]["status"] == "ok" and lines[0]["mutants"] > 0
    assert [(line["line"], line["status"], line["reason"]) for line in lines] == [
        (1, "ok", None),
        (3, "gold_bad", "sql_error"),
        (4, "unanswerable", None),
        (5, "gold_bad", "sql_error"),
        (6, "gold_bad", "schema"),
    ]
    table = result.stdout.splitlines()
    assert table[0] == "5 rows: 1 ok (20.00%), 3 gold_bad (60.00%), 1 unanswerable (20.00%)"
    assert table[2].split() == "reason rows share for example what to do".split()
    assert table[3].startswith("sql_error     2  40.00%  line 3, id b  Gold does not run")
    assert max(map(len, table)) <= 110
    with (tmp_path / "bad.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["line"], row["id"], row["reason"]) for row in written] == [
        ("3", "b", "sql_error"),
        ("5", "d", "sql_error"),
        ("6", "e", "schema"),
    ]
    assert "no such column: c" in written[0]["detail"] and written[0]["what_to_do"]
    # Once more: nothing is audited again, and table and CSV are the same.
    (tmp_path / "bad.csv").unlink()
    again = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert again.stdout == result.stdout and (tmp_path / "bad.csv").exists()
    unwritable = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True, cwd=PROJECT)
    assert unwritable.returncode == 1 and "cannot be written" in unwritable.stderr


def test_every_reason_has_something_to_do():
    documented = re.search(r"`reason` of gold_bad: ([\w, \n]+)\.", audit.__doc__)[1]
    assert set(re.findall(r"\w+", documented)) == WHAT_TO_DO.keys()


def test_a_table_of_nothing_bad(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    assert AuditTable(tmp_path / "none.jsonl").text() == "0 rows"
    lines = [{"line": 1, "status": "ok", "detail": None}, {"line": 2, "status": "ok", "detail": "look here"}]
    (tmp_path / "fine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = AuditTable(tmp_path / "fine.jsonl")
    assert table.text() == "2 rows: 2 ok (100.00%)\n1 of the ok rows, for example line 2: look here"
    assert table.write_csv(tmp_path / "bad.csv") == 0


def test_real_rows(shared):
    lines = (shared / "data/sql_create_context/dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in random.Random(0).sample(lines, 100)]
    audited = list(audit(rows, progress=False, mutants=0, tidy=1, near=1))
    share = sum(line["status"] == "ok" for line in audited) / len(rows)
    assert 0.92 <= share <= 0.99
    good = [(row, line) for row, line in zip(rows, audited) if line["status"] == "ok"][:20]
    with Judge() as judge:
        for number, (row, line) in enumerate(good):
            other = f"SELECT 'no such answer' FROM ({line['gold_sql']})"
            candidates = [row["answer"], line["gold_sql"], other]
            task = {"id": number, "gold": row["answer"], "candidates": candidates, "context": row["context"]}
            verdicts = [verdict["verdict"] for verdict in judge.question(task)["verdicts"]]
            assert verdicts == ["correct", "correct", "wrong"], (row, judge.question(task))
