"""Compares a candidate's rows with gold's answer: bags of rows, order by tie groups, cuts through ties, numbers by
value.
"""

import math
from collections import Counter
from itertools import permutations
from typing import NamedTuple

RELATIVE_TOLERANCE = 1e-9
_EXACT_FROM = 2**53
_MAX_PERMUTED_COLUMNS = 6


class Denotation(NamedTuple):
    """Gold's answer on one database, as the set of row lists that equal it.

    `groups`: rows that may change places, in the order in which the groups must come; one group where order does not
    count. `start`, `stop`: the window that LIMIT and OFFSET cut out of the concatenated groups. `certain` is False
    where the sort keys could not be told and each row stands in a group of its own.

    Example: ages 25, 25, 30 under `ORDER BY age LIMIT 1` are groups [[bob], [dan]] merged to [[bob, dan], [ann]],
    start 0, stop 1: the answers `bob` and `dan` both equal it.
    """

    column_count: int
    groups: list[list[tuple]]
    start: int
    stop: int
    ordered: bool
    certain: bool = True

    @property
    def row_count(self) -> int:
        return self.stop - self.start

    def rows(self) -> list[tuple]:
        """One answer that equals it: the one that gold gave."""
        return [row for group in self.groups for row in group][self.start : self.stop]

    def cuts_tie(self) -> bool:
        """Whether LIMIT or OFFSET cuts through a group, so that the query does not determine its answer."""
        edges = {0}
        for group in self.groups:
            edges.add(max(edges) + len(group))
        return self.start not in edges or self.stop not in edges


def same_cell(left: object, right: object) -> bool:
    """Whether two SQLite values are equal: NULL only to NULL, integer and real by value, text and blob exactly.

    Reals agree within RELATIVE_TOLERANCE; integers, and integers from 2**53 against reals, only exactly.
    """
    if left == right:
        return type(left) is type(right) or not isinstance(left, (str, bytes))
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        return False
    if isinstance(left, int) and isinstance(right, int):
        return False
    for value in (left, right):
        if isinstance(value, int) and abs(value) >= _EXACT_FROM:
            return False
    return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE)


def same_row(left: tuple, right: tuple) -> bool:
    return len(left) == len(right) and all(map(same_cell, left, right))


def unmatched(expected: list[tuple], found: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """The rows that remain of two bags when equal rows are taken from both, one for one."""
    left, right = Counter(expected), Counter(found)
    missing = list((left - right).elements())
    extra = list((right - left).elements())
    if not any(isinstance(cell, float) for row in (*missing, *extra) for cell in row):
        return missing, extra
    # What is left over may differ by rounding only. Rows that agree in everything but numbers are few.
    remaining: dict[tuple, list[tuple]] = {}
    for row in extra:
        remaining.setdefault(_without_numbers(row), []).append(row)
    still_missing = []
    for row in missing:
        near = remaining.get(_without_numbers(row), [])
        match = next((index for index, other in enumerate(near) if same_row(row, other)), None)
        if match is None:
            still_missing.append(row)
        else:
            near.pop(match)
    return still_missing, [row for rows in remaining.values() for row in rows]


def compare(gold: Denotation, columns: int, rows: list[tuple]) -> str | None:
    """None where the rows equal gold's answer, else what differs first: columns, duplicates, rows or order."""
    if columns != gold.column_count:
        return "columns"
    if len(rows) == gold.row_count and _fills_window(gold, rows):
        return None
    if gold.ordered and len(rows) == gold.row_count and _fills_window(_unordered(gold), rows):
        return "order"
    if _distinct(rows) == _distinct(gold.rows()):
        return "duplicates"
    return "rows"


def column_orders(gold: Denotation, rows: list[tuple]) -> set[tuple[int, ...]]:
    """The orders of columns, other than the given one, in which the rows would equal gold's answer."""
    width = gold.column_count
    if not 2 <= width <= _MAX_PERMUTED_COLUMNS or len(rows) != gold.row_count:
        return set()
    found = set()
    for order in permutations(range(width)):
        if order != tuple(range(width)) and _fills_window(gold, [tuple(row[index] for index in order) for row in rows]):
            found.add(order)
    return found


def _fills_window(gold: Denotation, rows: list[tuple]) -> bool:
    """Whether each group's share of the window holds rows of that group, and a whole group all of them."""
    begin = 0
    for group in gold.groups:
        end = begin + len(group)
        first, last = max(begin, gold.start), min(end, gold.stop)
        if first < last:
            missing, extra = unmatched(group, rows[first - gold.start : last - gold.start])
            if extra or (missing and last - first == len(group)):
                return False
        begin = end
    return True


def _unordered(gold: Denotation) -> Denotation:
    """Gold with the order inside its window forgotten; rows outside the window only where a tie lets them in."""
    rows: list[tuple] = []
    begin = 0
    for group in gold.groups:
        if begin < gold.stop and begin + len(group) > gold.start:
            rows += group
        begin += len(group)
    return Denotation(gold.column_count, [rows], 0, gold.row_count, False)


def _without_numbers(row: tuple) -> tuple:
    return tuple(None if isinstance(cell, (int, float)) else (cell,) for cell in row)


def _distinct(rows: list[tuple]) -> set[tuple]:
    return {tuple(float(f"{cell:.9g}") if isinstance(cell, float) else cell for cell in row) for row in rows}
