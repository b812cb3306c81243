"""Gold's answer on one database, and whether it rests on nothing but the query and the rows."""

from typing import NamedTuple

from reward.compare import Denotation, compare
from reward.sandbox import Database, Outcome, Sandbox
from reward.ties import Ordering


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
    extended = [] if ordering.sql is None else [ordering.sql]
    outcomes = sandbox.run(database, [sql, *extended, *others], keep_rows or sandbox.limits["row_limit"])
    gold, rest = outcomes[0], outcomes[1 + len(extended) :]
    if gold.status != "ok":
        return gold, rest
    return _denotation(gold, outcomes[1] if extended else None, ordering), rest


def is_stable(sandbox: Sandbox, member: Member, sql: str) -> bool:
    """Whether gold's answer stays the same when its rows are visited in another order."""
    database, denotation = member
    if denotation.row_count == 0:
        return True
    row_limit = sandbox.limits["row_limit"]
    others = sandbox.run(database, [sql], row_limit, reverse=True)
    if database.rows:
        # SQLite never walks backwards under GROUP BY; the same rows, stored in another order, show a chance pick.
        mirrored = tuple((table, width, rows[::-1]) for table, width, rows in database.rows)
        others += sandbox.run(database._replace(key=database.key + "-mirrored", rows=mirrored), [sql], row_limit)
    for other in others:
        difference = compare(denotation, len(other.columns), other.rows) if other.status == "ok" else "rows"
        if difference is not None and (difference != "order" or denotation.certain):
            return False
    return True


def _denotation(plain: Outcome, extended: Outcome | None, ordering: Ordering) -> Denotation:
    width, rows = len(plain.columns), plain.rows
    whole = Denotation(width, [rows], 0, len(rows), False)
    if not ordering.ordered and ordering.limit is None:
        return whole
    # Where SQLite cannot compute the keys as columns, only gold's own order is known.
    uncertain = Denotation(width, [[row] for row in rows], 0, len(rows), ordering.ordered, False)
    if extended is None or extended.status != "ok" or ordering.keys is None:
        return uncertain if ordering.ordered else whole
    names = [name.lower() for name in plain.columns]
    positions = []
    for key in ordering.keys:
        if isinstance(key, str):
            if names.count(key.lower()) != 1:
                return uncertain
            key = names.index(key.lower())
        positions.append(key)
    groups: list[list[tuple]] = []
    last: object = None
    for row in extended.rows:
        key = tuple(row[position] for position in positions)
        if not groups or key != last:
            groups.append([])
        groups[-1].append(row[:width])
        last = key
    total = len(extended.rows)
    start = min(ordering.offset, total)
    stop = total if ordering.limit is None else min(start + ordering.limit, total)
    denotation = Denotation(width, groups, start, stop, ordering.ordered)
    return denotation if compare(denotation, width, rows) is None else uncertain
