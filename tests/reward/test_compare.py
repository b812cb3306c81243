"""Comparison by hand-made answers, and the reading of ORDER BY and LIMIT."""

import pytest

from reward.compare import Denotation, column_orders, compare, same_cell, unmatched
from reward.ties import Ordering, read_ordering


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


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t", Ordering(False)),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 1)", Ordering(False)),
        ("SELECT a FROM t WHERE b = 'order by'", Ordering(False)),
        ("SELECT a FROM t LIMIT 3", Ordering(False, "SELECT a FROM t", (), 3, 0)),
        ("SELECT a, b FROM t ORDER BY b DESC", Ordering(True, "SELECT a, b FROM t ORDER BY b DESC", (1,))),
        (
            "SELECT a FROM t ORDER BY b, c LIMIT 2",
            Ordering(True, "SELECT a , b, c FROM t ORDER BY b, c", (-2, -1), 2, 0),
        ),
        ("SELECT a FROM t ORDER BY 1 LIMIT 4, 2", Ordering(True, "SELECT a FROM t ORDER BY 1", (0,), 2, 4)),
        ("SELECT a FROM t ORDER BY a LIMIT 2 OFFSET 4", Ordering(True, "SELECT a FROM t ORDER BY a", (0,), 2, 4)),
        ("SELECT * FROM t ORDER BY b", Ordering(True, "SELECT * FROM t ORDER BY b", ("b",))),
        ("SELECT f(a) AS n FROM t ORDER BY n", Ordering(True, "SELECT f(a) AS n FROM t ORDER BY n", ("n",))),
        ("SELECT DISTINCT a FROM t ORDER BY b", Ordering(True, "SELECT DISTINCT a FROM t ORDER BY b", None)),
        (
            "WITH x AS (SELECT 1 AS a) SELECT a FROM x ORDER BY -a",
            Ordering(True, "WITH x AS (SELECT 1 AS a) SELECT a , -a FROM x ORDER BY -a", (-1,)),
        ),
        (
            "SELECT g FROM t GROUP BY g ORDER BY COUNT(*) DESC LIMIT 1",
            Ordering(True, "SELECT g , COUNT(*) FROM t GROUP BY g ORDER BY COUNT(*) DESC", (-1,), 1, 0),
        ),
    ],
)
def test_read_ordering(sql, expected):
    assert read_ordering(sql) == expected
