r"""Judges SQL candidates against gold by running both: correct, wrong or unclear, each with a reason and a small trace.

    python -m reward.judge --input tasks.jsonl --output verdicts.jsonl \
        [--databases given|generated|both] [--workers N] [--seed S]
"""

import sys

if __name__ == "__main__":  # before the imports below, which take a third of a second: --help is to be instant
    from reward.command import main_judge

    sys.exit(main_judge())

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from reward.answering import Lost, answer_here
from reward.cache import SuiteCache
from reward.connection import fingerprint
from reward.gate import MAX_SQL_CHARACTERS
from reward.pool import Pool, batches
from reward.progress import with_progress
from reward.queries import is_volatile, plain_values_as_strings
from reward.sandbox import Database, DatabaseError, Job, Outcome, Sandbox
from reward.suite import Member, Suite, SuiteBuilder
from reward.task import checked_task
from reward.trace import DIGEST_BYTES, result_digest
from reward.verdicts import (
    MAX_QUOTED_NAMES,
    Candidate,
    conclude,
    gold_line,
    lost_line,
    read_candidates,
    requote,
    rests_on_luck,
    verdict,
    weigh,
    weigh_backwards,
)

DATABASES = ("both", "given", "generated")
_CACHED_SUITES = 256
# What goes to the worker in one message; fewer candidates, and the message's own cost would count.
_TOGETHER_QUESTIONS = 32
_TOGETHER_CANDIDATES = 512
_REMEMBERED_MEMBERS = 4096
_REMEMBERED_ANSWERS = 8


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
        self._busy = threading.RLock()  # threads wait for one another: there is one worker to ask
        self._cache = SuiteCache(cache, self._builder, suite | limits) if cache is not None else None
        # Where the cache has failed, no process needs to find that out again.
        self.arguments["cache"] = os.path.abspath(cache) if self._cache and self._cache.usable else None
        self._ddls: OrderedDict[str, str] = OrderedDict()
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
        answers = self.answers(Judge.questions, map(checked_task, tasks))
        lines = (lost_line(task, line.detail) if isinstance(line, Lost) else line for task, line in answers)
        yield from with_progress(lines, tasks, "judge", progress)

    def answers(
        self,
        work: Callable[["Judge", list], list],
        questions: Iterable,
        task: Callable[[object], dict] = lambda question: question,
    ) -> Iterator[tuple[object, object]]:
        """(question, its answer of work(judge, several questions) or Lost) in order, over `workers` processes; see
        `reward.pool.Pool`.
        """
        if self.workers == 1:
            return (pair for batch in batches(questions) for pair in zip(batch, answer_here(work, self, batch)))
        self._pool = self._pool or Pool(self.arguments, self.workers)
        return self._pool.answer(work, questions, task)

    def question(self, task: dict) -> dict:
        """The verdict line of one task line: `{"id", "gold": {...}, "verdicts": [{"verdict", "reason", "trace"},
        ...]}`.

        A candidate of None is an abstention. Raises ValueError where the task is malformed.
        """
        return self.questions([task])[0]

    def questions(self, tasks: list[dict]) -> list[dict]:
        """The verdict lines of several tasks at once, in their order: the worker gets them in one message."""
        lines: list[dict] = []
        group: list[dict] = []
        candidates = 0
        for task in tasks:
            group.append(checked_task(task))
            candidates += len(task["candidates"])
            if len(group) == _TOGETHER_QUESTIONS or candidates >= _TOGETHER_CANDIDATES:
                lines += self._together(group)
                group = []
                candidates = 0
        return lines + self._together(group)

    def _together(self, tasks: list[dict]) -> list[dict]:
        with self._busy:
            return self._judged(tasks)

    def _judged(self, tasks: list[dict]) -> list[dict]:
        lines: list[dict] = []
        asked: list[tuple[Suite, list[Candidate]]] = []
        for task in tasks:
            candidates = task["candidates"]
            if task["gold"] is None:
                suite = Suite("unanswerable")
                verdicts = [
                    verdict("correct", "abstained", {}) if sql is None else verdict("wrong", "unanswerable", {})
                    for sql in candidates
                ]
            else:
                suite = self.suite(task["gold"], task.get("database"), task.get("context"))
                verdicts = [verdict("gold_bad", suite.reason, {"message": suite.detail}) for _ in candidates]
            if suite.status == "ok":
                asked.append((suite, read_candidates(candidates, self.max_sql_characters)))
            lines.append({"id": task["id"], "gold": gold_line(suite), "verdicts": verdicts})
        for level in range(max((len(suite.members) for suite, _ in asked), default=0)):
            active = []
            for suite, entries in asked:
                distinct = list({id(entry): entry for entry in entries if entry.verdict is None}.values())
                if distinct and level < len(suite.members):
                    active.append((suite, suite.members[level], distinct))
            if active:
                self._run_level(active)
        for suite, entries in asked:
            lucky = {id(entry): entry for entry in entries if rests_on_luck(entry, suite)}
            self._run_backwards(suite, list(lucky.values()))
        judged = iter(asked)
        for line in lines:
            if line["gold"]["status"] == "ok":
                suite, entries = next(judged)
                line["verdicts"] = conclude(entries, suite)
        return lines

    def suite(self, gold: str, database: str | None = None, context: str | None = None) -> Suite:
        """The databases of one question with gold's answers; kept for the questions asked last, and in the cache."""
        key = (gold, database, context)
        with self._busy:
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

    def _run_level(self, asked: list[tuple[Suite, Member, list[Candidate]]]) -> None:
        """Runs candidates of several questions, each on one database of its suite, and takes down what they show.

        A double-quoted name that is no column becomes a string where it is a value.
        """
        known = [self._known_answers(member, suite.gold_sql) for suite, member, _ in asked]
        jobs = []
        for (_, member, active), answers in zip(asked, known):
            for entry in active:
                if '"' in entry.sql:
                    entry.sql = plain_values_as_strings(entry.sql, self._ddl(member.database))
                    entry.volatile = is_volatile(entry.sql)
            # Past gold's rows a few are enough to show and to name the difference; the worker counts on to its limit.
            keep_rows = 2 * member.denotation.row_count + 100
            jobs.append(Job(member.database, [entry.sql for entry in active], keep_rows, False, frozenset(answers)))
        outcomes = self.sandbox.run_jobs(jobs)
        again = [list(range(len(active))) for _, _, active in asked]
        for _ in range(MAX_QUOTED_NAMES):
            again = [
                [at for at in places if found[at].status == "sql_error" and requote(active[at], found[at])]
                for (_, _, active), places, found in zip(asked, again, outcomes)
            ]
            if not any(again):
                break
            changed = [
                job._replace(statements=[active[place].sql for place in places])
                for job, (_, _, active), places in zip(jobs, asked, again)
            ]
            for found, places, answered in zip(outcomes, again, self.sandbox.run_jobs(changed)):
                for place, outcome in zip(places, answered):
                    found[place] = outcome
        for (suite, member, active), answers, found in zip(asked, known, outcomes):
            for entry, outcome in zip(active, found):
                self._take_down(entry, outcome, member, suite, answers)

    def _run_backwards(self, suite: Suite, entries: list[Candidate]) -> None:
        """Runs candidates that never ask for the order that gold asks for while rows are visited the other way round."""
        for member in suite.members:
            active = [entry for entry in entries if entry.verdict is None]
            if not active or member.database.tier == "near" or not member.denotation.ordered:
                continue
            statements = [entry.sql for entry in active]
            found = self.sandbox.run(member.database, statements, member.denotation.row_count + 1, reverse=True)
            for entry, outcome in zip(active, found):
                weigh_backwards(entry, outcome, member)

    def _ddl(self, database: Database) -> str:
        """Lower-cased text in which every name of the database stands."""
        if database.key not in self._ddls:
            statements = self.sandbox.describe(database)[0] if database.path else database.ddl
            self._ddls[database.key] = "\n".join(statements).lower()
            if len(self._ddls) > _CACHED_SUITES:
                self._ddls.popitem(last=False)
        return self._ddls[database.key]

    def _take_down(
        self, entry: Candidate, outcome: Outcome, member: Member, suite: Suite, answers: dict[bytes, bytes]
    ) -> None:
        if outcome.status == "same":
            row_count = member.denotation.row_count
            if not entry.volatile:
                entry.row_counts += (row_count,)
                entry.digests += answers[outcome.fingerprint]
                return
            outcome = outcome._replace(row_count=row_count)
        if weigh(entry, outcome, member, suite.empty) and len(answers) < _REMEMBERED_ANSWERS:
            answers[outcome.fingerprint] = entry.digests[-DIGEST_BYTES:]

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
