"""How well a suite of databases tells gold from nearly right queries, and what making one costs.

Three samples, drawn by `random.Random(SEED)`: rows of sql-create-context (dev and train together), those of them with a
join, grouping, set operation or nested query, and Spider's golds, once on their schema alone and once on their file.
Each gold's mutants (all, not only those that chose the databases) run on its suite; what survives there runs on 35
more generated databases. Told apart by any of them all: killable. Time is CPU time of both processes.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from reward.compare import compare
from reward.databases import VARIANTS, make_database
from reward.denote import Member, denote, is_stable
from reward.equivalence import provably_equal
from reward.judge import Judge
from reward.queries import query_kinds
from reward.sandbox import Database, DatabaseError, Outcome
from reward.schema import Schema, read_schema
from reward.selection import Selection
from reward.suite import Suite
from reward.ties import read_ordering

SEED = 4  # other questions than those whose survivors were looked at while this was made
SAMPLE = 300
OTHER_DATABASES = 35
KEEP_ROWS = 3000
SAMPLES = 40  # values of each column of a file, as the suite reads them
COMPLEX = {"join", "group", "having", "set", "nested"}
ALL_MUTANTS = 1000


def measure(shared: Path, quick: bool) -> list[dict]:
    """The shares told apart, by sample, and the cost of a suite."""
    size = 40 if quick else SAMPLE
    found = []
    # sample, part of killable, part of all that run and are not provably equal
    for name, of_killable, of_all in (
        ("random", 0.995, 0.97),
        ("complex", 0.995, 0.95),
        ("spider schema", 0.995, 0.97),
        ("spider file", 0.995, None),
    ):
        tally = _tally(name, _questions(shared, name, size))
        found += _lines(name, tally, of_killable, of_all)
    return found


def _questions(shared: Path, name: str, size: int) -> list[dict]:
    rng = random.Random(SEED)
    if name.startswith("spider"):
        rows = _read(shared / "data/spider/train.jsonl")
        rng.shuffle(rows)
        folder = shared / "data/spider/database"
        return [
            {"gold": row["query"], "database": str(folder / f"{row['db_id']}.sqlite"), "file": name == "spider file"}
            for row in rows[:size]
        ]
    folder = shared / "data/sql_create_context"
    rows = _read(folder / "dev.jsonl") + _read(folder / "train.jsonl")
    rng.shuffle(rows)
    chosen = (row for row in rows if name == "random" or COMPLEX & set(query_kinds(row["answer"])))
    return [{"gold": row["answer"], "context": row["context"]} for row, _ in zip(chosen, range(size))]


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Tally:
    """What one sample came to: counts by kind of mutant, CPU seconds a suite, survivors to look at."""

    def __init__(self) -> None:
        self.ran, self.told, self.killable, self.equal = Counter(), Counter(), Counter(), Counter()
        self.refuted: list[tuple[str, str]] = []
        self.survivors: list[dict] = []
        self.seconds: list[float] = []
        self.single_table: list[float] = []
        self.gold_bad: Counter = Counter()


def _tally(name: str, questions: list[dict]) -> Tally:
    tally = Tally()
    with Judge() as judge:
        for question in tqdm(questions, desc=name, file=sys.stderr):
            _weigh(judge, question, tally)
    return tally


def _weigh(judge: Judge, question: dict, tally: Tally) -> None:
    """Adds one question. Gold that is bad has no suite; its mutants do not count."""
    context, path = question.get("context"), question.get("database")
    ddl = () if path else (context,)
    given = Database(f"described-{path or context}", "described", "given", path, ddl)
    try:
        description = judge.sandbox.describe(given, SAMPLES if question.get("file") else 0)
    except DatabaseError:
        tally.gold_bad["schema"] += 1
        return
    if path and not question["file"]:
        context, path = ";\n".join(description[0]), None
    begin = _cpu_seconds(judge)
    suite = judge.suite(question["gold"], path, context)
    seconds = _cpu_seconds(judge) - begin
    if suite.status != "ok":
        tally.gold_bad[suite.reason] += 1
        return
    tally.seconds.append(seconds)
    if not COMPLEX & set(query_kinds(suite.gold_sql)):
        tally.single_table.append(seconds)
    question = _Question(judge, suite, read_schema(description))
    told, others, ran = question.run_all()
    equal = question.proven()
    tally.refuted += [(suite.gold_sql, question.mutants[index].sql) for index in sorted(equal & (told | others))]
    for index in sorted(ran):
        kind = question.mutants[index].kind
        if index in equal:
            tally.equal[kind] += 1
            continue
        tally.ran[kind] += 1
        tally.told[kind] += index in told
        tally.killable[kind] += index in told | others
        if index not in told:
            rows = [member.denotation.row_count for member in suite.members]
            found = {"kind": kind, "killable": index in others, "gold": suite.gold_sql, "gold_rows": rows}
            ddl = list(suite.members[-1].database.ddl)
            tally.survivors.append({**found, "mutant": question.mutants[index].sql, "ddl": ddl})


class _Question:
    """All mutants of one gold and the databases that may tell them apart."""

    def __init__(self, judge: Judge, suite: Suite, schema: Schema):
        self.judge = judge
        self.suite = suite
        self.ordering = read_ordering(suite.gold_sql)
        # Reads gold's conditions and its schema as the suite's own databases were made from them.
        self.made = Selection(judge.sandbox, suite.gold_sql, self.ordering, schema, "", ALL_MUTANTS)
        self.mutants = self.made.mutants
        self.ran: set[int] = set()

    def proven(self) -> set[int]:
        texts = [mutant.sql for mutant in self.mutants]
        proofs = provably_equal(self.suite.gold_sql, texts, self.made.schema)
        return {index for index, proven in enumerate(proofs) if proven}

    def run_all(self) -> tuple[set[int], set[int], set[int]]:
        """Indices of the mutants that the suite tells apart, that only other databases do, and that run at all."""
        everything = set(range(len(self.mutants)))
        told: set[int] = set()
        for member in self.suite.members:
            told |= self.told_apart(member, everything - told)
        others: set[int] = set()
        for number in range(OTHER_DATABASES):
            left = self.ran - told - others
            if left and (member := self.other_database(number)) is not None:
                others |= self.told_apart(member, left)
        return told, others, self.ran

    def other_database(self, number: int) -> Member | None:
        tier, gold = ("tidy", "near")[number % 2], self.suite.gold_sql
        variant = VARIANTS[number // 2 % len(VARIANTS)] if tier == "near" else "plain"
        try:
            database = make_database(
                self.made.schema, self.made.reading, tier, f"other/{gold}/{number}", number % 4 < 2, variant
            )
            denotation, _ = denote(self.judge.sandbox, database, gold, self.ordering, [], KEEP_ROWS)
        except DatabaseError:
            return None
        if isinstance(denotation, Outcome) or denotation.row_count >= KEEP_ROWS:
            return None
        member = Member(database, denotation)
        return member if is_stable(self.judge.sandbox, member, gold) else None

    def told_apart(self, member: Member, indices: set[int]) -> set[int]:
        ordered = sorted(indices)
        keep_rows = max(KEEP_ROWS, member.denotation.row_count + 1)
        outcomes = self.judge.sandbox.run(member.database, [self.mutants[index].sql for index in ordered], keep_rows)
        told = set()
        for index, outcome in zip(ordered, outcomes):
            if outcome.status == "ok":
                self.ran.add(index)
                whole = len(outcome.rows) == outcome.row_count
                if not whole or compare(member.denotation, len(outcome.columns), outcome.rows) is not None:
                    told.add(index)
        return told


def _cpu_seconds(judge: Judge) -> float:
    fields = Path(f"/proc/{judge.sandbox.process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _lines(name: str, tally: Tally, of_killable: float, of_all: float | None) -> list[dict]:
    ran, told, killable, equal = (
        sum(counter.values()) for counter in (tally.ran, tally.told, tally.killable, tally.equal)
    )
    by_kind = {
        kind: f"{tally.told[kind]}/{tally.killable[kind]}/{tally.ran[kind]}+{tally.equal[kind]}"
        for kind in sorted(tally.ran, key=lambda kind: tally.told[kind] / tally.ran[kind])
    }
    suites = len(tally.seconds)
    share, of_those = told / max(1, ran), told / max(1, killable)
    holds = share >= of_all if of_all else None
    mean_ms = 1000 * sum(tally.seconds) / max(1, suites)
    lines = [
        _line(f"{name}: told apart, of killable", of_those, f">= {of_killable}", killable, of_those >= of_killable),
        _line(f"{name}: told apart, of not provably equal", share, f">= {of_all}" if of_all else "-", ran, holds),
        _line(f"{name}: provably equal", equal, "-", ran + equal),
        _line(f"{name}: proofs refuted by a database", len(tally.refuted), "0", equal, not tally.refuted),
        _line(f"{name}: CPU ms a suite", mean_ms, "<= 60", suites, mean_ms <= 60),
        _line(f"{name}: told apart/killable/ran+equal by kind", json.dumps(by_kind), "-", ran),
        _line(f"{name}: gold_bad by reason", json.dumps(tally.gold_bad), "-", suites + sum(tally.gold_bad.values())),
    ]
    if tally.single_table:
        mean_ms = 1000 * sum(tally.single_table) / len(tally.single_table)
        lines.append(_line(f"{name}: CPU ms a suite of one table", mean_ms, "-", len(tally.single_table)))
    return lines


def _line(measure: str, value: float | str, target: str, n: int, holds: bool | None = None) -> dict:
    value = round(value, 4) if isinstance(value, float) else value
    return {"measure": f"mutants, {measure}", "value": value, "target": target, "n": n, "holds": holds}
