"""The judge against cases that stand in data files: add a line there to add a case."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from reward.judge import Judge
from reward.task import checked_task


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CASES = read_lines(Path(__file__).parent / "cases.jsonl")
DDL = (
    "CREATE TABLE city (city_id VARCHAR, name VARCHAR, people VARCHAR); CREATE TABLE host (city VARCHAR, year INTEGER)"
)
GOLD = "SELECT name FROM city WHERE people > 1000"


@pytest.fixture(scope="module")
def judges():
    found = {mode: Judge(databases=mode) for mode in ("both", "given", "generated")}
    yield found
    for judge in found.values():
        judge.close()


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_case(case, judges, shop):
    for mode in [case["databases"]] if "databases" in case else ["both", "given"]:
        if mode == "given" and case.get("reason") == "near":
            continue  # the given database is not near
        task = {"id": case["id"], "gold": case["gold"], "candidates": [case["candidate"]], "database": shop}
        [verdict] = judges[mode].question(task)["verdicts"]
        assert verdict["verdict"] == case["verdict"], (mode, verdict)
        assert verdict["reason"] == case.get("reason", verdict["reason"]), (mode, verdict)


@pytest.mark.parametrize("mode", ["both", "given"])
def test_rules(mode, judges, shared, make_database):
    path = make_database((shared / "data/reward/rules_database.sql").read_text(), "rules")
    failures = []
    for case in read_lines(shared / "data/reward/rules.jsonl"):
        task = {"id": case["id"], "gold": case["gold"], "candidates": [case["candidate"]], "database": path}
        [verdict] = judges[mode].question(task)["verdicts"]
        if case["expected"] not in ("open", verdict["verdict"]):
            failures.append((case, verdict))
    assert not failures


def test_hostile_statements_cost_only_themselves(shared, make_database):
    path = make_database((shared / "data/reward/hostile_database.sql").read_text(), "hostile")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    gold = "SELECT name FROM t WHERE id < 5"
    names = {"sql_error": "error", "rows_limit": "rows"}
    judged_like_any = {"equal", "rows", "columns", "duplicates", "order", "near", "column_order"}
    failures = []
    with Judge(vm_step_budget=3_000_000, cpu_limit_s=1.5) as judge:
        for case in read_lines(shared / "data/reward/hostile.jsonl"):
            sql = case["sql"] if "sql" in case else "".join(text * count for text, count in case["build"])
            line = judge.question({"id": case["id"], "gold": gold, "candidates": [sql, gold], "database": path})
            hostile, harmless = line["verdicts"]
            outcome = "ok" if hostile["reason"] in judged_like_any else names.get(hostile["reason"], hostile["reason"])
            if outcome not in case["expect"].split("|") or harmless["verdict"] != "correct":
                failures.append((case["id"], hostile, harmless))
            status = Path(f"/proc/{judge.sandbox.process.pid}/status").read_text()
            peak_kib = int(status.split("VmHWM:")[1].split()[0])
            assert peak_kib < 256 * 1024, case
    assert not failures
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    assert sorted(file.name for file in Path(path).parent.iterdir()) == ["hostile.sqlite"]


def test_hang_inside_one_function_is_unclear_and_leaves_the_batch(shop):
    # printf makes the strings, instr compares them byte by byte without one VM step in between.
    hang = (
        "SELECT sum(instr(printf('%149000s', item), printf('%70000s', 'b') || sale_id)) FROM sale, shop a, shop b, shop"
    )
    gold = "SELECT name FROM shop"
    with Judge(databases="given", cpu_limit_s=0.5) as judge:
        line = judge.question({"id": 1, "gold": gold, "candidates": [gold, hang, gold + " WHERE 1"], "database": shop})
        assert judge.sandbox.restarts == 2  # it was tried once more, alone
    assert [(verdict["verdict"], verdict["reason"]) for verdict in line["verdicts"]] == [
        ("correct", "equal"),
        ("unclear", "timeout"),
        ("correct", "equal"),
    ]


def test_worker_killed_from_outside_changes_nothing(shop):
    gold = "SELECT name FROM shop"
    task = {"id": 1, "gold": gold, "candidates": [gold, "SELECT city FROM shop"], "database": shop}
    with Judge() as judge:
        expected = judge.question(task)
        os.kill(judge.sandbox.process.pid, signal.SIGKILL)
        assert judge.question(task) == expected
        assert judge.sandbox.restarts == 1


def test_worker_killed_in_the_middle_of_a_batch(shop):
    # The middle candidate runs for a while (some 10 million VM steps), so the worker dies while it is at work.
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 700000) SELECT COUNT(*) FROM n"
    gold = "SELECT COUNT(*) FROM shop"
    candidates = [gold, slow, "SELECT COUNT(*) FROM shop WHERE 1", "SELECT 'x'"]
    task = {"id": 1, "gold": gold, "candidates": candidates, "database": shop}
    with Judge(databases="given") as judge:
        expected = judge.question(task)
        assert [verdict["verdict"] for verdict in expected["verdicts"]] == ["correct", "wrong", "correct", "wrong"]
        killer = threading.Timer(0.05, os.kill, (judge.sandbox.process.pid, signal.SIGKILL))
        killer.start()
        assert judge.question(task) == expected
        killer.join()
        assert judge.sandbox.restarts == 1


def test_budget_in_vm_steps_decides_timeouts(shop):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n"
    with Judge(databases="given", vm_step_budget=100_000) as judge:
        line = judge.question({"id": 1, "gold": "SELECT 1", "candidates": [endless], "database": shop})
        assert (line["verdicts"][0]["verdict"], line["verdicts"][0]["reason"]) == ("wrong", "timeout")
        assert judge.sandbox.restarts == 0


def test_schema_only_question(judges):
    candidates = [
        GOLD,
        "SELECT name FROM city WHERE CAST(people AS REAL) > 1000",
        "SELECT name FROM city WHERE people >= 1000",
        "SELECT name FROM city",
        "SELECT city_id FROM city WHERE people > 1000",
    ]
    line = judges["both"].question({"id": 7, "gold": GOLD, "candidates": candidates, "context": DDL})
    assert [verdict["verdict"] for verdict in line["verdicts"]] == ["correct", "correct", "wrong", "wrong", "wrong"]
    assert len(line["gold"]["databases"]) == 6 and min(line["gold"]["gold_rows"]) > 0
    trace = line["verdicts"][2]["trace"]
    assert trace["database"].startswith("tidy") and trace["rows"] > trace["gold_rows"]
    assert trace["gold_only"] == [] and len(trace["candidate_only"]) >= 1


def test_verdicts_repeat_and_do_not_depend_on_company(judges):
    candidates = [GOLD, "SELECT name FROM city WHERE people < 1000", "SELECT oops FROM city"]
    task = {"id": 7, "gold": GOLD, "candidates": candidates, "context": DDL}
    first = judges["both"].question(task)
    with Judge() as judge:
        assert judge.question({**task, "candidates": candidates[::-1]})["verdicts"] == first["verdicts"][::-1]
    with Judge(seed=1) as judge:
        other = judge.question(task)
    assert other["gold"]["suite_hash"] != first["gold"]["suite_hash"]
    assert [v["verdict"] for v in other["verdicts"]] == [v["verdict"] for v in first["verdicts"]]


def test_identical_candidates_run_once(judges):
    runs = []
    judge = judges["generated"]
    run = judge.sandbox.run_jobs
    judge.sandbox.run_jobs = lambda jobs: runs.extend(job.statements for job in jobs) or run(jobs)
    try:
        judge.question({"id": 1, "gold": GOLD, "candidates": [GOLD], "context": DDL})
        runs.clear()
        judge.question({"id": 1, "gold": GOLD, "candidates": ["SELECT 1", " SELECT 1;", "SELECT 1"], "context": DDL})
    finally:
        judge.sandbox.run_jobs = run
    assert runs == [["SELECT 1"]]


def test_result_hash_names_the_rows(judges):
    candidates = [
        "SELECT name FROM city WHERE people > 1000",
        "SELECT c.name FROM city c WHERE 1000 < c.people",
        "SELECT name FROM city",
    ]
    line = judges["both"].question({"id": 1, "gold": GOLD, "candidates": candidates, "context": DDL})
    hashes = [verdict["trace"]["result_hash"] for verdict in line["verdicts"]]
    assert hashes[0] == hashes[1] != hashes[2]


def test_unanswerable_and_abstention(judges):
    line = judges["both"].question({"id": 1, "gold": None, "candidates": ["SELECT 1", None], "context": DDL})
    assert line["gold"]["status"] == "unanswerable"
    assert [verdict["verdict"] for verdict in line["verdicts"]] == ["wrong", "correct"]
    line = judges["both"].question({"id": 1, "gold": GOLD, "candidates": [None], "context": DDL})
    assert (line["verdicts"][0]["verdict"], line["verdicts"][0]["reason"]) == ("wrong", "abstained")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ([], "list"),
        ({"id": 1, "gold": "SELECT 1"}, "candidates"),
        ({"id": 1, "gold": 3, "candidates": []}, "gold"),
        ({"id": 1, "gold": "SELECT 1", "candidates": "SELECT 1"}, "candidates"),
        ({"id": 1, "gold": "SELECT 1", "candidates": []}, "neither"),
        ({"id": 1, "gold": "SELECT 1", "candidates": [], "database": "absent.sqlite"}, "absent.sqlite"),
    ],
)
def test_malformed_task(task, words):
    with pytest.raises(ValueError, match=words):
        checked_task(task)


def test_two_workers_give_the_same_lines_in_order(judges):
    tasks = [
        {"id": number, "gold": f"SELECT name FROM city WHERE people > {number}", "candidates": [GOLD], "context": DDL}
        for number in range(12)
    ]
    with Judge(workers=2) as judge:
        assert list(judge.stream(tasks)) == list(judges["both"].stream(tasks))


@pytest.mark.parametrize(
    ("declared", "digits", "expected"), [("REAL", 2, "wrong"), ("FLOAT", 1, "wrong"), ("DECIMAL(8, 2)", 2, "correct")]
)
def test_rounding_shows_where_a_column_may_hold_more_digits(judges, declared, digits, expected):
    ddl = f"CREATE TABLE item (name TEXT, price {declared})"
    candidates = [f"SELECT name, ROUND(price, {digits}) FROM item"]
    task = {"id": 1, "gold": "SELECT name, price FROM item", "candidates": candidates, "context": ddl}
    [verdict] = judges["both"].question(task)["verdicts"]
    assert verdict["verdict"] == expected


def test_command_reports_bad_lines_and_resumes(tmp_path, judges):
    tasks = [{"id": number, "gold": GOLD, "candidates": [GOLD, "SELECT 1"], "context": DDL} for number in range(3)]
    lines = [json.dumps(tasks[0]), "{broken", json.dumps(tasks[1]), json.dumps({"id": 9}), json.dumps(tasks[2])]
    source, target = tmp_path / "tasks.jsonl", tmp_path / "verdicts.jsonl"
    source.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "reward.judge", "--input", str(source), "--output", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert "line 2:" in result.stderr and "line 4:" in result.stderr
    whole = target.read_bytes()
    assert [json.loads(line) for line in whole.splitlines()] == [judges["both"].question(task) for task in tasks]
    target.write_bytes(whole[: len(whole) // 2])  # as a killed run leaves it
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "going on after" in result.stderr
    assert target.read_bytes() == whole
    result = subprocess.run([*command, "--seed", "5"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 2 and "other settings" in result.stderr and target.read_bytes() == whole


EVENTS = ("CREATE TABLE event (name TEXT, start_date {}, hired TEXT, founded DATE, code TEXT, update_count INTEGER, "
          "candidates TEXT, epoch INTEGER)")


@pytest.mark.parametrize("declared", ["DATE", "VARCHAR"])
@pytest.mark.parametrize(("gold", "right", "wrong"), [
    ("strftime('%Y', start_date) = '2016'",
     ["start_date LIKE '2016%'", "substr(start_date, 1, 4) = '2016'", "CAST(substr(start_date, 1, 4) AS INTEGER) = 2016",
      "start_date >= '2016-01-01' AND start_date < '2017-01-01'"],
     ["start_date LIKE '2017%'", "strftime('%Y', start_date) >= '2016'", "start_date = '2016'"]),
    ("start_date LIKE '2016%'", ["strftime('%Y', start_date) = '2016'"], ["start_date LIKE '2015%'", "start_date >= '2016'"]),
    ("start_date LIKE '2016-05%'", ["strftime('%Y-%m', start_date) = '2016-05'"], ["start_date LIKE '2016%'"]),
    ("start_date NOT LIKE '2016%'", ["strftime('%Y', start_date) <> '2016'"], ["start_date LIKE '2016%'"]),
    ("strftime('%m', start_date) = '05'", ["CAST(strftime('%m', start_date) AS INTEGER) = 5"], ["strftime('%d', start_date) = '05'"]),
    # A column that only gold's function tells to hold dates, and two whose values are no dates' parts.
    ("strftime('%Y', hired) = '2012'", ["hired LIKE '2012%'"], ["strftime('%Y', hired) = '2013'", "hired = '2012'"]),
    ("CAST(strftime('%Y', founded) AS INTEGER) BETWEEN 2000 AND 2005",
     ["founded >= '2000-01-01' AND founded < '2006-01-01'"], ["founded BETWEEN '2000' AND '2005'"]),
    ("founded = 2016", ["founded = '2016'"], ["founded > 2016"]),
    ("code LIKE '2016%'", ["substr(code, 1, 4) = '2016'"], ["code = '2016'", "code LIKE '%2016%'"]),
    ("strftime('%d', hired) = '31'", ["hired LIKE '%-31'"], ["strftime('%m', hired) = '31'"]),
    ("julianday(founded) - julianday(hired) > 30", ["julianday(founded) > julianday(hired) + 30"],
     ["julianday(founded) - julianday(hired) > 31", "julianday(founded) - julianday(hired) >= 30"]),
    # Names with "date" in them whose columns hold none, and what is no beginning of a date.
    ("ABS(update_count) = 7", ["update_count IN (7, -7)"], ["update_count = 8"]),
    ("candidates LIKE '2%'", ["substr(candidates, 1, 1) = '2'"], ["candidates LIKE '2016%'"]),
    ("candidates LIKE '2016'", ["candidates = '2016'"], ["candidates LIKE '2016%'"]),
    ("substr(candidates, -4) = '2016'", ["candidates LIKE '%2016'"], ["candidates LIKE '2016%'"]),
    ("strftime('%Y', epoch, 'unixepoch') = '1970'", ["epoch BETWEEN 0 AND 31535999"], ["epoch < 0"]),
])
def test_dates_are_whole_where_gold_asks_for_a_part_of_them(judges, declared, gold, right, wrong):
    query = "SELECT name FROM event WHERE {}".format
    task = {"id": "1", "gold": query(gold), "context": EVENTS.format(declared), "candidates": list(map(query, right + wrong))}
    verdicts = [verdict["verdict"] for verdict in judges["generated"].question(task)["verdicts"]]
    assert verdicts == ["correct"] * len(right) + ["wrong"] * len(wrong)


@pytest.mark.parametrize("column", ["joined", "dob", "created_at"])
def test_a_column_compared_with_a_date_holds_dates_whatever_it_is_called(judges, column):
    query = f"SELECT name FROM owner WHERE {column} {{}}".format
    date = f"SELECT name FROM owner WHERE date({column}) {{}}".format
    for gold, right, wrong in (
            ("> '2020-01-01'", [date("> '2020-01-01'")], [query(">= '2020-01-01'"), query("< '2020-01-01'"), date("> '2020-01-02'")]),
            ("BETWEEN '2019-05-01' AND '2019-05-31'", [query("LIKE '2019-05-%'"), date("BETWEEN '2019-05-01' AND '2019-05-31'")],
             [query("LIKE '2019-%'"), query("> '2019-05-01'")]),
            ("IN ('2020-01-01', '2021-03-04')", [date("IN ('2020-01-01', '2021-03-04')")], [query("= '2020-01-01'")]),
            ("> '2020-01-01 10:00:00'", [query("> '2020-01-01 10:00:00'").replace(column, f"datetime({column})", 1)],
             [query(">= '2020-01-01 10:00:00'"), query("> '2020-01-01'")]),
            # What else gold says the column holds, and texts that go on after a date.
            (f"= '2020-01-01' OR lower({column}) = 'n/a'", [query(f"= '2020-01-01' OR {column} LIKE 'n/a'")], [query("= '2020-01-01'")]),
            (f"< '2020-01-01' AND trim({column}) <> ''", [query(f"< '2020-01-01' AND NOT trim({column}) = ''")], [query("< '2020-01-01'")]),
            ("LIKE '2020-01-01%'", [query("LIKE '2020-01-01%' ")], [query("= '2020-01-01'")]),
            ("LIKE '2012-05-17-%'", [query("LIKE '2012-05-17-%' ")], [query("= '2012-05-17'")])):
        task = {"id": "1", "gold": query(gold), "context": f"CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, {column} TEXT)",
                "candidates": right + wrong}
        verdicts = [verdict["verdict"] for verdict in judges["generated"].question(task)["verdicts"]]
        assert verdicts == ["correct"] * len(right) + ["wrong"] * len(wrong), gold


@pytest.mark.parametrize(("context", "gold", "right", "wrong"), [
    ("CREATE TABLE log (name TEXT, joined TEXT)", "SELECT name, joined IN ('2020-01-01') FROM log", "SELECT name, date(joined) = '2020-01-01' FROM log",
     "SELECT name, joined >= '2020-01-01' FROM log"),
    ("CREATE TABLE log (name TEXT, joined TEXT)", "SELECT name, joined BETWEEN '2019-05-01' AND '2019-05-31' FROM log",
     "SELECT name, date(joined) BETWEEN '2019-05-01' AND '2019-05-31' FROM log", "SELECT name, joined > '2019-05-01' FROM log"),
    ("CREATE TABLE weather (day TEXT PRIMARY KEY, temp INT)", "SELECT temp FROM weather WHERE day > '2020-01-01'",
     "SELECT temp FROM weather WHERE date(day) >= '2020-01-02'", "SELECT temp FROM weather WHERE day > '2020-01-02'"),
    ("CREATE TABLE weather (day TEXT PRIMARY KEY, temp INT)", "SELECT temp FROM weather WHERE day BETWEEN '2019-05-01' AND '2019-05-31'",
     "SELECT temp FROM weather WHERE strftime('%Y-%m', day) = '2019-05'", "SELECT temp FROM weather WHERE day LIKE '2019%'")])
def test_dates_in_what_is_shown_and_in_keys(judges, context, gold, right, wrong):
    line = judges["generated"].question({"id": "1", "gold": gold, "context": context, "candidates": [right, wrong]})
    assert [verdict["verdict"] for verdict in line["verdicts"]] == ["correct", "wrong"]


def test_a_double_quoted_value_may_be_called_like_a_column_of_another_table(judges):
    task = {"id": "1", "gold": 'SELECT name FROM store WHERE status = "open"',
            "context": "CREATE TABLE store (id INT, name TEXT, status TEXT); CREATE TABLE hours (store_id INT, open INT, close INT)",
            "candidates": ["SELECT name FROM store WHERE status = 'open'", 'SELECT name FROM store WHERE status = "open"',
                           "SELECT name FROM store", 'SELECT name FROM store WHERE status = "close"']}
    line = judges["both"].question(task)
    assert line["gold"]["status"] == "ok"
    assert [verdict["verdict"] for verdict in line["verdicts"]] == ["correct", "correct", "wrong", "wrong"]


@pytest.mark.parametrize("odd", [
    "CREATE TABLE player (id INTEGER PRIMARY KEY, last TEXT); INSERT INTO player VALUES (1, 'Ng'), (2, CAST(x'41ed6e' AS TEXT))",
    "CREATE TABLE doc (id, body); INSERT INTO doc VALUES (1, printf('%.*c', 150001, 'x'))",
    "CREATE VIRTUAL TABLE notes USING fts5(body); INSERT INTO notes VALUES ('a note')"])
def test_one_odd_table_of_a_database_spoils_no_question_on_the_others(judges, tmp_path, odd):
    path = tmp_path / "city.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO city VALUES (1, 'Oslo'), (2, 'Bergen'); {odd}")
    task = {"id": "1", "gold": "SELECT name FROM city WHERE id = 1", "database": str(path),
            "candidates": ["SELECT name FROM city WHERE id < 2 AND id > 0", "SELECT name FROM city WHERE name = 'Oslo'"]}
    line = judges["both"].question(task)
    assert line["gold"]["status"] == "ok" and line["gold"]["kill_score"] == 1
    assert [verdict["verdict"] for verdict in line["verdicts"]] == ["correct", "wrong"], "right on the given rows alone: generated databases tell it apart"


@pytest.mark.parametrize("declared", ["INTEGER", "REAL"])
def test_numbers_named_dates_hold_dates_where_gold_calls_a_date_function_on_them(judges, declared):
    query = "SELECT COUNT(*) FROM orders WHERE {}".format
    wrong = ["city = 'Rome'", "strftime('%Y', order_date) = '2011' OR city = 'Rome'"]
    task = {"id": "1", "gold": query("strftime('%Y', order_date) = '2010' OR city = 'Rome'"),
            "context": f"CREATE TABLE orders (id INTEGER, order_date {declared}, city TEXT, amount REAL)",
            "candidates": [query("city = 'Rome' OR strftime('%Y', order_date) = '2010'"), *map(query, wrong)]}
    verdicts = [verdict["verdict"] for verdict in judges["generated"].question(task)["verdicts"]]
    assert verdicts == ["correct", "wrong", "wrong"]
