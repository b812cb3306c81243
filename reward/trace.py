"""What a verdict keeps as evidence: a few rows that differ, small enough to be stored with a pair, and a hash of all
rows.
"""

import math

from reward.compare import Denotation, unmatched
from reward.sandbox import Outcome

_TRACE_ROWS = 3
_TRACE_CELL_CHARACTERS = 80


def first_differences(gold: Denotation, rows: list[tuple], difference: str) -> dict:
    """A few rows that a person can compare: those that only one side has, or where the order parts."""
    expected = gold.rows()
    if difference == "order":
        pairs = zip(expected, rows)
        start = next((index for index, (left, right) in enumerate(pairs) if left != right), 0)
        left, right = expected[start:], rows[start:]
    else:
        left, right = unmatched(expected, rows)
    return {"gold_only": _shown(left), "candidate_only": _shown(right)}


def _shown(rows: list[tuple]) -> list[list]:
    shown = []
    for row in rows[:_TRACE_ROWS]:
        shown.append([_shown_cell(cell) for cell in row])
    return shown


def _shown_cell(cell: object) -> object:
    if isinstance(cell, bytes):
        return f"x'{cell.hex()}'"[:_TRACE_CELL_CHARACTERS]
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)  # JSON has no infinity
    return cell[:_TRACE_CELL_CHARACTERS] if isinstance(cell, str) else cell


def result_bytes(outcome: Outcome, ordered: bool) -> bytes:
    """The rows as bytes for the result hash: equal rows give equal bytes, order counts where gold's does."""
    lines = [repr(tuple(_hashed_cell(cell) for cell in row)) for row in outcome.rows]
    if not ordered:
        lines.sort()
    return f"{outcome.row_count}:{len(outcome.columns)}:{chr(10).join(lines)};".encode("utf-8", "surrogatepass")


def _hashed_cell(cell: object) -> object:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    return float(f"{cell:.9g}") if isinstance(cell, float) else cell
