"""Checks a second against raw `sqlite3`: one cached connection for each Spider database, the same texts, fetchall.

Ours is the judge with `databases="given"`: gate, sandbox with every guard, comparison, verdict and trace of each
text. Suites are built, connections open and caches warm before the clock starts on either side; the two sides take
turns. No verdict is remembered: each text is executed each time.
"""

import itertools
import json
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from reward.judge import Judge
from reward.mutants import make_mutants
from reward.sandbox import Database, Sandbox
from reward.schema import read_schema

BATCH = 32
_SUITES = 240  # the judge holds so many at once


def measure(shared: Path, quick: bool) -> list[dict]:
    golds = _golds(shared / "data/spider", 12 if quick else None)
    repetitions = 3
    few = {path: texts[: 4 if quick else 10] for path, texts in golds.items()}
    print(f"{sum(map(len, golds.values()))} distinct golds on {len(golds)} databases", file=sys.stderr)
    shapes: tuple[tuple[str, dict, Callable], ...] = (
        ("every gold in 8 forms", golds, _eight_forms),
        ("gold in 32 forms", few, _forms),
        ("gold alone", golds, _alone),
        ("32 golds of the database, most of them wrong", few, _neighbours),
        ("16 forms of gold and up to 16 mutants", few, _with_mutants),
    )
    rows = []
    with Judge(databases="given") as judge:
        for place, (name, texts, make_tasks) in enumerate(shapes):
            checks, wall, cpu, rate = _against_raw(judge, texts, make_tasks, repetitions)
            for what, ratios in (("seconds", wall), ("CPU time of both processes", cpu)):
                ratio = statistics.median(ratios)
                label = f"{name}: times raw in {what} ({min(ratios):.2f} to {max(ratios):.2f}; {rate:,.0f} a second)"
                target, holds = ("at least 1.0", ratio >= 1.0) if place == 0 and what == "seconds" else ("", None)
                rows.append({"measure": label, "value": ratio, "target": target, "n": checks, "holds": holds})
    rows.append(_two_workers(few, 3 if quick else 5))
    return rows


def _golds(spider: Path, databases: int | None) -> dict[str, list[str]]:
    """Distinct golds that run on raw SQLite, by database file."""
    found: dict[str, dict[str, None]] = {}
    for line in (spider / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(str(spider / "database" / f"{row['db_id']}.sqlite"), {})[row["query"]] = None
    golds = {}
    for path in sorted(found)[:databases]:
        connection = _raw(path)
        golds[path] = [sql for sql in found[path] if _runs(connection, sql)]
        connection.close()
    return golds


def _raw(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def _runs(connection: sqlite3.Connection, sql: str) -> bool:
    deadline = time.perf_counter() + 1.0
    connection.set_progress_handler(lambda: time.perf_counter() > deadline, 10_000)
    try:
        connection.execute(sql).fetchall()
    except sqlite3.Error:
        return False
    finally:
        connection.set_progress_handler(None, 0)
    return True


def _form(sql: str, number: int) -> str:
    """The same query with `number` more spaces after its first word: another text for the judge and for SQLite."""
    words = sql.strip().split(" ", 1)
    return (" " * (number + 1)).join(words)


def _task(path: str, gold: str, candidates: list[str]) -> dict:
    return {"id": gold[:40], "gold": gold, "candidates": candidates, "database": path}


def _forms(path: str, golds: list[str]) -> list[dict]:
    return [_task(path, gold, [_form(gold, number) for number in range(BATCH)]) for gold in golds]


def _eight_forms(path: str, golds: list[str]) -> list[dict]:
    return [_task(path, gold, [_form(gold, number) for number in range(8)]) for gold in golds]


def _alone(path: str, golds: list[str]) -> list[dict]:
    return [_task(path, gold, [gold]) for gold in golds]


def _neighbours(path: str, golds: list[str]) -> list[dict]:
    """Each gold with forms of all golds in turn, 32 texts."""
    tasks = []
    for index, gold in enumerate(golds):
        turns = [divmod(index + step, len(golds)) for step in range(BATCH)]
        tasks.append(_task(path, gold, [_form(golds[place], turn) for turn, place in turns]))
    return tasks


def _with_mutants(path: str, golds: list[str]) -> list[dict]:
    with Sandbox() as sandbox:
        schema = read_schema(sandbox.describe(Database(path, "given", "given", path), 10))
    connection = _raw(path)
    tasks = []
    for gold in golds:
        mutants = [mutant.sql for mutant in make_mutants(gold, schema, BATCH // 2) if _runs(connection, mutant.sql)]
        tasks.append(_task(path, gold, [_form(gold, number) for number in range(BATCH // 2)] + mutants))
    connection.close()
    return tasks


def _against_raw(
    judge: Judge, golds: dict[str, list[str]], make_tasks: Callable, repetitions: int
) -> tuple[int, list[float], list[float], float]:
    """Texts; for each repetition raw seconds / our seconds, and the same in CPU time; our texts a second.

    The databases are taken four at a time: all repetitions of both sides, in turn, then the next four.
    """
    wall_s = [[0.0] * repetitions, [0.0] * repetitions]
    cpu_s = [[0.0] * repetitions, [0.0] * repetitions]
    checks = 0
    paths = list(golds)
    while paths:
        group, paths = paths[:4], paths[4:]
        made = [task for path in group for task in make_tasks(path, golds[path])]
        tasks = [task for task in made if judge.suite(task["gold"], task["database"]).status == "ok"][:_SUITES]
        checks += sum(len(task["candidates"]) for task in tasks)
        connections = {path: _raw(path) for path in group}
        for repetition in range(-1, repetitions):  # the first one warms both
            for side in (0, 1) if repetition % 2 else (1, 0):
                started, cpu_started = time.perf_counter(), _cpu_s(judge)
                if side == 0:
                    for task in tasks:
                        connection = connections[task["database"]]
                        for sql in task["candidates"]:
                            connection.execute(sql).fetchall()
                else:
                    for _ in judge.stream(tasks):
                        pass
                if repetition >= 0:
                    wall_s[side][repetition] += time.perf_counter() - started
                    cpu_s[side][repetition] += _cpu_s(judge) - cpu_started
        for connection in connections.values():
            connection.close()
    print(f"  raw {checks / min(wall_s[0]):,.0f}, ours {checks / min(wall_s[1]):,.0f} a second", file=sys.stderr)
    wall, cpu = ([raw / ours for raw, ours in zip(*seconds)] for seconds in (wall_s, cpu_s))
    return checks, wall, cpu, checks / statistics.median(wall_s[1])


def _cpu_s(judge: Judge) -> float:
    """CPU time of this process and of the judge's worker."""
    worker_ns = int(Path(f"/proc/{judge.sandbox.process.pid}/schedstat").read_text().split()[0])
    return time.process_time() + worker_ns / 1e9


def _two_workers(golds: dict[str, list[str]], repetitions: int) -> dict:
    """Two worker processes against one, on the same stream of questions; the clock runs between two answers, with
    questions waiting at both moments, when the processes have long been at work.
    """
    tasks = [task for path, texts in golds.items() for task in _forms(path, texts[:1])][:60]
    warm, timed, tail = 600, 1200, 400  # the tail is longer than what two processes read ahead
    ratios = []
    for _ in range(repetitions):
        seconds = []
        for workers in (1, 2):
            with Judge(databases="given", workers=workers) as judge:
                lines = judge.stream(itertools.islice(itertools.cycle(tasks), warm + timed + tail))
                next(itertools.islice(lines, warm - 1, None))
                started = time.perf_counter()
                next(itertools.islice(lines, timed - 1, None))
                seconds.append(time.perf_counter() - started)
                lines.close()
        ratios.append(seconds[0] / seconds[1])
        print(f"  one worker {seconds[0]:.2f} s, two {seconds[1]:.2f} s", file=sys.stderr)
    ratio = statistics.median(ratios)
    name = f"two workers: times one ({min(ratios):.2f} to {max(ratios):.2f})"
    return {"measure": name, "value": ratio, "target": "at least 1.7", "n": timed * BATCH, "holds": ratio >= 1.7}
