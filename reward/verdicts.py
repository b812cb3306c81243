"""From what a candidate shows on the databases of a question to its verdict, with a reason and a small trace."""

import hashlib
from dataclasses import dataclass

from reward.compare import column_orders, compare
from reward.gate import gate
from reward.queries import asks_for_order, is_volatile, quoted_value_as_string, unknown_quoted_name
from reward.sandbox import Database, Outcome, Sandbox
from reward.suite import Member, Suite
from reward.trace import first_differences, result_digest

MAX_QUOTED_NAMES = 20  # double-quoted names of one statement that become strings


@dataclass(slots=True)
class Candidate:
    """One distinct candidate text on its way through the databases."""

    sql: str
    volatile: bool
    verdict: dict | None = None
    suspicion: dict | None = None
    orders: set[tuple[int, ...]] | None = None
    digests: bytes = b""  # of its results, one after the other
    row_counts: tuple[int, ...] = ()


def read_candidates(texts: list[str | None], max_sql_characters: int) -> list[Candidate]:
    """One entry for each text; texts that are one statement share it, and those that cannot run have their verdict."""
    distinct: dict[str, Candidate] = {}
    entries: list[Candidate] = []
    for text in texts:
        if text is None:
            entries.append(Candidate("", False, verdict("wrong", "abstained", {})))
            continue
        gated = gate(text, max_sql_characters)
        if gated.sql is None:
            entries.append(Candidate("", False, verdict("wrong", gated.reason, {"message": gated.message})))
            continue
        entry = distinct.get(gated.sql)
        if entry is None:
            entry = distinct[gated.sql] = Candidate(gated.sql, is_volatile(gated.sql))
        entries.append(entry)
    return entries


def requote(entry: Candidate, outcome: Outcome) -> bool:
    """Whether the statement failed at a double-quoted name that reads as a string, and now has it as one."""
    name = unknown_quoted_name(outcome.message) if outcome.status == "sql_error" else None
    changed = entry.sql if name is None else quoted_value_as_string(entry.sql, name)
    if changed == entry.sql:
        return False
    entry.sql = changed
    entry.volatile = is_volatile(changed)
    return True


def run_as_judged(sandbox: Sandbox, database: Database, sql: str, keep_rows: int) -> tuple[str, Outcome]:
    """A statement that passed the gate, run on one database as the judge runs a candidate's: (the statement as it ran at last,
    its outcome with at most `keep_rows` rows). Double-quoted names that are no columns are strings where they are values.
    """
    entry = Candidate(sql, volatile=False)
    [outcome] = sandbox.run(database, [entry.sql], keep_rows)
    for _ in range(MAX_QUOTED_NAMES):
        if not requote(entry, outcome):
            break
        [outcome] = sandbox.run(database, [entry.sql], keep_rows)
    return entry.sql, outcome


def weigh(entry: Candidate, outcome: Outcome, member: Member, gold_empty: bool) -> bool:
    """Takes down what one database says of one candidate: a verdict, a suspicion that later databases can harden, or
    nothing. Whether its rows were compared and equal gold's.

    Where gold has no rows anywhere, only what the candidate shows by itself counts.
    """
    gold = member.denotation
    trace: dict = {"database": member.database.name, "gold_rows": gold.row_count, "rows": outcome.row_count}
    if outcome.status == "lost":
        reason = "timeout" if outcome.message.startswith("timeout") else "worker"
        entry.verdict = verdict("unclear", reason, {**trace, "message": outcome.message})
        return False
    if outcome.status == "volatile" or (outcome.status in ("ok", "same") and entry.volatile):
        entry.verdict = verdict("unclear", "volatile", trace)
        return False
    width = len(outcome.columns)
    if outcome.status == "ok" and width != gold.column_count:
        entry.digests += result_digest(width, outcome.rows, outcome.row_count, gold.ordered)
        entry.verdict = verdict("wrong", "columns", {**trace, "gold_columns": gold.column_count, "columns": width})
        return False
    if outcome.status != "ok":
        entry.verdict = verdict("wrong", outcome.status, {**trace, "message": outcome.message})
        return False
    entry.row_counts += (outcome.row_count,)
    entry.digests += result_digest(width, outcome.rows, outcome.row_count, gold.ordered)
    if gold_empty:
        return False
    whole = outcome.row_count == len(outcome.rows)
    difference = compare(gold, width, outcome.rows) if whole else "rows"
    if difference is None:
        return True
    trace |= first_differences(gold, outcome.rows, difference)
    if member.database.tier == "near":
        trace["difference"] = difference
        entry.suspicion = entry.suspicion or verdict("unclear", "near", trace)
        return False
    if difference == "order" and not gold.certain:
        entry.suspicion = entry.suspicion or verdict("unclear", "order", trace)
        return False
    orders = column_orders(gold, outcome.rows) if whole else set()
    entry.orders = orders if entry.orders is None else entry.orders & orders
    if entry.orders:
        entry.suspicion = entry.suspicion or verdict("unclear", "column_order", trace)
    else:
        entry.verdict = verdict("wrong", difference, trace)
    return False


def rests_on_luck(entry: Candidate, suite: Suite) -> bool:
    """Whether a candidate that equals ordered gold everywhere has no ORDER BY at all: SQLite owes it no order."""
    equal = entry.verdict is None and entry.suspicion is None and not suite.empty
    return equal and suite.members[0].denotation.ordered and not asks_for_order(entry.sql)


def weigh_backwards(entry: Candidate, outcome: Outcome, member: Member) -> None:
    """Takes down what the same database says when its rows are visited backwards."""
    gold = member.denotation
    difference = compare(gold, len(outcome.columns), outcome.rows) if outcome.status == "ok" and gold.certain else None
    if difference is not None:
        trace = {"database": member.database.name, "gold_rows": gold.row_count, "rows": outcome.row_count}
        trace |= first_differences(gold, outcome.rows, difference)
        trace["message"] = "no ORDER BY: another answer when SQLite visits the rows backwards"
        entry.verdict = verdict("wrong", difference, trace)


def conclude(entries: list[Candidate], suite: Suite) -> list[dict]:
    """The verdicts when all databases have been heard."""
    verdicts = []
    hashes: dict[bytes, str] = {}
    for entry in entries:
        if entry.verdict is None:
            trace = {"rows": list(entry.row_counts)}
            if suite.empty:
                entry.verdict = verdict("unclear", "gold_empty", trace)
            else:
                entry.verdict = entry.suspicion or verdict("correct", "equal", trace)
        trace = entry.verdict["trace"]
        if entry.sql and "result_hash" not in trace:
            if entry.digests not in hashes:
                hashes[entry.digests] = hashlib.sha256(entry.digests).hexdigest()[:16]
            trace["result_hash"] = hashes[entry.digests]
        verdicts.append({"verdict": entry.verdict["verdict"], "reason": entry.verdict["reason"], "trace": dict(trace)})
    return verdicts


def verdict(verdict: str, reason: str, trace: dict) -> dict:
    return {"verdict": verdict, "reason": reason, "trace": trace}


def gold_line(suite: Suite) -> dict:
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


def lost_line(task: dict, detail: str) -> dict:
    """The verdict line of a task that the judge itself failed at: no verdict, and never a `wrong`."""
    suite = Suite("gold_bad", "worker", detail)
    verdicts = [verdict("gold_bad", "worker", {"message": detail}) for _ in task["candidates"]]
    return {"id": task["id"], "gold": gold_line(suite), "verdicts": verdicts}
