"""Compares a candidate's rows with gold's answer: bags of rows, order by tie groups, cuts through ties, numbers by
value.
"""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice, permutations
from typing import NamedTuple

RELATIVE_TOLERANCE = 1e-9
_EXACT_FROM = 2**53
_MAX_PAIRS = 200_000
_FEWEST_ORDERS = 6


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
        end = 0
        for group in self.groups:
            end += len(group)
            edges.add(end)
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
    missing, extra = left - right, right - left
    if any(isinstance(cell, float) for row in (*missing, *extra) for cell in row):
        # What is left over may differ by rounding only, and then nearly always agrees in eight digits.
        for digits in (8, 0):
            _take_nearly_equal(missing, extra, digits)
    return list(missing.elements()), list(extra.elements())


def _take_nearly_equal(missing: Counter, extra: Counter, digits: int) -> None:
    """Takes rows that agree within the tolerance from both bags; looks only at rows alike in everything but numbers,
    and in `digits` digits of these unless it is 0.
    """
    alike: dict[tuple, list[tuple]] = {}
    for row in extra:
        alike.setdefault(_outline(row, digits), []).append(row)
    pairs = 0
    for row in list(missing):
        for other in alike.get(_outline(row, digits), ()):
            pairs += 1
            if extra[other] and same_row(row, other):
                taken = min(missing[row], extra[other])
                missing[row] -= taken
                extra[other] -= taken
                if not missing[row]:
                    break
        if pairs > _MAX_PAIRS:
            return  # thousands of rows that are all nearly but not quite equal


def _outline(row: tuple, digits: int) -> tuple:
    return tuple(
        (cell,) if not isinstance(cell, (int, float)) else float(f"{cell:.{digits}g}") if digits else None
        for cell in row
    )


def compare(gold: Denotation, columns: int, rows: list[tuple]) -> str | None:
    """None where the rows equal gold's answer, else what differs first: columns, duplicates, rows or order."""
    if columns != gold.column_count:
        return "columns"
    if len(rows) == gold.row_count and _fills_window(gold, rows):
        return None
    if gold.ordered and len(rows) == gold.row_count and _fills_window_in_any_order(gold, rows):
        return "order"
    if _distinct(rows) == _distinct(gold.rows()):
        return "duplicates"
    return "rows"


def column_orders(gold: Denotation, rows: list[tuple]) -> set[tuple[int, ...]]:
    """The orders of columns, other than the given one, in which the rows would equal gold's answer."""
    width = gold.column_count
    if width < 2 or not rows or len(rows) != gold.row_count:
        return set()
    found = set()
    tries = max(_FEWEST_ORDERS, _MAX_PAIRS // (len(rows) * width))
    for order in islice(_possible_orders(gold, rows), tries):
        if order != tuple(range(width)) and _fills_window(gold, [tuple(row[index] for index in order) for row in rows]):
            found.add(order)
    return found


def _possible_orders(gold: Denotation, rows: list[tuple]) -> Iterator[tuple[int, ...]]:
    """Orders of columns in which each column of the rows holds what gold's column holds; all where a tie is cut."""
    width = gold.column_count
    if gold.cuts_tie():
        return permutations(range(width))
    expected = [[(row[index],) for row in gold.rows()] for index in range(width)]
    found = [[(row[index],) for row in rows] for index in range(width)]
    fitting = [[there for there in range(width) if not unmatched(mine, found[there])[1]] for mine in expected]

    def extend(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == width:
            yield order
            return
        for index in fitting[len(order)]:
            if index not in order:
                yield from extend((*order, index))

    return extend(())


def _fills_window(gold: Denotation, rows: list[tuple]) -> bool:
    """Whether each group's share of the window holds rows of that group; as many rows as the window has."""
    begin = 0
    for group in gold.groups:
        end = begin + len(group)
        first, last = max(begin, gold.start), min(end, gold.stop)
        if first < last:
            _, extra = unmatched(group, rows[first - gold.start : last - gold.start])
            if extra:
                return False
        begin = end
    return True


def _fills_window_in_any_order(gold: Denotation, rows: list[tuple]) -> bool:
    """Whether the rows are one valid answer put into another order."""
    whole: list[tuple] = []
    cut: list[tuple[list[tuple], int]] = []
    begin = 0
    for group in gold.groups:
        end = begin + len(group)
        share = min(end, gold.stop) - max(begin, gold.start)
        if share == len(group):
            whole += group
        elif share > 0:
            cut.append((group, share))
        begin = end
    missing, rest = unmatched(whole, rows)
    open_rows = [row for group, _ in cut for row in group]
    enough = all(len(rest) - len(unmatched(group, rest)[1]) >= share for group, share in cut)
    return not missing and enough and not unmatched(open_rows, rest)[1]


def _distinct(rows: list[tuple]) -> set[tuple]:
    return {tuple(_rounded(cell) for cell in row) for row in rows}


def _rounded(cell: object) -> object:
    """Numbers that same_cell takes as equal are mostly equal after this; only a reason hangs on it."""
    return float(f"{cell:.12g}") if isinstance(cell, float) else cell
