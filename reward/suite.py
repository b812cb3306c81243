"""The databases that one question is judged on, with gold's answer on each: the given file, tidy and near ones."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from reward.compare import Denotation, compare
from reward.conditions import read_conditions
from reward.databases import make_database
from reward.gate import gate
from reward.mutants import make_mutants
from reward.queries import is_volatile, normalise_gold, parse
from reward.sandbox import Database, DatabaseError, Outcome, Sandbox
from reward.schema import Schema, read_schema, redeclare_numeric
from reward.stability import open_choices
from reward.ties import Ordering, read_denotation, read_ordering

_SAMPLES_PER_COLUMN = 40
_FEW_MUTANTS = 4  # a share of fewer says nothing
_CHOICE = 3  # for each database that is kept so many good ones are made
# How good a generated database is for a gold, best first; an unstable one is never used.
_CLEAR, _DULL, _CUT, _EMPTY = range(4)


class Member(NamedTuple):
    """One database of a suite and what gold answers there."""

    database: Database
    denotation: Denotation


class Suite(NamedTuple):
    """`status`: ok or gold_bad with its `reason` and `detail`; `empty`: gold has no row on any database.

    `mutants`: edits of gold that run and are not provably equal (by `reward.mutants`), `killed`: those of them that a
    generated database of the suite tells apart. `gold_sql` is gold as it was run. `suite_hash` names the databases,
    so that a stored verdict says what it rests on.
    """

    status: str
    reason: str = ""
    detail: str = ""
    gold_sql: str = ""
    members: tuple[Member, ...] = ()
    empty: bool = False
    suite_hash: str = ""
    mutants: int = 0
    killed: int = 0


class SuiteBuilder:
    """Makes suites.

    `databases`: given, generated or both; `tidy` and `near`: how many of each tier; `attempts`: tries a tier;
    `mutants`: how many edits of gold choose among them; `min_kill_score`: the share of them that must be told apart.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        databases: str,
        seed: int,
        tidy: int,
        near: int,
        attempts: int,
        mutants: int,
        min_kill_score: float,
    ):
        self.sandbox = sandbox
        self.databases = databases
        self.seed = seed
        self.wanted = {"tidy": tidy, "near": near}
        self.attempts = attempts
        self.mutants = mutants
        self.min_kill_score = min_kill_score
        self._files: dict[str, tuple[Database, Schema, str]] = {}

    def build(self, gold: str, path: str | None, context: str | None) -> Suite:
        """The suite of one question, from a database file or from CREATE TABLE text."""
        gated = gate(gold)
        if gated.sql is None or not gated.sql[:6].upper().startswith(("SELECT", "WITH")):
            reason = "not_select" if gated.reason != "sql_error" else "parse"
            return Suite("gold_bad", reason, gated.message or "gold starts with VALUES, not SELECT or WITH")
        try:
            if path is not None:
                given, schema, content_hash = self._file(path)
            else:
                key = hashlib.sha256((context or "").encode("utf-8", "replace")).hexdigest()[:20]
                given = Database("schema-" + key, "schema", "schema", None, (context or "",))
                schema, content_hash = read_schema(self.sandbox.describe(given)), key
        except DatabaseError as error:
            return Suite("gold_bad", "schema", str(error))
        sql = normalise_gold(gated.sql, "\n;".join(schema.ddl))
        if is_volatile(sql):
            return Suite("gold_bad", "unstable", "gold depends on the clock or on chance", sql)
        ordering = read_ordering(sql)
        first, stable = self.denote(given, sql, ordering)
        if isinstance(first, Outcome):
            return Suite("gold_bad", _gold_failure(first), first.message, sql)
        mutants = killed = 0
        members = [Member(given, first)] if path is not None and stable and self.databases != "generated" else []
        if path is None or self.databases != "given":
            generated, found_unstable, mutants, killed = self._generated(sql, ordering, schema, content_hash)
            members += generated
            stable = stable and not (found_unstable and not generated)
        if not members:
            return Suite("gold_bad", "unstable", "gold's rows depend on the order in which SQLite visits them", sql)
        if mutants >= _FEW_MUTANTS and killed < self.min_kill_score * mutants:
            detail = f"{killed} of {mutants} mutants told apart; at least {self.min_kill_score:.0%} are needed"
            return Suite("gold_bad", "undiscriminated", detail, sql, (), False, "", mutants, killed)
        digest = hashlib.sha256("|".join([content_hash, *(m.database.key for m in members)]).encode()).hexdigest()[:16]
        empty = all(member.denotation.row_count == 0 for member in members)
        return Suite("ok", "", "", sql, tuple(members), empty, digest, mutants, killed)

    def denote(self, database: Database, sql: str, ordering: Ordering) -> tuple[Denotation | Outcome, bool]:
        """Gold's answer on a database, or how it failed; and whether it stays the same when rows are visited in
        another order, or SQLite chooses otherwise where SQL leaves the choice to it.
        """
        row_limit = self.sandbox.limits["row_limit"]
        outcomes = self.sandbox.run(database, [sql, *ordering.needed], row_limit)
        if outcomes[0].status != "ok":
            return outcomes[0], False
        denotation = read_denotation(outcomes[0], outcomes[1:], ordering)
        if outcomes[0].row_count == 0:
            return denotation, True
        others = self.sandbox.run(database, [sql], row_limit, reverse=True)
        if variants := list(open_choices(sql)):
            others += [other for other in self.sandbox.run(database, variants, row_limit) if other.status == "ok"]
        if database.rows:
            # SQLite never walks backwards under GROUP BY; the same rows, stored in another order, show a chance pick.
            mirrored = tuple((table, width, rows[::-1]) for table, width, rows in database.rows)
            others += self.sandbox.run(
                database._replace(key=database.key + "-mirrored", rows=mirrored), [sql], row_limit
            )
        for other in others:
            difference = compare(denotation, len(other.columns), other.rows) if other.status == "ok" else "rows"
            if difference is not None and (difference != "order" or denotation.certain):
                return denotation, False
        return denotation, True

    def _file(self, path: str) -> tuple[Database, Schema, str]:
        path = str(Path(path).resolve())
        if path not in self._files:
            with open(path, "rb") as file:
                content_hash = hashlib.file_digest(file, "sha256").hexdigest()[:20]
            database = Database(f"file-{content_hash}-{path}", "given", "given", path)
            schema = read_schema(self.sandbox.describe(database, _SAMPLES_PER_COLUMN))
            self._files[path] = (database, schema, content_hash)
        return self._files[path]

    def _generated(
        self, sql: str, ordering: Ordering, schema: Schema, content_hash: str
    ) -> tuple[list[Member], bool, int, int]:
        """The best generated databases found, tidy before near; whether any was left out as unstable; mutants run and
        killed.
        """
        reading = read_conditions(parse(sql), schema)
        schema = redeclare_numeric(schema, {key for key in reading.numeric if not schema.column(key).samples})
        labels_grouped = any(column in schema.tables[table].labels() for table, column in reading.grouped)
        mutants = make_mutants(sql, schema, self.mutants) if self.mutants else []
        killed: set[int] = set()
        ran: set[int] = set()
        chosen: list[Member] = []
        unstable = False
        for tier, wanted in self.wanted.items():
            ranked: list[tuple[int, Member]] = []
            for attempt in range(self.attempts):
                if sum(rank == _CLEAR for rank, _ in ranked) >= (_CHOICE if mutants else 1) * wanted:
                    break
                seed = f"{self.seed}/{content_hash}/{sql}/{tier}-{attempt + 1}"
                unique_labels = attempt % 2 == 0 if labels_grouped else attempt < self.attempts // 2
                try:
                    database = make_database(schema, reading, tier, seed, unique_labels)
                    denotation, stable = self.denote(database, sql, ordering)
                except DatabaseError:
                    continue
                if isinstance(denotation, Outcome) or not stable:
                    unstable = True
                    continue
                ranked.append((_rank(denotation), Member(database, denotation)))
            kills = {member.database.key: self._killed(member, mutants, ran) for _, member in ranked}
            while ranked and sum(member.database.tier == tier for member in chosen) < wanted:
                # Better rank first; among equals the one that tells most further mutants apart, the earlier at a tie.
                rank, member = min(ranked, key=lambda entry: (entry[0], -len(kills[entry[1].database.key] - killed)))
                ranked.remove((rank, member))
                killed |= kills[member.database.key]
                chosen.append(member)
        return chosen, unstable, len(ran), len(killed)

    def _killed(self, member: Member, mutants: list[str], ran: set[int]) -> set[int]:
        """Indices of the mutants whose answer differs from gold's here; adds those that run at all to `ran`."""
        gold = member.denotation
        killed = set()
        for index, outcome in enumerate(self.sandbox.run(member.database, mutants, 2 * gold.row_count + 100)):
            if outcome.status != "ok":
                continue
            ran.add(index)
            whole = len(outcome.rows) == outcome.row_count
            if not whole or compare(gold, len(outcome.columns), outcome.rows) is not None:
                killed.add(index)
        return killed


def _rank(denotation: Denotation) -> int:
    if denotation.row_count == 0:
        return _EMPTY
    if denotation.cuts_tie():
        return _CUT
    return _DULL if all(cell in (None, 0) for row in denotation.rows() for cell in row) else _CLEAR


def _gold_failure(outcome: Outcome) -> str:
    if outcome.status == "refused":
        return "not_select"
    if outcome.status == "volatile":
        return "unstable"
    if outcome.status == "lost":
        return "timeout" if outcome.message.startswith("timeout") else "worker"
    return outcome.status
