"""Comparison by hand-made answers."""

import time

import pytest

from reward.compare import Denotation, column_orders, compare, same_cell, unmatched


def bag(*rows):
    return Denotation(len(rows[0]), [list(rows)], 0, len(rows), False)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (None, None, True),
        (None, 0, False),
        (None, "None", False),
        (1, 1.0, True),
        (1, "1", False),
        ("A", b"A", False),
        ("a", "A", False),
        (0.1 + 0.2, 0.3, True),
        (1.0, 1.0 + 2e-9, False),
        (1000000, 1000000.0005, True),
        (1000000, 1000000.002, False),
        (2**53 + 1, float(2**53), False),
        (2**53, float(2**53), True),
        (2**62, 2**62 + 1, False),
        (float("inf"), float("inf"), True),
    ],
)
def test_cells(left, right, equal):
    assert same_cell(left, right) is equal
    assert same_cell(right, left) is equal


def test_bags():
    gold = bag((1, "a"), (2, "b"), (2, "b"))
    assert compare(gold, 2, [(2, "b"), (1, "a"), (2.0, "b")]) is None
    assert compare(gold, 2, [(1, "a"), (2, "b")]) == "duplicates"
    assert compare(gold, 2, [(1, "a"), (1, "a"), (2, "b")]) == "duplicates"
    assert compare(gold, 2, [(1, "a"), (2, "b"), (3, "b")]) == "rows"
    assert compare(gold, 3, [(1, "a", 0)]) == "columns"
    assert compare(Denotation(1, [], 0, 0, False), 2, []) == "columns"


def test_rounding_is_matched_row_by_row():
    missing, extra = unmatched([(0.1 + 0.2, 1), (0.3, 2)], [(0.3, 1), (0.1 + 0.2, 2)])
    assert missing == extra == []
    missing, extra = unmatched([(0.3, 1), (0.3, 1)], [(0.1 + 0.2, 1), (0.4, 1)])
    assert missing == [(0.3, 1)] and extra == [(0.4, 1)]


def test_order_by_tie_groups():
    gold = Denotation(1, [[("a",), ("b",)], [("c",)]], 0, 3, True)
    assert compare(gold, 1, [("b",), ("a",), ("c",)]) is None
    assert compare(gold, 1, [("a",), ("c",), ("b",)]) == "order"
    assert compare(gold, 1, [("a",), ("b",), ("c",), ("c",)]) == "duplicates"
    assert compare(gold, 1, [("a",), ("b",), ("d",)]) == "rows"


def test_limit_may_cut_a_tie_anywhere():
    # ORDER BY ... LIMIT 2 OFFSET 1 over the groups {a}, {b, c, d}: any two of b, c, d.
    gold = Denotation(1, [[("a",)], [("b",), ("c",), ("d",)]], 1, 3, True)
    assert gold.cuts_tie() and gold.row_count == 2
    assert compare(gold, 1, [("d",), ("b",)]) is None
    assert compare(gold, 1, [("d",), ("d",)]) == "rows"
    assert compare(gold, 1, [("a",), ("b",)]) == "rows"
    assert not Denotation(1, [[("a",)], [("b",)]], 0, 1, True).cuts_tie()


def test_column_orders():
    gold = bag((1, "a", 3), (4, "b", 6))
    assert column_orders(gold, [(3, "a", 1), (6, "b", 4)]) == {(2, 1, 0)}
    assert column_orders(gold, [(3, "a", 1), (4, "b", 6)]) == set()


def test_many_nearly_equal_rows_do_not_take_long():
    # 20,000 rows that agree in eight digits and not within the tolerance would be 400 million pairs.
    gold = Denotation(1, [[(1 + number * 1e-13,) for number in range(20_000)]], 0, 20_000, False)
    start = time.perf_counter()
    assert compare(gold, 1, [(1.000000004 + number * 1e-13,) for number in range(20_000)]) == "rows"
    assert compare(gold, 1, [(1 + number * 1e-13 + 1e-12,) for number in range(20_000)]) is None
    assert time.perf_counter() - start < 10


def test_many_equal_columns_do_not_take_long():
    rows = [(number % 2,) * 9 for number in range(500)]
    start = time.perf_counter()
    assert column_orders(bag(*rows), rows)
    assert time.perf_counter() - start < 10


def test_rows_of_another_group_are_not_an_order():
    # ORDER BY ... LIMIT 2 OFFSET 1 over {a, b}, {c, d}: one of each; both of the first group is no answer in any order.
    gold = Denotation(1, [[("a",), ("b",)], [("c",), ("d",)]], 1, 3, True)
    assert compare(gold, 1, [("b",), ("d",)]) is None
    assert compare(gold, 1, [("d",), ("b",)]) == "order"
    assert compare(gold, 1, [("a",), ("b",)]) == "rows"


def test_reasons_keep_large_integers_apart():
    assert compare(bag((10**12,)), 1, [(10**12 + 1,)]) == "rows"
    assert compare(bag((0.3,), (0.3,)), 1, [(0.1 + 0.2,)]) == "duplicates"
