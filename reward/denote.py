"""Gold's answer on one database, and whether it rests on nothing but the query and the rows."""

from typing import NamedTuple

from reward.compare import Denotation, compare
from reward.sandbox import Database, Job, Outcome, Sandbox
from reward.stability import open_choices
from reward.ties import Ordering, read_denotation


class Member(NamedTuple):
    """One database of a suite and what gold answers there."""

    database: Database
    denotation: Denotation


def denote(
    sandbox: Sandbox, database: Database, sql: str, ordering: Ordering, others: list[str] = [], keep_rows: int = 0
) -> tuple[Denotation | Outcome, list[Outcome]]:
    """Gold's answer, or how it failed; and what other statements do on the same database, which keep `keep_rows` rows.

    Without others all rows of gold are kept.
    """
    needed = ordering.needed
    outcomes = sandbox.run(database, [sql, *needed, *others], keep_rows or sandbox.limits["row_limit"])
    gold, rest = outcomes[0], outcomes[1 + len(needed) :]
    if gold.status != "ok":
        return gold, rest
    return read_denotation(gold, outcomes[1 : 1 + len(needed)], ordering), rest


def is_stable(sandbox: Sandbox, member: Member, sql: str) -> bool:
    """Whether gold's answer stays the same when its rows are visited in another order, or SQLite chooses otherwise
    where SQL leaves the choice to it.
    """
    database, denotation = member
    if denotation.row_count == 0:
        return True
    row_limit = sandbox.limits["row_limit"]
    jobs = [Job(database, [sql], row_limit, True)]
    if database.rows:
        # SQLite never walks backwards under GROUP BY; the same rows, stored in another order, show a chance pick.
        mirrored = tuple((table, width, rows[::-1]) for table, width, rows in database.rows)
        jobs.append(Job(database._replace(key=database.key + "-mirrored", rows=mirrored), [sql], row_limit))
    variants = list(open_choices(sql))
    others = [other for [other] in sandbox.run_jobs(jobs)]
    if variants:
        others += [other for other in sandbox.run(database, variants, row_limit) if other.status == "ok"]
    for other in others:
        difference = compare(denotation, len(other.columns), other.rows) if other.status == "ok" else "rows"
        if difference is not None and (difference != "order" or denotation.certain):
            return False
    return True
