"""The reading of ORDER BY and LIMIT, and the choices that gold leaves open, on SQLite itself."""

import sqlite3

import pytest

from reward.sandbox import Outcome
from reward.stability import open_choices
from reward.ties import Ordering, read_denotation, read_ordering

SCRIPT = """
CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c INT, d REAL);
INSERT INTO t VALUES (1, 'x', 5, 0.3), (2, 'X', 5, 0.30000000000000004), (3, 'y', 7, 1.5), (4, 'Z ', NULL, 1.5);
INSERT INTO t VALUES (5, 'Z', 7, 2);
"""


@pytest.fixture(scope="module")
def run():
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCRIPT)

    def answer(sql: str) -> Outcome:
        try:
            cursor = connection.execute(sql)
        except sqlite3.Error as error:
            return Outcome("sql_error", message=str(error))
        rows = cursor.fetchall()
        return Outcome("ok", tuple(column[0] for column in cursor.description), rows, len(rows))

    yield answer
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t",
        "SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 1)",
        "SELECT a FROM t WHERE b = 'order by'",
        "SELECT ROW_NUMBER() OVER (ORDER BY a) FROM t",
        'SELECT a AS "order by" FROM t',
        "WITH x AS (SELECT a FROM t ORDER BY a LIMIT 1) SELECT a FROM x",
    ],
)
def test_no_order_and_no_cut(sql):
    assert read_ordering(sql) == Ordering(False)


@pytest.mark.parametrize(
    ("sql", "groups", "window"),
    [
        ("SELECT a FROM t ORDER BY c", [[4], [1, 2], [3, 5]], (0, 5)),
        ("SELECT a FROM t ORDER BY c DESC NULLS FIRST", [[4], [3, 5], [1, 2]], (0, 5)),
        ("SELECT a FROM t ORDER BY c, a DESC", [[4], [2], [1], [5], [3]], (0, 5)),
        ("SELECT a, c FROM t ORDER BY 2 LIMIT 2", [[4], [1, 2], [3, 5]], (0, 2)),
        ("SELECT a, c FROM t ORDER BY (2), +1 LIMIT 2", [[4], [1], [2], [3], [5]], (0, 2)),
        ("SELECT a FROM t ORDER BY c LIMIT 2 OFFSET 1", [[4], [1, 2], [3, 5]], (1, 3)),
        ("SELECT a FROM t ORDER BY c LIMIT 2, 9", [[4], [1, 2], [3, 5]], (2, 5)),
        ("SELECT a FROM t ORDER BY c LIMIT -1 OFFSET 4", [[4], [1, 2], [3, 5]], (4, 5)),
        ("SELECT a FROM t ORDER BY c LIMIT (SELECT COUNT(*) FROM t) - 3", [[4], [1, 2], [3, 5]], (0, 2)),
        ("SELECT a FROM t ORDER BY c LIMIT '1' OFFSET 1.0", [[4], [1, 2], [3, 5]], (1, 2)),
        ("SELECT a FROM t ORDER BY b COLLATE NOCASE", [[1, 2], [3], [5], [4]], (0, 5)),
        ("SELECT a FROM t ORDER BY b COLLATE RTRIM", [[2], [4, 5], [1], [3]], (0, 5)),
        ("SELECT a FROM t ORDER BY d", [[1, 2], [3, 4], [5]], (0, 5)),
        ("SELECT a, -c AS n FROM t ORDER BY n", [[4], [3, 5], [1, 2]], (0, 5)),
        ("SELECT a, -c n FROM t ORDER BY n", [[4], [3, 5], [1, 2]], (0, 5)),
        ("SELECT a, c * 2 AS n FROM t ORDER BY -n", [[4], [3, 5], [1, 2]], (0, 5)),
        ("SELECT a, a AS c FROM t ORDER BY c + 0", [[4], [1, 2], [3, 5]], (0, 5)),
        ("SELECT a, c AS 'n' FROM t ORDER BY \"n\"", [[4], [1, 2], [3, 5]], (0, 5)),
        ("SELECT t.a FROM t ORDER BY t.c", [[4], [1, 2], [3, 5]], (0, 5)),
        ("SELECT * FROM t ORDER BY c", [[4], [1, 2], [3, 5]], (0, 5)),
        ("SELECT *, -c AS n FROM t ORDER BY n", [[4], [3, 5], [1, 2]], (0, 5)),
        ("SELECT a FROM t ORDER BY 'c'", [[1, 2, 3, 4, 5]], (0, 5)),
        ("SELECT a FROM t ORDER BY NULL LIMIT 2", [[1, 2, 3, 4, 5]], (0, 2)),
        ("SELECT a IS DISTINCT FROM 1, b FROM t ORDER BY 1", [[0], [1, 1, 1, 1]], (0, 5)),
        ("SELECT MIN(a) FROM t GROUP BY c ORDER BY COUNT(*) DESC", [[1, 3], [4]], (0, 3)),
        ("SELECT MIN(a) FROM t GROUP BY c HAVING c > 0 ORDER BY MAX(d), c LIMIT 1", [[1], [3]], (0, 1)),
        ("SELECT DISTINCT c FROM t ORDER BY -c", [[None], [7], [5]], (0, 3)),
        (
            "SELECT a FROM t WHERE a < 3 UNION SELECT c FROM t ORDER BY c DESC LIMIT 2",
            [[7], [5], [2], [1], [None]],
            (0, 2),
        ),
        ("SELECT a AS n FROM t WHERE a < 3 UNION ALL SELECT 1 ORDER BY n", [[1, 1], [2]], (0, 3)),
        ("SELECT * FROM (SELECT a FROM t) UNION ALL SELECT 5 ORDER BY a", [[1], [2], [3], [4], [5, 5]], (0, 6)),
        ("WITH x AS (SELECT * FROM t ORDER BY d) SELECT a FROM x ORDER BY -c", [[4], [3, 5], [1, 2]], (0, 5)),
        ("SELECT a FROM t WINDOW w AS (ORDER BY c) ORDER BY RANK() OVER w", [[4], [1, 2], [3, 5]], (0, 5)),
        ("SELECT 1 WHERE 1 ORDER BY 1", [[1]], (0, 1)),
        ("SELECT a FROM t LIMIT 2", [[1, 2, 3, 4, 5]], (0, 2)),
        ("SELECT a FROM t LIMIT 0", [[1, 2, 3, 4, 5]], (0, 0)),
        ("SELECT a FROM t ORDER BY c LIMIT 9 -- LIMIT 1", [[4], [1, 2], [3, 5]], (0, 5)),
    ],
)
def test_groups_and_window(sql, groups, window, run):
    ordering = read_ordering(sql)
    found = read_denotation(run(sql), [run(text) for text in ordering.needed], ordering)
    assert found.certain and found.ordered == ("ORDER BY" in sql)
    assert [sorted((row[0] for row in group), key=repr) for group in found.groups] == [
        sorted(group, key=repr) for group in groups
    ]
    assert (found.start, found.stop) == window


def test_distinct_rows_with_several_keys_are_uncertain(run):
    sql = "SELECT DISTINCT c FROM t WHERE c > 0 ORDER BY a"
    ordering = read_ordering(sql)
    assert not read_denotation(run(sql), [run(text) for text in ordering.needed], ordering).certain


@pytest.mark.parametrize(
    ("sql", "open_"),
    [
        ("SELECT c, b FROM t GROUP BY c", True),
        ("SELECT c, COUNT(*) FROM t GROUP BY c ORDER BY a", True),
        ("SELECT b, COUNT(*) FROM t", True),
        ("SELECT b FROM (SELECT b FROM t ORDER BY c DESC LIMIT 1)", True),
        ("SELECT b FROM t WHERE a IN (SELECT a FROM t LIMIT 2)", True),
        ("SELECT b FROM t WHERE a = (SELECT a FROM t WHERE c = 7)", True),
        ("SELECT b, (SELECT u.a FROM t u WHERE u.c = t.c) FROM t", True),
        ("SELECT DISTINCT c FROM t ORDER BY a DESC", True),
        ("SELECT DISTINCT c FROM t WHERE c > 0 ORDER BY a DESC", False),
        ("SELECT c, COUNT(*), MAX(b) FROM t GROUP BY 1 ORDER BY 2", False),
        ("SELECT a, b FROM t GROUP BY a", False),
        ("SELECT b FROM t WHERE a = (SELECT MAX(a) FROM t)", False),
        ("SELECT b FROM (SELECT b FROM t ORDER BY a LIMIT 2)", False),
        ("SELECT b FROM t WHERE a IN (SELECT a FROM t WHERE c = 7)", False),
        ("SELECT b FROM t WHERE a = (SELECT a FROM t WHERE b = 'y')", False),
        ("SELECT b, MAX(a) FROM t", False),
    ],
)
def test_open_choices_change_an_answer_that_depends_on_them(sql, open_, run):
    rows = [run(text).rows for text in (sql, *open_choices(sql))]
    assert any(other != rows[0] for other in rows[1:]) == open_
