"""Random inputs through the judge: nothing raises or hangs, every verdict is a documented one, the harmless neighbour
in each batch stays correct, and the verdicts on rows agree with a naive oracle.

The oracle runs gold and candidate on plain, unguarded connections to the same databases and compares their rows as
bags of rounded cells; where gold is sorted by its first column, that column must come in the same order.
"""

import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from itertools import permutations
from pathlib import Path

import apsw
from tqdm import tqdm

from fuzz_inputs import KINDS, make_input, random_query
from reward.judge import Judge
from reward.suite import Suite

_BATCH = 250
_INPUTS = {False: 100_000, True: 5_000}
_ORACLE_STEPS = 200_000
# interfaces.md: every verdict with the reasons that it can have where gold is an answerable, trusted query.
VERDICTS = {
    "correct": {"equal"},
    "wrong": {
        *("columns", "rows", "duplicates", "order", "sql_error", "refused", "timeout", "memory", "rows_limit"),
        "abstained",
    },
    "unclear": {"near", "order", "column_order", "volatile", "gold_empty", "timeout", "worker"},
}
# Verdicts that rest on rows or on a failure that every connection shows.
_COMPARABLE = {"equal", "columns", "rows", "duplicates", "order", "sql_error", "near", "column_order"}


def measure(shared: Path, quick: bool) -> list[dict]:
    """Counts of what must not happen, over 100,000 inputs (5,000 when quick) made from seed 0."""
    counts = fuzz(_INPUTS[quick], seed=0)
    total = counts["inputs"]
    print({name: count for name, count in sorted(counts.items())}, file=sys.stderr)
    rows = []
    for name in ("exceptions", "undocumented verdicts", "harmless neighbour not correct", "oracle disagrees"):
        n = counts["compared with the oracle"] if name == "oracle disagrees" else total
        rows.append(
            {"measure": f"fuzz: {name}", "value": counts[name], "target": "0", "n": n, "holds": not counts[name]}
        )
    slowest = counts["slowest batch ms"] / 1000
    rows += [
        {
            "measure": f"fuzz: slowest batch of {_BATCH}, s",
            "value": slowest,
            "target": "<= 60",
            "n": counts["batches"],
            "holds": slowest <= 60,
        },
        {"measure": "fuzz: worker restarts", "value": counts["restarts"], "target": "none", "n": total, "holds": None},
    ]
    return rows


def fuzz(inputs: int, seed: int) -> Counter:
    """Judges batches of random inputs, each against its own random gold, and counts what happens."""
    counts: Counter = Counter()
    script = (Path(__file__).parents[1] / "reward/cases_database.sql").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, Judge(vm_step_budget=2_000_000, cpu_limit_s=2.0) as judge:
        path = str(Path(folder) / "fuzz.sqlite")
        connection = sqlite3.connect(path)
        connection.executescript(script)
        connection.close()
        batches = range((inputs + _BATCH - 1) // _BATCH)
        for number in tqdm(batches, desc="fuzz", file=sys.stderr, mininterval=2):
            rng = random.Random(f"{seed}/{number}")
            gold = _usable_gold(judge, path, rng)
            made = [make_input(KINDS[index % len(KINDS)], gold, rng) for index in range(_BATCH)]
            start = time.perf_counter()
            _one_batch(judge, path, gold, made, rng, counts)
            counts["slowest batch ms"] = max(counts["slowest batch ms"], round(1000 * (time.perf_counter() - start)))
            counts["batches"] += 1
        counts["restarts"] = judge.sandbox.restarts
    return counts


def _usable_gold(judge: Judge, path: str, rng: random.Random) -> str:
    """A random query that the judge trusts: not cut, and half of them sorted by the first column."""
    while True:
        gold = random_query(rng, top=False) + rng.choice(("", "", " ORDER BY 1", " ORDER BY 1 DESC"))
        suite = judge.suite(gold, path)
        if suite.status == "ok" and not suite.empty:
            return gold


def _one_batch(judge: Judge, path: str, gold: str, made: list[str], rng: random.Random, counts: Counter) -> None:
    place = rng.randrange(len(made))
    candidates = [*made[:place], gold, *made[place:]]
    try:
        line = judge.question({"id": 0, "gold": gold, "candidates": candidates, "database": path})
        json.dumps(line)
    except Exception as error:
        counts["exceptions"] += 1
        print("exception", repr(error), gold, file=sys.stderr)
        return
    suite = judge.suite(gold, path)
    oracle = _Oracle(suite)
    for index, (candidate, verdict) in enumerate(zip(candidates, line["verdicts"])):
        counts["inputs"] += index != place
        counts[f"{verdict['verdict']} {verdict['reason']}"] += 1
        if verdict["reason"] not in VERDICTS.get(verdict["verdict"], ()):
            counts["undocumented verdicts"] += 1
            print("undocumented", gold, repr(candidate), verdict, sep="\n  ", file=sys.stderr)
        if index == place and verdict["verdict"] != "correct":
            counts["harmless neighbour not correct"] += 1
            print("harmless", gold, verdict, sep="\n  ", file=sys.stderr)
        expected = oracle.verdict(candidate) if verdict["reason"] in _COMPARABLE else None
        if expected is not None:
            counts["compared with the oracle"] += 1
            if expected != verdict["verdict"]:
                counts["oracle disagrees"] += 1
                print("oracle", expected, gold, repr(candidate), verdict, sep="\n  ", file=sys.stderr)
    oracle.close()


class _Oracle:
    """Plain connections to a suite's databases, with gold's bag of rows on each."""

    def __init__(self, suite: Suite):
        self.members = []
        self.ordered = " ORDER BY 1" in suite.gold_sql
        for member in suite.members:
            database = member.database
            connection = apsw.Connection(":memory:" if database.path is None else database.path)
            for statement in database.ddl:
                connection.execute(statement)
            for table, width, rows in database.rows:
                name = table.replace('"', '""')
                marks = ", ".join("?" * width)
                connection.executemany(f'INSERT OR IGNORE INTO "{name}" VALUES ({marks})', rows)
            connection.execute("PRAGMA query_only = 1")
            connection.set_progress_handler(lambda: True, _ORACLE_STEPS)
            self.members.append((connection, database.tier, self._run(connection, suite.gold_sql)))

    def close(self) -> None:
        for connection, *_ in self.members:
            connection.close()

    def verdict(self, sql: str) -> str | None:
        """correct, wrong or unclear by bags of rows alone; None where this is not for the oracle to say."""
        words = sql.strip().upper()
        plain = words.startswith(("SELECT", "WITH", "VALUES")) and sql.isascii() and sql.isprintable()
        if not plain or '"' in sql or ";" in sql or "--" in sql or len(sql) > 1500 or "LIMIT" in words:
            return None
        verdict, orders = "correct", None
        for connection, tier, gold in self.members:
            found = self._run(connection, sql)
            if found == "stopped":
                return None
            if found == "error" or found[0] != gold[0]:
                return "wrong"
            if self._equal(found[1], gold[1]):
                continue
            verdict = "unclear"
            if tier != "near":
                # What the judge may call column_order: one order of the columns for all databases but near ones.
                orders = set(permutations(range(gold[0]))) if orders is None else orders
                turned = {order: [tuple(row[i] for i in order) for row in found[1]] for order in orders}
                orders = {order for order, rows in turned.items() if self._equal(rows, gold[1])}
                if not orders:
                    return "wrong"
        # An order that comes without ORDER BY is luck; the judge asks once more with the rows visited backwards.
        lucky = verdict == "correct" and self.ordered and "ORDER" not in words
        return None if lucky else verdict

    def _equal(self, found: list[tuple], gold: list[tuple]) -> bool:
        """Equal as bags, and in the first column as lists where gold is sorted by it."""
        sorted_alike = not self.ordered or [row[0] for row in found] == [row[0] for row in gold]
        return sorted_alike and Counter(found) == Counter(gold)

    @staticmethod
    def _run(connection: apsw.Connection, sql: str) -> tuple[int, list[tuple]] | str:
        columns: list = []
        cursor = connection.cursor()
        cursor.exec_trace = lambda cursor, *_: columns.append(len(cursor.get_description())) or True
        try:
            rows = cursor.execute(sql).fetchall()
        except apsw.InterruptError:
            return "stopped"
        except apsw.Error:
            return "error"
        return columns[0], [tuple(_rounded(cell) for cell in row) for row in rows]


def _rounded(cell: object) -> object:
    return float(f"{cell:.8g}") if isinstance(cell, float) else cell
