"""Chooses the generated databases of one question: the few, of about twenty, that tell most of gold's mutants apart."""

from typing import NamedTuple

from sqlglot import exp

from reward.compare import Denotation, compare
from reward.conditions import read_conditions
from reward.databases import make_database
from reward.denote import Member, denote, is_stable
from reward.equivalence import provably_equal
from reward.mutants import Mutant, make_mutants
from reward.queries import parse
from reward.sandbox import DatabaseError, Outcome, Sandbox
from reward.schema import Schema, redeclare_numeric
from reward.ties import Ordering

# More rows of a generated database than these are no use to anyone; a mutant that has more is told apart by the count.
_KEEP_ROWS = 3000
# The variants of near databases in the order in which they are tried.
_NEAR_VARIANTS = ("plain", "plain", "starved", "plain", "flat", "plain", "starved", "plain", "starved", "plain")
_SPARE_ATTEMPTS = 1  # so many more than are wanted of a tier are made in any case, and all while mutants survive
_EASY_AFTER = 2  # databases of a tier that all tell a mutant apart: it is not run on the others of that tier
# How good a generated database is for a gold, best first; an unstable one is never used.
_CLEAR, _DULL, _CUT, _EMPTY = range(4)


class _Trial(NamedTuple):
    rank: int
    member: Member
    kills: set[int]


class Selection:
    """Tries databases for one gold and chooses among them.

    `mutants`: edits of gold; `ran`: indices of those that run; `equal`: of those that are provably equal to gold;
    `killed`: of those that a chosen database tells apart; `unstable`: whether a database was left out because gold's
    answer there depends on the order in which SQLite visits its rows.
    """

    def __init__(self, sandbox: Sandbox, sql: str, ordering: Ordering, schema: Schema, seed: str, mutants: int):
        self.sandbox = sandbox
        self.sql = sql
        self.ordering = ordering
        self.seed = seed
        tree = parse(sql)
        # Without a table the answer is the same on every database, and so is each mutant's.
        self.constant = tree is not None and tree.find(exp.Table) is None
        self.reading = read_conditions(tree, schema)
        self.schema = redeclare_numeric(schema, self.reading.numeric)
        self.labels_grouped = any(column in schema.tables[t].labels() for t, column in self.reading.grouped)
        self.mutants: list[Mutant] = make_mutants(sql, schema, mutants) if mutants else []
        self.live = set(range(len(self.mutants)))
        self.ran: set[int] = set()
        self.equal: set[int] = set()
        self.unproven: set[int] = set()
        self.killed: set[int] = set()
        self.unstable = False
        self.trials: dict[str, list[_Trial]] = {}
        self.easy: dict[str, set[int]] = {}
        self.tried: dict[str, int] = {}

    def choose(self, wanted: dict[str, int], attempts: int) -> list[Member]:
        """`wanted` databases of each tier, best first, out of at most `attempts` a tier.

        Fewer are tried where those made so far tell every mutant apart that is not provably equal.
        """
        tiers = [tier for tier, count in wanted.items() if count]
        for tier in tiers:
            self.trials[tier], self.tried[tier], self.easy[tier] = [], 0, set()
        least = _SPARE_ATTEMPTS + max(wanted.values(), default=0)
        for attempt in range(attempts):
            if attempt >= least and not self._survivors():
                tiers = [t for t in tiers if sum(trial.rank == _CLEAR for trial in self.trials[t]) < wanted[t]]
            for tier in tiers:
                self._try(tier, attempts)
            if attempt + 1 == least:
                self._prove(self._survivors())
        chosen: list[Member] = []
        for tier, count in wanted.items():
            chosen += self._best(tier, count, attempts)
        return chosen

    def measure(self, members: list[Member]) -> tuple[Mutant, ...]:
        """Runs what was not run so far on the suite; the mutants that run, are not provably equal, and that none of its
        databases tells apart.
        """
        for member in reversed(members):  # the given file, which may be large, is the first one
            self._tell_apart(member)
        self._prove(self.live - self.killed)
        return tuple(self.mutants[index] for index in sorted(self.ran - self.equal - self.killed))

    def _tell_apart(self, member: Member) -> None:
        """Adds to `killed` the mutants that are told apart on one more database, of those that no other one killed."""
        indices = sorted(self.live - self.equal - self.killed)
        if indices:
            keep_rows = max(_KEEP_ROWS, member.denotation.row_count + 1)
            outcomes = self.sandbox.run(member.database, [self.mutants[i].sql for i in indices], keep_rows)
            self.killed |= self._differing(member.denotation, indices, outcomes)

    def _try(self, tier: str, attempts: int) -> None:
        """Makes one more database of a tier, with gold's answer on it and the mutants that it tells apart."""
        self.tried[tier] += 1
        number = self.tried[tier]
        unique_labels = number % 2 == 1 if self.labels_grouped else number <= (attempts + 1) // 2
        indices = sorted(self.live - self.equal - self.easy[tier])
        try:
            seed = f"{self.seed}/{tier}-{number}"
            variant = _NEAR_VARIANTS[(number - 1) % len(_NEAR_VARIANTS)] if tier == "near" else "plain"
            database = make_database(self.schema, self.reading, tier, seed, unique_labels, variant)
            statements = [self.mutants[index].sql for index in indices]
            denotation, outcomes = denote(self.sandbox, database, self.sql, self.ordering, statements, _KEEP_ROWS)
        except DatabaseError:
            return
        if isinstance(denotation, Outcome) or denotation.row_count >= _KEEP_ROWS:
            return
        killed = self._differing(denotation, indices, outcomes)
        trials = self.trials[tier]
        trials.append(_Trial(_rank(denotation), Member(database, denotation), killed))
        if len(trials) == _EASY_AFTER:
            self.easy[tier] = set.intersection(*(trial.kills for trial in trials))

    def _differing(self, gold: Denotation, indices: list[int], outcomes: list[Outcome]) -> set[int]:
        killed = set()
        for index, outcome in zip(indices, outcomes):
            if outcome.status == "sql_error":
                self.live.discard(index)
            if outcome.status != "ok":
                continue
            self.ran.add(index)
            if len(outcome.rows) < outcome.row_count or compare(gold, len(outcome.columns), outcome.rows) is not None:
                killed.add(index)
        return killed

    def _survivors(self) -> set[int]:
        told_apart = {index for trials in self.trials.values() for trial in trials for index in trial.kills}
        return self.live - self.equal - told_apart

    def _prove(self, survivors: set[int]) -> None:
        indices = sorted(survivors - self.equal - self.unproven)
        if indices:
            proofs = [True] * len(indices)
            if not self.constant:
                proofs = provably_equal(self.sql, [self.mutants[index].sql for index in indices], self.schema)
            self.equal |= {index for index, proven in zip(indices, proofs) if proven}
            self.unproven |= {index for index, proven in zip(indices, proofs) if not proven}

    def _best(self, tier: str, count: int, attempts: int) -> list[Member]:
        """The next best is the one that tells most mutants apart which no chosen one does; in tidy a good rank comes
        first. Only what is chosen is run a second time, to see whether gold is stable there.
        """
        chosen: list[Member] = []
        trials = self.trials.get(tier, [])
        while len(chosen) < count:
            if not trials and self.tried[tier] < attempts:
                self._try(tier, attempts)
            elif not trials:
                break
            if not trials:
                continue
            best = min(
                trials,
                key=lambda trial: (
                    trial.rank if tier == "tidy" else 0,
                    -len(trial.kills - self.killed - self.easy[tier]),
                    trial.rank,
                    -len(trial.kills),
                ),
            )
            trials.remove(best)
            if not is_stable(self.sandbox, best.member, self.sql):
                self.unstable = True
                continue
            self.killed |= best.kills
            chosen.append(best.member)
        return chosen


def _rank(denotation: Denotation) -> int:
    if denotation.row_count == 0:
        return _EMPTY
    if denotation.cuts_tie():
        return _CUT
    return _DULL if all(cell in (None, 0) for row in denotation.rows() for cell in row) else _CLEAR
