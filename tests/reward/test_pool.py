"""Questions over processes: order, places, deaths. The work is done by functions of this file instead of a judge."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward.answering import Each, Lost, answer_here
from reward.judge import Judge
from reward.pool import Pool

DDL = "CREATE TABLE city (name VARCHAR, people INTEGER)"


def named(judge, question):
    """The question's number and the process that answers it."""
    return question["id"], os.getpid()


def dies(judge, question):
    if question["id"] == question.get("deadly", 5):
        os.kill(os.getpid(), signal.SIGKILL)
    return question["id"]


def dies_once(judge, question):
    mark = Path(question["mark"])
    if question["id"] == 3 and not mark.exists():
        mark.touch()
        os._exit(7)
    return question["id"]


def raises(judge, question):
    if question["id"] == 2:
        raise KeyError("mistake")
    if question["id"] == 3:
        return raises(judge, question)
    return question["id"]


def does_not_start(judge, question):
    raise RuntimeError("the SQL worker does not start")


def where(judge, question):
    return os.getcwd()


def large(judge, question):
    return "x" * 3_000_000


@pytest.fixture(scope="module")
def pool():
    found = Pool({}, 2)
    yield found
    found.close()


def questions(count, **more):
    return [{"id": number, "database": f"{number}.sqlite", **more} for number in range(count)]


def answers(pool, work, asked):
    return [answer for _, answer in pool.answer(Each(work), asked, dict)]


def test_answers_come_with_their_questions_in_order_from_both_processes(pool):
    asked = questions(300)
    found = list(pool.answer(Each(named), iter(asked), dict))
    assert [question for question, _ in found] == asked
    assert [answer[0] for _, answer in found] == list(range(300))
    assert len({answer[1] for _, answer in found}) == 2


def test_no_question_no_answer(pool):
    assert answers(pool, named, []) == []


def slow(judge, question):
    time.sleep(0.003)
    return question["database"], os.getpid()


def test_questions_on_one_database_go_to_one_process_while_both_have_work(pool):
    asked = [{"id": number, "database": "ab"[number % 2]} for number in range(400)]
    found = answers(pool, slow, asked)
    kept = 0
    for name in "ab":
        processes = [process for database, process in found if database == name]
        kept += max(processes.count(process) for process in set(processes))
    assert kept > 0.8 * len(asked)
    assert len({process for _, process in found}) == 2


def test_a_question_that_ends_its_process_costs_only_itself(pool):
    found = answers(pool, dies, questions(40))
    assert isinstance(found[5], Lost) and "SIGKILL" in found[5].detail and "judge it alone" in found[5].detail
    assert [answer for answer in found if not isinstance(answer, Lost)] == [*range(5), *range(6, 40)]


def test_a_process_that_dies_once_costs_nothing(pool, tmp_path):
    assert answers(pool, dies_once, questions(20, mark=str(tmp_path / "died"))) == list(range(20))
    assert (tmp_path / "died").exists()


def test_a_mistake_of_ours_costs_one_question_in_here_and_over_there(pool):
    asked = questions(6)
    here = answer_here(Each(raises), None, asked)
    assert answers(pool, raises, asked) == here
    assert here[2] == Lost("KeyError: 'mistake'") and here[3].detail.startswith("RecursionError")
    assert here[4:] == [4, 5]


def test_what_would_fail_for_every_question_ends_the_call_and_not_the_pool(pool):
    with pytest.raises(RuntimeError, match="does not start"):
        answers(pool, does_not_start, questions(20))
    assert answers(pool, dies, questions(4)) == list(range(4))


def test_processes_that_do_not_start_are_told_of():
    broken = Pool({"no such argument": 1}, 2)
    with pytest.raises(RuntimeError, match="does not start"):
        answers(broken, named, questions(3))
    broken.close()


def test_relative_paths_mean_the_same_over_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fresh = Pool({}, 1)
    assert answers(fresh, where, questions(1)) == [str(tmp_path)]
    fresh.close()


def test_large_questions_and_answers_do_not_block_each_other(pool):
    asked = [{"id": number, "text": "y" * 3_000_000} for number in range(12)]
    assert {len(answer) for answer in answers(pool, large, asked)} == {3_000_000}


def test_questions_are_read_only_a_little_ahead(pool):
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield {"id": len(read)}

    lines = pool.answer(Each(named), endless(), dict)
    for _ in range(50):
        next(lines)
    lines.close()  # ends the processes that are at work on what nobody wants
    assert len(read) < 50 + 2 * 96 + 2
    assert answers(pool, dies, questions(3)) == [0, 1, 2]


def test_two_streams_read_in_turns_keep_their_answers(pool):
    first = pool.answer(Each(dies), iter(questions(200, deadly=-1)), dict)
    second = pool.answer(Each(where), iter(questions(200)), dict)
    for number, ((_, one), (_, other)) in enumerate(zip(first, second, strict=True)):
        assert (one, other) == (number, os.getcwd())


def test_an_error_of_the_questions_reaches_the_caller(pool):
    def failing():
        yield {"id": 1}
        raise ValueError("the second is malformed")

    with pytest.raises(ValueError, match="second"):
        answers(pool, named, failing())


def test_lost_questions_have_a_line_that_rejects_nobody(monkeypatch):
    monkeypatch.setattr(Judge, "suite", lambda *_: {}["mistake"])
    task = {"id": 1, "gold": "SELECT 1", "candidates": ["SELECT 1", None], "context": DDL}
    with Judge() as judge:
        [line] = judge.stream(iter([task]))
    assert (line["id"], line["gold"]["status"], line["gold"]["reason"]) == (1, "gold_bad", "worker")
    assert [(verdict["verdict"], verdict["reason"]) for verdict in line["verdicts"]] == [("gold_bad", "worker")] * 2


def test_a_judge_keeps_its_processes_from_stream_to_stream():
    tasks = [{"id": i, "gold": "SELECT name FROM city", "candidates": [], "context": DDL} for i in range(4)]
    with Judge(workers=2, mutants=0) as judge:
        first = list(judge.stream(tasks))
        processes = [child.process.pid for child in judge._pool._children if child.process]
        assert list(judge.stream(task for task in tasks)) == first
        assert [child.process.pid for child in judge._pool._children if child.process][: len(processes)] == processes
    assert judge._pool is None


def test_processes_end_with_whoever_asks():
    script = (
        "import time\n"
        "from reward.answering import Each\n"
        "from reward.pool import Pool\n"
        "from tests.reward.test_pool import named\n"
        "lines = Pool({}, 1).answer(Each(named), ({'id': i} for i in range(10**9)), dict)\n"
        "print(next(lines)[1][1], flush=True)\n"
        "time.sleep(60)\n"
    )
    project = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=project, env=environment)
    child = int(asking.stdout.readline())
    asking.kill()
    asking.wait()
    asking.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the process outlives the one that started it"
        time.sleep(0.02)
