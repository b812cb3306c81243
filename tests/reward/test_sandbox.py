"""The gate and the sandbox: hostile statements, dead workers, and that company, order and load change nothing."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.connection import fingerprint
from reward.gate import gate, gate_by_tokens
from reward.judge import Judge
from reward.queries import plain_values_as_strings
from reward.sandbox import Database, Job, Sandbox

FOLDER = Path(__file__).parent
HOSTILE = [json.loads(line) for line in (FOLDER / "hostile.jsonl").read_text(encoding="utf-8").splitlines()]
HARMLESS = "SELECT name FROM t WHERE id < 5"
JUDGED = {"equal", "rows", "columns", "duplicates", "order", "near", "column_order"}
SCRIPT = """
CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, v INT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
INSERT INTO t SELECT i, 'row ' || i, i * 13 % 97 FROM n;
CREATE VIEW names AS SELECT name FROM t;
CREATE INDEX by_v ON t (v);
"""


@pytest.fixture(scope="module")
def table(make_database) -> str:
    return make_database(SCRIPT, "hostile")


def text_of(case: dict) -> str:
    return case["sql"] if "sql" in case else "".join(text * count for text, count in case["build"])


def peak_kib(judge: Judge) -> int:
    status = Path(f"/proc/{judge.sandbox.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_hostile_statements(table):
    digest = hashlib.sha256(Path(table).read_bytes()).hexdigest()
    before = sorted(os.listdir(Path(table).parent)), sorted(os.listdir(FOLDER.parents[1]))
    failures = []
    with Judge(databases="given", vm_step_budget=500_000, cpu_limit_s=0.3) as judge:
        for case in HOSTILE:
            task = {"id": case["id"], "gold": HARMLESS, "candidates": [text_of(case), HARMLESS], "database": table}
            hostile, harmless = judge.question(task)["verdicts"]
            outcome = "ok" if hostile["reason"] in JUDGED else hostile["reason"]
            fine = outcome in case["expect"] and harmless["verdict"] == "correct" and peak_kib(judge) <= 256 * 1024
            if not fine or (outcome == "volatile") != (hostile["verdict"] == "unclear" and outcome != "timeout"):
                failures.append((case["id"], hostile, harmless, peak_kib(judge)))
    assert not failures
    assert hashlib.sha256(Path(table).read_bytes()).hexdigest() == digest
    assert (sorted(os.listdir(Path(table).parent)), sorted(os.listdir(FOLDER.parents[1]))) == before


PIECES = st.sampled_from(
    "SELECT select WITH VALUES DELETE EXPLAIN SELECTED SELECT$ ; ;; ' '' \" \"\" ` [ ] -- - -> / /* */ * x' x'41' 0x 1e5"
    " 'a;b' \"a;b\" [a;b] `;` ( ) , . é ß \ufeff \x0b \x00 \ud800 a name $ @ # ? :a".split(" ")
    + ["\n", "\t", "\r", "\f", " ", "  ", "SELECT ", " -- x\n", "/* ; */"]
)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join), st.booleans())
def test_gate_gives_one_answer_by_both_ways(text, as_query):
    text = "SELECT " + text if as_query else text
    assert gate(text) == gate_by_tokens(text)


def mixed_candidates() -> list[str]:
    """Right, wrong, failing, refused, endless and large ones."""
    wrong = [f"SELECT name FROM t WHERE id < {number}" for number in range(30)]
    right = [f"SELECT name FROM t WHERE {number} = {number} AND id < 5" for number in range(20)]
    others = [text_of(case) for case in HOSTILE if case["id"] in ("two-selects", "pragma-table-info", "random", "now")]
    heavy = [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
        "SELECT a.id FROM t a, t b",
        "SELECT length(group_concat(a.name || b.name)) FROM t a, t b",
        "SELECT name FROM t WHERE name = \"row 1\" OR name = \"row 2\"",
        "SELECT \"absent\" FROM t",
        "SELECT name, id FROM t WHERE id < 5",
        "SELECT name FROM t WHERE id < 5 ORDER BY id DESC",
    ]
    return wrong + right + others + heavy


def judged(judge: Judge, path: str, candidates: list[str], size: int) -> dict[str, dict]:
    verdicts = {}
    for start in range(0, len(candidates), size):
        batch = candidates[start : start + size]
        task = {"id": start, "gold": HARMLESS, "candidates": batch, "database": path}
        verdicts |= zip(batch, judge.question(task)["verdicts"])
    return verdicts


def test_verdicts_do_not_depend_on_batch_order_or_load(table):
    candidates = mixed_candidates()
    arguments = {"databases": "given", "vm_step_budget": 1_000_000}
    with Judge(**arguments) as judge:
        expected = judged(judge, table, candidates, len(candidates))
    assert len({verdict["reason"] for verdict in expected.values()}) >= 7
    shuffled = candidates[:]
    random.Random(7).shuffle(shuffled)
    with Judge(**arguments) as judge:
        for size in (1, 7, 32):
            assert judged(judge, table, shuffled, size) == expected
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
        try:
            assert judged(judge, table, candidates[::-1], 32) == expected
        finally:
            for process in busy:
                process.kill()
                process.wait()


QUOTED = st.lists(
    st.sampled_from(
        ["name", "v", "t.v", "date(name)", "absent", '"name"', '"row 1"', '"row 2"', '"ROW"', '"now"', '"x"', '"rowid"', "x"]
        + ["=", "<>", "LIKE", "NOT LIKE", "<", "IN (", "(", ")", "AND", "OR", "NOT", "AS", ",", "IS", "ORDER BY", "1", "'row 1'"]
        + ['"column1"', "GROUP BY name HAVING name =", "UNION SELECT", "FROM t", "/* x */", "CASE WHEN", "THEN 1 END", '""""']
    ),
    max_size=9,
)


@settings(max_examples=300, deadline=None)
@given(QUOTED, QUOTED)
def test_quoted_values_foreseen_as_strings_are_those_that_sqlite_finds_unknown(table, foreseeing, columns, conditions):
    sql = f"SELECT {' '.join(columns) or 'name'} FROM t WHERE {' '.join(conditions) or '1'}"
    task = {"id": 1, "gold": HARMLESS, "candidates": [sql, sql.replace("=", '= "row 1" AND name =')], "database": table}
    one_by_one, foreseen = foreseeing
    assert foreseen.question(task) == one_by_one.question(task)


def test_quoted_values_are_foreseen(table, foreseeing):
    for sql in ('SELECT id FROM t WHERE name = "row 1"', 'SELECT id FROM t WHERE (t.name LIKE "row 1%") AND v <> "a\'b"'):
        assert '"' not in plain_values_as_strings(sql, SCRIPT.lower())
    for sql in ('SELECT id AS "row 1" FROM t WHERE id = "row 1"', 'SELECT id FROM t WHERE name = "names"'):
        assert plain_values_as_strings(sql, SCRIPT.lower()) == sql


@pytest.fixture(scope="module")
def foreseeing():
    """A judge that leaves every double-quoted name to SQLite first, and a common one."""
    with Judge(databases="given") as one_by_one, Judge(databases="given") as foreseen:
        question = one_by_one.question
        one_by_one.question = lambda task: _without_foresight(question, task)
        yield one_by_one, foreseen


def _without_foresight(question, task: dict) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reward.judge.plain_values_as_strings", lambda sql, ddl: sql)
        return question(task)


def test_several_questions_at_once_are_judged_as_each_alone(table):
    candidates = mixed_candidates()[20:]
    tasks = [
        {"id": start, "gold": gold, "candidates": candidates[start : start + 9], "database": table}
        for start, gold in enumerate([HARMLESS, "SELECT oops", None, "SELECT count(*) FROM t", HARMLESS] * 7)
    ]
    with Judge(databases="given", vm_step_budget=300_000) as judge:
        alone = [judge.question(task) for task in tasks]
        assert judge.questions(tasks) == alone
        assert list(judge.stream(iter(tasks))) == alone


def test_a_batch_goes_on_around_statements_that_end_the_worker(table):
    hang = "SELECT sum(instr(printf('%149000s', a.id), printf('%70000s', 'b') || b.id)) FROM t a, t b"
    statements = ["SELECT 1", "SELECT 2", hang, "SELECT 3", hang + " WHERE 1", "SELECT 4"]
    with Sandbox(cpu_limit_s=0.3) as sandbox:
        database = Database("table", "table", "given", table)
        outcomes = sandbox.run(database, statements, 10)
        assert [outcome.status for outcome in outcomes] == ["ok", "ok", "lost", "ok", "lost", "ok"]
        assert [outcome.rows for outcome in outcomes] == [[(1,)], [(2,)], [], [(3,)], [], [(4,)]]
        assert sandbox.restarts == 4  # each of the two once in company and once alone


def test_a_worker_that_stands_still_is_given_up(table):
    with Sandbox(wall_limit_s=0.3) as sandbox:
        database = Database("table", "table", "given", table)
        assert sandbox.run(database, ["SELECT 1"], 10)[0].status == "ok"
        os.kill(sandbox.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert [outcome.rows for outcome in sandbox.run(database, ["SELECT 1", "SELECT 2"], 10)] == [[(1,)], [(2,)]]
        assert sandbox.restarts == 1 and time.monotonic() - started < 5


def test_workers_killed_at_any_moment_lose_nothing(table):
    # Each killed once at most in one batch: a second loss of the same statement alone would be `lost`.
    statements = [f"SELECT {number}, count(*) FROM t a, t b WHERE a.v < b.v + {number}" for number in range(6)]
    database = Database("table", "table", "given", table)
    with Sandbox() as sandbox:
        expected = sandbox.run(database, statements, 10)
        for delay_s in (0.001, 0.05):
            restarts = sandbox.restarts
            killer = threading.Timer(delay_s, os.kill, (sandbox.process.pid, signal.SIGKILL))
            killer.start()
            assert sandbox.run(database, statements, 10) == expected
            killer.join()
            assert sandbox.restarts <= restarts + 1
            sandbox.run(database, ["SELECT 1"], 1)  # a kill after the batch shows here


def test_known_answers_stay_in_the_worker(table):
    rows = [("row 1", 1, 2.5, None, b"\x00")]
    query = "SELECT 'row 1', 1, 2.5, NULL, x'00'"
    known = frozenset([fingerprint(5, rows)])
    database = Database("table", "table", "given", table)
    others = [query.replace("2.5", "2.5000000001"), query.replace("1,", "1.0,"), query + ", 1", query + " WHERE 0"]
    with Sandbox() as sandbox:
        outcomes = sandbox.run_jobs([Job(database, [query, *others], 10, False, known)])[0]
        assert [outcome.status for outcome in outcomes] == ["same"] + ["ok"] * 4
        assert outcomes[0].fingerprint in known and outcomes[2].rows == [("row 1", 1.0, 2.5, None, b"\x00")]
        assert fingerprint(1, []) != fingerprint(2, [])
        assert len({outcome.fingerprint for outcome in outcomes}) == 5


def test_memory_does_not_depend_on_what_else_is_open(table):
    # Fills the worker's heap with databases, so that the statement fails there; alone it has room.
    rows = (("t", 1, [("x" * 100_000,)] * 450),)
    hungry = "SELECT count(*) FROM (SELECT printf('%100000s', id) AS s FROM t WHERE id <= 400 ORDER BY s)"
    with Sandbox() as sandbox:
        database = Database("table", "table", "given", table)
        [alone] = sandbox.run(database, [hungry], 10)
        assert alone.status == "ok"
        sandbox.run(Database("big", "big", "tidy", None, ("CREATE TABLE t (a TEXT)",), rows), ["SELECT 1"], 1)
        assert sandbox.run(database, [hungry], 10) == [alone]


def test_a_batch_that_was_broken_off_gives_the_next_one_none_of_its_answers(table):
    database = Database("broken-off", "given", "given", table)
    slow = "SELECT count(*) FROM t a, t b WHERE a.v + b.v > 50"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with Sandbox() as sandbox:
        expected = sandbox.run(database, ["SELECT 1", "SELECT 2"], 9)
        before = signal.signal(signal.SIGALRM, stop)
        try:
            for delay_s in (0.002, 0.01, 0.05):
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                with pytest.raises(KeyboardInterrupt):
                    while True:
                        sandbox.run(database, ["SELECT 3", slow, "SELECT 4"], 9)
                assert sandbox.run(database, ["SELECT 1", "SELECT 2"], 9) == expected
        finally:
            signal.signal(signal.SIGALRM, before)


def test_threads_may_share_a_judge(table):
    tasks = [
        {"id": n, "gold": f"SELECT name FROM t WHERE v = {n}", "candidates": [HARMLESS, "SELECT 1"], "database": table}
        for n in range(12)
    ]
    found: dict[int, list[dict]] = {}
    with Judge(databases="given") as judge:
        expected = [judge.question(task) for task in tasks]
    with Judge(databases="given") as judge:

        def ask(number: int) -> None:
            found[number] = [judge.question(task) for task in tasks]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found.get(number) for number in range(4)] == [expected] * 4
