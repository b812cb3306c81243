r"""Judges SQL candidates against gold by running both: correct, wrong or unclear, each with a reason and a small trace.

    python -m reward.judge --input tasks.jsonl --output verdicts.jsonl \
        [--databases given|generated|both] [--workers N] [--seed S]
"""

import sys

if __name__ == "__main__":  # before the imports below, which take a third of a second: --help is to be instant
    from reward.command import main_judge

    sys.exit(main_judge())

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from reward.cache import SuiteCache
from reward.compare import column_orders, compare
from reward.connection import fingerprint
from reward.gate import MAX_SQL_CHARACTERS, gate
from reward.pool import Lost, Pool, answer_here
from reward.progress import with_progress
from reward.queries import is_volatile, quoted_value_as_string, unknown_quoted_name
from reward.sandbox import DatabaseError, Job, Outcome, Sandbox
from reward.suite import Member, Suite, SuiteBuilder
from reward.trace import first_differences, result_digest

DATABASES = ("both", "given", "generated")
_CACHED_SUITES = 256
_MAX_QUOTED_NAMES = 20
_REMEMBERED_MEMBERS = 4096
_REMEMBERED_ANSWERS = 8


@dataclass(slots=True)
class _Candidate:
    """One distinct candidate text on its way through the databases."""

    sql: str
    volatile: bool
    verdict: dict | None = None
    suspicion: dict | None = None
    orders: set[tuple[int, ...]] | None = None
    digests: list[bytes] = field(default_factory=list)
    row_counts: list[int] = field(default_factory=list)


class Judge:
    """Judges the candidates of questions; use it as a context manager, because it holds a worker process.

    databases: `both` judges a question with a database file on it and on generated neighbours, `given` on the file
    alone, `generated` never on it; a question with only CREATE TABLE text is always judged on generated ones. `tidy`
    and `near` are their numbers, `attempts` how many are tried for each. Those are kept that tell most of up to
    `mutants` edits of gold apart; gold of whose edits a smaller share than `min_kill_score` (0 to 1) is told apart is
    `gold_bad`. Limits: a statement over vm_step_budget steps of SQLite's virtual machine, over heap_limit_mib, or
    with more than row_limit rows or byte_limit_mib of cells is `wrong`; cpu_limit_s and wall_limit_s only end a
    worker that hangs inside one function, which makes `unclear`. Verdicts follow from (task, seed, limits) alone.
    `cache`: a folder where suites are kept from run to run (`reward.cache`), None for none.
    """

    def __init__(
        self,
        *,
        databases: str = "both",
        workers: int = 1,
        seed: int = 0,
        tidy: int = 3,
        near: int = 3,
        attempts: int = 10,
        mutants: int = 40,
        min_kill_score: float = 0.5,
        vm_step_budget: int = 20_000_000,
        heap_limit_mib: int = 96,
        row_limit: int = 100_000,
        byte_limit_mib: int = 16,
        cpu_limit_s: float = 6.0,
        wall_limit_s: float = 60.0,
        max_sql_characters: int = MAX_SQL_CHARACTERS,
        cache: str | os.PathLike | None = None,
    ):
        if databases not in DATABASES:
            raise ValueError(f"databases is {databases!r}; allowed are {', '.join(DATABASES)}; choose one of them")
        if workers < 1:
            raise ValueError(f"workers is {workers}; allowed is 1 or more; use 1 to judge in this process")
        limits = {
            "vm_step_budget": vm_step_budget,
            "heap_limit_mib": heap_limit_mib,
            "row_limit": row_limit,
            "byte_limit_mib": byte_limit_mib,
            "cpu_limit_s": cpu_limit_s,
            "wall_limit_s": wall_limit_s,
        }
        suite = {
            "databases": databases,
            "seed": seed,
            "tidy": tidy,
            "near": near,
            "attempts": attempts,
            "mutants": mutants,
            "min_kill_score": min_kill_score,
        }
        self.arguments = {**suite, **limits, "max_sql_characters": max_sql_characters}
        self.workers = workers
        self.max_sql_characters = max_sql_characters
        self.sandbox = Sandbox(**limits)
        self._builder = SuiteBuilder(self.sandbox, **suite)
        self._suites: OrderedDict[tuple, Suite] = OrderedDict()
        self._pool: Pool | None = None
        self._cache = SuiteCache(cache, self._builder, suite | limits) if cache is not None else None
        # Where the cache has failed, no process needs to find that out again.
        self.arguments["cache"] = os.path.abspath(cache) if self._cache and self._cache.usable else None
        self._answers: OrderedDict[tuple[str, str], dict[bytes, bytes]] = OrderedDict()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes."""
        self.sandbox.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._cache:
            self._cache.close()

    def stream(self, tasks: Iterable[dict], progress: bool = False) -> Iterator[dict]:
        """Verdict lines of many tasks in their order, over `workers` processes; any iterable, read a little ahead.

        progress: a bar on standard error, with a total where `tasks` has a length. Raises ValueError at a malformed
        task.
        """
        answers = self.answers(Judge.question, map(checked_task, tasks))
        lines = (lost_line(task, line.detail) if isinstance(line, Lost) else line for task, line in answers)
        yield from with_progress(lines, tasks, "judge", progress)

    def answers(
        self,
        work: Callable[["Judge", object], object],
        questions: Iterable,
        task: Callable[[object], dict] = lambda question: question,
    ) -> Iterator[tuple[object, object]]:
        """(question, work(judge, question) or Lost) in order, over `workers` processes; see `reward.pool.Pool`."""
        if self.workers == 1:
            return ((question, answer_here(work, self, question)) for question in questions)
        self._pool = self._pool or Pool(self.arguments, self.workers)
        return self._pool.answer(work, questions, task)

    def question(self, task: dict) -> dict:
        """The verdict line of one task line: `{"id", "gold": {...}, "verdicts": [{"verdict", "reason", "trace"},
        ...]}`.

        A candidate of None is an abstention. Raises ValueError where the task is malformed.
        """
        checked_task(task)
        candidates = task["candidates"]
        if task["gold"] is None:
            gold = _gold_line(Suite("unanswerable"))
            verdicts = [
                _verdict("correct", "abstained", {}) if sql is None else _verdict("wrong", "unanswerable", {})
                for sql in candidates
            ]
            return {"id": task["id"], "gold": gold, "verdicts": verdicts}
        suite = self.suite(task["gold"], task.get("database"), task.get("context"))
        if suite.status != "ok":
            trace = {"message": suite.detail}
            verdicts = [_verdict("gold_bad", suite.reason, trace) for _ in candidates]
        else:
            verdicts = self._judge(suite, candidates)
        return {"id": task["id"], "gold": _gold_line(suite), "verdicts": verdicts}

    def suite(self, gold: str, database: str | None = None, context: str | None = None) -> Suite:
        """The databases of one question with gold's answers; kept for the questions asked last, and in the cache."""
        key = (gold, database, context)
        if key not in self._suites:
            try:
                self._suites[key] = (self._cache or self._builder).build(gold, database, context)
            except (OSError, DatabaseError) as error:  # the file is not there, or no longer
                detail = getattr(error, "strerror", None) or str(error)
                return Suite("gold_bad", "schema", f"database {database!r} cannot be read: {detail}")
            if len(self._suites) > _CACHED_SUITES:
                self._suites.popitem(last=False)
        self._suites.move_to_end(key)
        return self._suites[key]

    def _judge(self, suite: Suite, candidates: list[str | None]) -> list[dict]:
        distinct: dict[str, _Candidate] = {}
        entries: list[_Candidate] = []
        for text in candidates:
            if text is None:
                entries.append(_Candidate("", False, _verdict("wrong", "abstained", {})))
                continue
            gated = gate(text, self.max_sql_characters)
            if gated.sql is None:
                entries.append(_Candidate("", False, _verdict("wrong", gated.reason, {"message": gated.message})))
                continue
            entry = distinct.get(gated.sql)
            if entry is None:
                entry = distinct[gated.sql] = _Candidate(gated.sql, is_volatile(gated.sql))
            entries.append(entry)
        for member in suite.members:
            active = [entry for entry in distinct.values() if entry.verdict is None]
            if active:
                self._weigh_all(active, member, suite)
        for entry in distinct.values():
            if entry.verdict is None:
                trace = {"rows": entry.row_counts}
                if suite.empty:
                    entry.verdict = _verdict("unclear", "gold_empty", trace)
                else:
                    entry.verdict = entry.suspicion or _verdict("correct", "equal", trace)
            entry.verdict["trace"]["result_hash"] = hashlib.sha256(b"".join(entry.digests)).hexdigest()[:16]
        return [dict(entry.verdict, trace=dict(entry.verdict["trace"])) for entry in entries]

    def _weigh_all(self, active: list[_Candidate], member: Member, suite: Suite) -> None:
        """Runs candidates on one database and takes down what each one shows there."""
        gold = member.denotation
        answers = self._known_answers(member, suite.gold_sql)
        for entry, outcome in zip(active, self._run(member, active, frozenset(answers))):
            if outcome.status == "same" and not entry.volatile:
                entry.row_counts.append(gold.row_count)
                entry.digests.append(answers[outcome.fingerprint])
                continue
            if outcome.status == "same":
                outcome = outcome._replace(row_count=gold.row_count)
            if _weigh(entry, outcome, member, suite.empty) and len(answers) < _REMEMBERED_ANSWERS:
                answers[outcome.fingerprint] = entry.digests[-1]

    def _known_answers(self, member: Member, gold_sql: str) -> dict[bytes, bytes]:
        """Fingerprints of results that equal gold's answer on one database, each with its digest for the trace.

        The worker then sends no rows for them. Gold's own result is the first; another order of it may follow.
        """
        key = (member.database.key, gold_sql)
        answers = self._answers.get(key)
        if answers is None:
            gold = member.denotation
            rows = gold.rows()
            digest = result_digest(gold.column_count, rows, gold.row_count, gold.ordered)
            answers = self._answers[key] = {fingerprint(gold.column_count, rows): digest}
            if len(self._answers) > _REMEMBERED_MEMBERS:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        return answers

    def _run(self, member: Member, active: list[_Candidate], answers: frozenset[bytes]) -> list[Outcome]:
        """Runs candidates on one database; a double-quoted name that is no column becomes a string where it is a
        value.
        """
        # Past gold's rows a few are enough to show and to name the difference; the worker counts on to its limit.
        keep_rows = 2 * member.denotation.row_count + 100
        [outcomes] = self.sandbox.run_jobs([Job(member.database, [e.sql for e in active], keep_rows, False, answers)])
        again = range(len(active))
        for _ in range(_MAX_QUOTED_NAMES):
            again = [index for index in again if _requote(active[index], outcomes[index])]
            if not again:
                break
            statements = [active[index].sql for index in again]
            [answered] = self.sandbox.run_jobs([Job(member.database, statements, keep_rows, False, answers)])
            for index, outcome in zip(again, answered):
                outcomes[index] = outcome
        return outcomes


def checked_task(task: dict) -> dict:
    """The task itself. Raises ValueError, in three parts, where it is not as `reward.judge` reads it."""
    if not isinstance(task, dict):
        raise ValueError(f"a task is a {type(task).__name__}; allowed is an object; write one a line")
    missing = [key for key in ("id", "gold", "candidates") if key not in task]
    if missing:
        raise ValueError(f"the task lacks {', '.join(missing)}; id, gold and candidates are needed; add them")
    name = task["id"]
    if task["gold"] is not None and not isinstance(task["gold"], str):
        raise ValueError(f"gold of task {name!r} is {task['gold']!r:.60}; allowed is SQL text or null; correct it")
    candidates = task["candidates"]
    if not isinstance(candidates, list) or not all(sql is None or isinstance(sql, str) for sql in candidates):
        raise ValueError(
            f"candidates of task {name!r} are not a list of texts; texts and null are allowed; correct them"
        )
    database, context = task.get("database"), task.get("context")
    if task["gold"] is None:
        return task
    if database is None and not isinstance(context, str):
        raise ValueError(f"task {name!r} has neither database nor context; one is needed; add a path or DDL")
    if database is not None and not (isinstance(database, str) and os.path.isfile(database)):
        raise ValueError(f"database of task {name!r} is {database!r}; allowed is a SQLite file; correct the path")
    return task


def lost_line(task: dict, detail: str) -> dict:
    """The verdict line of a task that the judge itself failed at: no verdict, and never a `wrong`."""
    suite = Suite("gold_bad", "worker", detail)
    verdicts = [_verdict("gold_bad", "worker", {"message": detail}) for _ in task["candidates"]]
    return {"id": task["id"], "gold": _gold_line(suite), "verdicts": verdicts}


def _requote(entry: _Candidate, outcome: Outcome) -> bool:
    """Whether the statement failed at a double-quoted name that reads as a string, and now has it as one."""
    name = unknown_quoted_name(outcome.message) if outcome.status == "sql_error" else None
    changed = entry.sql if name is None else quoted_value_as_string(entry.sql, name)
    if changed == entry.sql:
        return False
    entry.sql = changed
    entry.volatile = is_volatile(changed)
    return True


def _weigh(entry: _Candidate, outcome: Outcome, member: Member, gold_empty: bool) -> bool:
    """Takes down what one database says of one candidate: a verdict, a suspicion that later databases can harden, or
    nothing. Whether its rows were compared and equal gold's.

    Where gold has no rows anywhere, only what the candidate shows by itself counts.
    """
    gold = member.denotation
    trace: dict = {"database": member.database.name, "gold_rows": gold.row_count, "rows": outcome.row_count}
    if outcome.status == "lost":
        reason = "timeout" if outcome.message.startswith("timeout") else "worker"
        entry.verdict = _verdict("unclear", reason, {**trace, "message": outcome.message})
        return False
    width = len(outcome.columns)
    if outcome.status in ("ok", "volatile") and width != gold.column_count:
        entry.digests.append(result_digest(width, outcome.rows, outcome.row_count, gold.ordered))
        entry.verdict = _verdict("wrong", "columns", {**trace, "gold_columns": gold.column_count, "columns": width})
        return False
    if outcome.status == "volatile" or (outcome.status in ("ok", "same") and entry.volatile):
        entry.verdict = _verdict("unclear", "volatile", trace)
        return False
    if outcome.status != "ok":
        entry.verdict = _verdict("wrong", outcome.status, {**trace, "message": outcome.message})
        return False
    entry.row_counts.append(outcome.row_count)
    entry.digests.append(result_digest(width, outcome.rows, outcome.row_count, gold.ordered))
    if gold_empty:
        return False
    whole = outcome.row_count == len(outcome.rows)
    difference = compare(gold, width, outcome.rows) if whole else "rows"
    if difference is None:
        return True
    trace |= first_differences(gold, outcome.rows, difference)
    if member.database.tier == "near":
        trace["difference"] = difference
        entry.suspicion = entry.suspicion or _verdict("unclear", "near", trace)
        return False
    if difference == "order" and not gold.certain:
        entry.suspicion = entry.suspicion or _verdict("unclear", "order", trace)
        return False
    orders = column_orders(gold, outcome.rows) if whole else set()
    entry.orders = orders if entry.orders is None else entry.orders & orders
    if entry.orders:
        entry.suspicion = entry.suspicion or _verdict("unclear", "column_order", trace)
    else:
        entry.verdict = _verdict("wrong", difference, trace)
    return False


def _verdict(verdict: str, reason: str, trace: dict) -> dict:
    return {"verdict": verdict, "reason": reason, "trace": trace}


def _gold_line(suite: Suite) -> dict:
    return {
        "status": suite.status,
        "reason": suite.reason or None,
        "detail": suite.detail or None,
        "kill_score": round(suite.killed / suite.mutants, 4) if suite.mutants else None,
        "mutants": suite.mutants,
        "killed": suite.killed,
        "databases": [member.database.name for member in suite.members],
        "gold_rows": [member.denotation.row_count for member in suite.members],
        "suite_hash": suite.suite_hash or None,
    }

