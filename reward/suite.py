"""The databases that one question is judged on, with gold's answer on each: the given file, tidy and near ones."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from reward.denote import Member, denote, is_stable
from reward.gate import gate
from reward.mutants import Mutant
from reward.queries import is_volatile, normalise_gold, quoted_value_as_string, unknown_quoted_name
from reward.sandbox import Database, DatabaseError, Outcome, Sandbox
from reward.schema import Schema, read_schema
from reward.selection import Selection
from reward.ties import read_ordering

_SAMPLES_PER_COLUMN = 40
_FEW_MUTANTS = 4  # a share of fewer says nothing


class Suite(NamedTuple):
    """`status`: ok or gold_bad with its `reason` and `detail`; `empty`: gold has no row on any database.

    `mutants`: how many edits of gold run and are not provably equal (by `reward.equivalence`); `killed`: how many of
    them some database of the suite tells apart; `survivors`: the others. `gold_sql` is gold as it was run.
    `suite_hash` names the databases, so that a stored verdict says what it rests on.
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
    survivors: tuple[Mutant, ...] = ()


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
        first, _ = denote(self.sandbox, given, sql, ordering)
        # A double-quoted value may be called like a column of another table.
        while isinstance(first, Outcome) and first.status == "sql_error" and (name := unknown_quoted_name(first.message)) is not None:
            if (changed := quoted_value_as_string(sql, name)) == sql:
                break
            sql, ordering = changed, read_ordering(changed)
            first, _ = denote(self.sandbox, given, sql, ordering)
        if isinstance(first, Outcome):
            return Suite("gold_bad", _gold_failure(first), first.message, sql)
        member = Member(given, first)
        members = []
        if path is not None and self.databases != "generated" and is_stable(self.sandbox, member, sql):
            members.append(member)
        selection = Selection(self.sandbox, sql, ordering, schema, f"{self.seed}/{content_hash}/{sql}", self.mutants)
        if path is None or self.databases != "given":
            members += selection.choose(self.wanted, self.attempts)
        if not members:
            return Suite("gold_bad", "unstable", "gold's rows depend on the order in which SQLite visits them", sql)
        survivors = selection.measure(members)
        mutants = len(selection.ran - selection.equal)
        killed = mutants - len(survivors)
        empty = all(member.denotation.row_count == 0 for member in members)
        judged_on_file_alone = path is not None and self.databases == "given"
        if mutants >= _FEW_MUTANTS and killed < self.min_kill_score * mutants and not judged_on_file_alone:
            detail = f"{killed} of {mutants} mutants told apart; at least {self.min_kill_score:.0%} are needed"
            return Suite("gold_bad", "undiscriminated", detail, sql, (), empty, "", mutants, killed, survivors)
        # A given file's key holds its path too, which says nothing of the content: a run may move.
        keys = ["given" if m.database.path else m.database.key for m in members]
        digest = hashlib.sha256("|".join([content_hash, *keys]).encode()).hexdigest()[:16]
        return Suite("ok", "", "", sql, tuple(members), empty, digest, mutants, killed, survivors)

    def _file(self, path: str) -> tuple[Database, Schema, str]:
        path = str(Path(path).resolve())
        if path not in self._files:
            with open(path, "rb") as file:
                content_hash = hashlib.file_digest(file, "sha256").hexdigest()[:20]
            database = Database(f"file-{content_hash}-{path}", "given", "given", path)
            schema = read_schema(self.sandbox.describe(database, _SAMPLES_PER_COLUMN))
            self._files[path] = (database, schema, content_hash)
        return self._files[path]


def _gold_failure(outcome: Outcome) -> str:
    if outcome.status == "refused":
        return "not_select"
    if outcome.status == "volatile":
        return "unstable"
    if outcome.status == "lost":
        return "timeout" if outcome.message.startswith("timeout") else "worker"
    return outcome.status
