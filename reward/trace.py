"""What a verdict keeps as evidence: a few rows that differ, small enough to be stored with a pair, and a hash of all
rows.
"""

import hashlib
import math

from reward.compare import Denotation, unmatched

DIGEST_BYTES = 32  # of result_digest
_TRACE_ROWS = 3
_TRACE_CELL_CHARACTERS = 80


def first_differences(gold: Denotation, rows: list[tuple], difference: str) -> dict:
    """A few rows that a person can compare: those that only one side has, or where the order parts; and how many rows only
    gold (`missing`) or only the query (`extra`) has among those that are here.
    """
    expected = gold.rows()
    if difference == "order":
        pairs = zip(expected, rows)
        start = next((index for index, (left, right) in enumerate(pairs) if left != right), 0)
        left, right = expected[start:], rows[start:]
    else:
        left, right = unmatched(expected, rows)
    counts = {} if difference == "order" else {"missing": len(left), "extra": len(right)}
    return {"gold_only": _shown(left), "candidate_only": _shown(right), **counts}


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


def result_digest(width: int, rows: list[tuple], row_count: int, ordered: bool) -> bytes:
    """SHA-256 of a result, of which `rows` may be the first ones: equal rows give equal bytes, and their order counts
    where gold's does.
    """
    kinds = {cell.__class__ for row in rows for cell in row}
    lines = list(map(repr, rows)) if float not in kinds else [repr(tuple(map(_hashed_cell, row))) for row in rows]
    if not ordered:
        lines.sort()
    text = f"{row_count}:{width}:" + "\n".join(lines)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _hashed_cell(cell: object) -> object:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    return float(f"{cell:.9g}") if isinstance(cell, float) else cell
