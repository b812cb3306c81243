"""The audit of gold, on hand-made examples and on real rows where they are present."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from reward.audit import audit
from reward.judge import Judge

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
        ("SELECT a FROM t WHERE a > random()", "unstable"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n", "timeout"),
    ],
)
def test_bad_gold(gold, reason):
    line = first({"question": "?", "context": DDL, "gold": gold})
    assert (line["status"], line["reason"]) == ("gold_bad", reason)
    assert line["gold_sql"] is None and line["detail"]


def test_good_gold_is_normalised():
    line = first({"question": "?", "context": DDL, "answer": 'SELECT COUNT(*) FROM t WHERE b = "x"'})
    assert line == {
        "status": "ok",
        "reason": None,
        "detail": None,
        "gold_sql": "SELECT COUNT(*) FROM t WHERE b = 'x'",
        "kinds": ["aggregate"],
    }


def test_schema_and_missing_gold():
    assert first({"context": DDL + "; " + DDL, "gold": "SELECT a FROM t"})["reason"] == "schema"
    assert first({"gold": "SELECT 1"})["reason"] == "schema"
    assert first({"database": "absent.sqlite", "gold": "SELECT 1"})["reason"] == "schema"
    assert first({"context": DDL, "gold": None})["status"] == "unanswerable"


def test_gold_that_is_empty_on_its_own_database(shop):
    assert first({"database": shop, "gold": "SELECT name FROM shop WHERE city = 'Rome'"})["reason"] == "empty"
    assert first({"database": shop, "gold": "SELECT name FROM shop WHERE city = 'Oslo'"})["status"] == "ok"


def test_two_workers_give_the_same_lines():
    examples = [{"context": DDL, "gold": f"SELECT {column} FROM t"} for column in "abcab"]
    assert list(audit(examples, workers=2, progress=False)) == list(audit(examples, progress=False))


def test_command(tmp_path):
    rows = [{"question": "How many?", "context": DDL, "answer": "SELECT COUNT(*) FROM t"}, {"context": DDL}]
    source, target = tmp_path / "rows.jsonl", tmp_path / "audit.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "reward.audit", "--input", str(source), "--output", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0 and "line 2:" in result.stderr
    [line] = map(json.loads, target.read_text().splitlines())
    assert line["question"] == "How many?" and line["status"] == "ok"


def test_real_rows(shared):
    lines = (shared / "data/sql_create_context/dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in random.Random(0).sample(lines, 200)]
    audited = list(audit(rows, progress=False))
    share = sum(line["status"] == "ok" for line in audited) / len(rows)
    assert 0.92 <= share <= 0.99
    good = [(row, line) for row, line in zip(rows, audited) if line["status"] == "ok"][:60]
    with Judge() as judge:
        for number, (row, line) in enumerate(good):
            other = f"SELECT 'no such answer' FROM ({line['gold_sql']})"
            candidates = [row["answer"], line["gold_sql"], other]
            task = {"id": number, "gold": row["answer"], "candidates": candidates, "context": row["context"]}
            verdicts = [verdict["verdict"] for verdict in judge.question(task)["verdicts"]]
            assert verdicts == ["correct", "correct", "wrong"], (row, judge.question(task))
