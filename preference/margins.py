"""How wrong a query is, by the judge's reason and trace: what the column `margin` of a pair is made of. No ML import."""

from __future__ import annotations

import json

# It gives no result at all: sql_error, refused, timeout, memory, rows_limit, abstained.
NO_RESULT = 1.0
# A result of another width: no row of it can be right.
WRONG_COLUMNS = 0.75
# A result with gold's columns: from the least (the right rows in another order) to the most (no row in common).
LEAST_ROWS, MOST_ROWS = 0.25, 0.7
# Reasons of queries that gave a result, which was not gold's.
RAN = ("columns", "rows", "duplicates", "order")
_SHOWN_ROWS = 3  # of each side, at most, in a trace (reward.trace)


def margin_of(chosen: dict, rejected: dict) -> float:
    """How much more wrong the rejected side is than the chosen one, 0 to 1; 0 where it is less wrong. Sides: {verdict, reason,
    trace}, trace may be missing.
    """
    apart = [wrongness(side["verdict"], side["reason"], side.get("trace")) for side in (rejected, chosen)]
    return round(max(0.0, apart[0] - apart[1]), 4)


def wrongness(verdict: str, reason: str | None, trace: str | None) -> float:
    """How wrong a query is, 0 (correct) to 1 (no result); `trace` is the judge's, as JSON.

    correct 0; reason `order` 0.25; `rows` and `duplicates` 0.25 + 0.45 x the share of rows that differ; `columns` 0.75; any
    other reason 1. So every query with wrong rows is less wrong than one with wrong columns, and that less than an error.
    Example: gold has 4 rows, the query 5, three of them gold's: 1 + 2 of 9 rows differ, 0.25 + 0.45 x 3 / 9 = 0.4.
    """
    if verdict == "correct":
        return 0.0
    if reason not in RAN:
        return NO_RESULT
    if reason == "columns":
        return WRONG_COLUMNS
    share = 0.0 if reason == "order" else share_of_rows(_read(trace))
    return round(LEAST_ROWS + (MOST_ROWS - LEAST_ROWS) * share, 4)


def _read(trace: str | None) -> dict:
    """A trace as the judge writes it; {} for anything else: pairs from elsewhere have texts of other kinds."""
    try:
        found = json.loads(trace or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def share_of_rows(trace: dict) -> float:
    """The share of gold's and the query's rows, as bags, that the other side does not have; 0 to 1.

    A trace counts the rows of both sides (gold_rows, rows), those that only one of them has (missing, extra), and shows up to
    three of these. The second counts are of use where they fit the first: of a result that was cut not all rows were there.
    Without them, fewer than three shown are all there are, and the other side's follow from the counts; where both show three,
    more may differ: then all are taken to, as in a trace without counts.
    """
    gold, found = trace.get("gold_rows"), trace.get("rows")
    if not isinstance(gold, int) or not isinstance(found, int) or not gold + found:
        return 1.0
    missing, extra = trace.get("missing"), trace.get("extra")
    if isinstance(missing, int) and isinstance(extra, int) and extra - missing == found - gold:
        return min(1.0, max(0.0, (missing + extra) / (gold + found)))
    missing, extra = len(trace.get("gold_only") or ()), len(trace.get("candidate_only") or ())
    if min(missing, extra) >= _SHOWN_ROWS:
        return 1.0
    if missing < _SHOWN_ROWS:
        extra = missing + found - gold
    else:
        missing = extra + gold - found
    return min(1.0, max(0.0, (missing + extra) / (gold + found)))
