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
from reward.databases import make_database
from reward.denote import Member, denote, is_stable
from reward.equivalence import provably_equal
from reward.judge import Judge
from reward.queries import query_kinds
from reward.sandbox import Database, DatabaseError, Outcome
from reward.schema import read_schema
from reward.selection import Selection
from reward.ties import read_ordering

SEED = 3
SAMPLE = 300
OTHER_DATABASES = 35
KEEP_ROWS = 3000
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
    """What one sample came to: counts by kind of mutant, seconds a suite, survivors to look at."""

    def __init__(self) -> None:
        self.ran, self.told, self.killable, self.equal = Counter(), Counter(), Counter(), Counter()
        self.refuted: list[tuple] = []
        self.survivors: list[dict] = []
        self.seconds: list[float] = []
        self.single_table: list[float] = []
        self.gold_bad = Counter()


def _tally(name: str, questions: list[dict]) -> Tally:
    tally = Tally()
    with Judge() as judge:
        for number, question in enumerate(tqdm(questions, desc=name, file=sys.stderr)):
            _weigh(judge, question, tally)
    return tally


def _weigh(judge: Judge, question: dict, tally: Tally) -> None:
    context, path = question.get("context"), question.get("database")
    if path and not question["file"]:
        ddl, _ = judge.sandbox.describe(Database(f"ddl-{path}", "file", "given", path))
        context, path = ";\n".join(ddl), None
    judge.sandbox.run(Database("warm", "warm", "tidy", None, ("CREATE TABLE t (a)",)), ["SELECT 1"], 1)
    if path:
        judge._builder._file(path)  # its description is made once a file, not once a question
    begin = _cpu_seconds(judge)
    suite = judge.suite(question["gold"], path, context)
    seconds = _cpu_seconds(judge) - begin
    if suite.status != "ok":
        tally.gold_bad[suite.reason] += 1
        return
    tally.seconds.append(seconds)
    if not COMPLEX & set(query_kinds(suite.gold_sql)):
        tally.single_table.append(seconds)
    given = Database("schema-of-question", "schema", "schema", None, (context,)) if path is None else suite.members[0].database
    schema = read_schema(judge.sandbox.describe(given._replace(key=f"measured-{len(tally.seconds)}-{path or context}"), 40 if path else 0))
    ordering = read_ordering(suite.gold_sql)
    selection = Selection(judge.sandbox, suite.gold_sql, ordering, schema, "measured", ALL_MUTANTS)
    mutants = selection.mutants
    left, ran, told = set(range(len(mutants))), set(), set()
    for member in suite.members:
        told |= _run(judge, member, mutants, left - told, ran)
    proofs = provably_equal(suite.gold_sql, [mutant.sql for mutant in mutants], selection.schema)
    equal = {index for index, proven in enumerate(proofs) if proven}
    tally.refuted += [(suite.gold_sql, mutants[i].sql) for i in sorted(equal & told)]
    others = set()
    for number in range(OTHER_DATABASES) if left & ran - told else ():
        tier = ("tidy", "near")[number % 2]
        try:
            database = make_database(selection.schema, selection.reading, tier, f"measured/{suite.gold_sql}/{number}", number % 4 < 2)
            denotation, _ = denote(judge.sandbox, database, suite.gold_sql, ordering, [], KEEP_ROWS)
        except DatabaseError:
            continue
        member = Member(database, denotation)
        if not isinstance(denotation, Outcome) and denotation.row_count < KEEP_ROWS and is_stable(judge.sandbox, member, suite.gold_sql):
            others |= _run(judge, member, mutants, (left & ran) - told - others, ran)
    tally.refuted += [(suite.gold_sql, mutants[i].sql) for i in sorted(equal & others)]
    for index in sorted(ran):
        kind = mutants[index].kind
        if index in equal:
            tally.equal[kind] += 1
            continue
        tally.ran[kind] += 1
        tally.told[kind] += index in told
        tally.killable[kind] += index in told | others
        if index not in told:
            tally.survivors.append(
                {"kind": kind, "killable": index in others, "gold": suite.gold_sql, "mutant": mutants[index].sql, "ddl": list(selection.schema.ddl), "databases": [m.database.name for m in suite.members], "empty": [m.denotation.row_count for m in suite.members]}
            )


def _run(judge: Judge, member: Member, mutants: list, indices: set[int], ran: set[int]) -> set[int]:
    ordered = sorted(indices)
    keep_rows = max(KEEP_ROWS, member.denotation.row_count + 1)
    outcomes = judge.sandbox.run(member.database, [mutants[i].sql for i in ordered], keep_rows)
    told = set()
    for index, outcome in zip(ordered, outcomes):
        if outcome.status == "ok":
            ran.add(index)
            whole = len(outcome.rows) == outcome.row_count
            if not whole or compare(member.denotation, len(outcome.columns), outcome.rows) is not None:
                told.add(index)
    return told


def _cpu_seconds(judge: Judge) -> float:
    fields = Path(f"/proc/{judge.sandbox.process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _lines(name: str, tally: Tally, of_killable: float, of_all: float | None) -> list[dict]:
    ran, told, killable = (sum(counter.values()) for counter in (tally.ran, tally.told, tally.killable))
    by_kind = {
        kind: f"{tally.told[kind]}/{tally.killable[kind]}/{tally.ran[kind]}+{tally.equal[kind]}"
        for kind in sorted(tally.ran, key=lambda kind: tally.told[kind] / tally.ran[kind])
    }
    milliseconds = 1000 * sum(tally.seconds) / max(1, len(tally.seconds))
    lines = [
        _line(f"mutants, {name}: told apart, of killable", told / max(1, killable), f">= {of_killable}", killable, told >= of_killable * killable),
        _line(f"mutants, {name}: told apart, of those that run and are not provably equal", told / max(1, ran), f">= {of_all}" if of_all else "-", ran, told >= of_all * ran if of_all else None),
        _line(f"mutants, {name}: provably equal", sum(tally.equal.values()), "-", ran + sum(tally.equal.values()), None),
        _line(f"mutants, {name}: proofs refuted", len(tally.refuted), "0", sum(tally.equal.values()), not tally.refuted),
        _line(f"suite, {name}: CPU ms a question", milliseconds, "<= 60", len(tally.seconds), milliseconds <= 60),
        _line(f"mutants, {name}: told apart/killable/ran+equal by kind", json.dumps(by_kind), "-", ran, None),
        _line(f"mutants, {name}: gold_bad by reason", json.dumps(tally.gold_bad), "-", len(tally.seconds) + sum(tally.gold_bad.values()), None),
    ]
    if tally.single_table:
        mean = 1000 * sum(tally.single_table) / len(tally.single_table)
        lines.append(_line(f"suite, {name}: CPU ms a question of one table", mean, "-", len(tally.single_table), None))
    return lines


def _line(measure: str, value: float | str, target: str, n: int, holds: bool | None) -> dict:
    return {"measure": measure, "value": round(value, 4) if isinstance(value, float) else value, "target": target, "n": n, "holds": holds}
