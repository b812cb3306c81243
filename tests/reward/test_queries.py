"""Tokens, gate, quoting, canonical text and kinds of queries."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.gate import gate
from reward.queries import canonical_sql, is_volatile, normalise_gold, query_kinds, quoted_value_as_string
from reward.tokens import tokenize

DDL = 'CREATE TABLE t (a INT, b TEXT, "Home team" VARCHAR)'


def test_import_loads_no_torch():
    code = "import reward.judge, reward.audit, sys; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert result.stdout.strip() == "set()"


def test_tokens_carry_kind_and_depth():
    found = [(token.kind, token.text, token.depth) for token in tokenize("f(x) -- c\n= 'it''s' /* y */ AND \"q\"")]
    assert found == [
        ("word", "f", 0),
        ("operator", "(", 0),
        ("word", "x", 1),
        ("operator", ")", 0),
        ("operator", "=", 0),
        ("string", "'it''s'", 0),
        ("word", "AND", 0),
        ("double", '"q"', 0),
    ]


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_tokens_and_what_is_between_them_give_the_text_back(text):
    position, rebuilt = 0, ""
    for token in tokenize(text):
        rebuilt += text[position : token.start] + token.text
        position = token.end
    assert rebuilt + text[position:] == text
    gate(text)  # never raises


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (" SELECT 1 ;; ", ("SELECT 1", None)),
        ("/* x; */ WITH a AS (SELECT 1) SELECT * FROM a", ("WITH a AS (SELECT 1) SELECT * FROM a", None)),
        ("SELECT ';'", ("SELECT ';'", None)),
        ("SELECT 1; SELECT 2", (None, "refused")),
        ("explain select 1", (None, "refused")),
        ("PRAGMA user_version", (None, "refused")),
        ("", (None, "sql_error")),
        (";", (None, "sql_error")),
        ("Sure! SELECT 1", (None, "sql_error")),
        ("SELECT 'open", (None, "sql_error")),
        ("SELECT 1\0", (None, "sql_error")),
        ("SELECT '\ud800'", (None, "sql_error")),
        ("SELECT " + "1," * 60_000 + "1", (None, "sql_error")),
    ],
)
def test_gate(sql, expected):
    gated = gate(sql)
    assert (gated.sql, gated.reason) == expected
    assert (gated.message is None) == (gated.sql is not None)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ('SELECT a FROM t WHERE b = "x"', "SELECT a FROM t WHERE b = 'x'"),
        ('SELECT a  FROM t\nWHERE b="it\'s"', "SELECT a  FROM t\nWHERE b='it''s'"),
        ('SELECT a FROM t WHERE b = "say ""hi"""', "SELECT a FROM t WHERE b = 'say \"hi\"'"),
        ('SELECT "a" FROM "t" WHERE "home team" = "Home"', 'SELECT "a" FROM "t" WHERE "home team" = \'Home\''),
        ('SELECT "u"."a" FROM t AS "u"', 'SELECT "u"."a" FROM t AS "u"'),
        (
            'SELECT COUNT(*) AS "n" FROM t GROUP BY b ORDER BY "n"',
            'SELECT COUNT(*) AS "n" FROM t GROUP BY b ORDER BY "n"',
        ),
        ('SELECT a FROM t WHERE b IN ("x", "y")', "SELECT a FROM t WHERE b IN ('x', 'y')"),
        ('SELECT a FROM t WHERE b LIKE "%x%" AND a > 1', "SELECT a FROM t WHERE b LIKE '%x%' AND a > 1"),
        ("SELECT a FROM t ORDER BY a OFFSET 1", "SELECT a FROM t ORDER BY a OFFSET 1"),
    ],
)
def test_gold_gets_standard_quotes(sql, expected):
    assert normalise_gold(sql, DDL) == expected


@pytest.mark.parametrize(
    ("sql", "changed"),
    [
        ('SELECT a FROM t WHERE b = "x"', True),
        ('SELECT a FROM t WHERE lower(b) <> "x"', True),
        ('SELECT a FROM t WHERE b NOT LIKE "x"', True),
        ('SELECT a FROM t WHERE b IS NOT "x"', True),
        ("SELECT a FROM t WHERE b IN ('y', \"x\")", True),
        ("SELECT a FROM t WHERE b BETWEEN \"x\" AND 'y'", True),
        ("SELECT a FROM t WHERE b NOT BETWEEN 'y' AND \"x\"", True),
        ("SELECT a FROM t WHERE b BETWEEN lower('Y') AND \"x\"", True),
        ("SELECT a FROM t WHERE b IN (-1, (2), lower('Y'), \"x\", 3)", True),
        ('SELECT a FROM t WHERE (b = "x") OR a', True),
        ('SELECT a FROM t WHERE b = "x" COLLATE NOCASE', True),
        ('SELECT a FROM t WHERE b = "x" || 1', False),
        ('SELECT a FROM t WHERE b = "x" + 1', False),
        ('SELECT a FROM t WHERE b IN (SELECT "x")', False),
        ('SELECT a FROM t WHERE b BETWEEN 1 AND 2 AND "x"', False),
        ('SELECT CASE b WHEN "x" THEN 1 END FROM t', False),
        ('SELECT a FROM t WHERE b = lower("x")', False),
        ('SELECT a FROM t WHERE "x" = b', False),
        ('SELECT a FROM t WHERE "x" > 100', False),
        ('SELECT a FROM t WHERE a > "x"', False),
        ('SELECT a FROM t WHERE a = 1 AND "x"', False),
        ('SELECT "x" FROM t', False),
        ('SELECT a FROM t WHERE 1 = "x"', False),
        ('SELECT a FROM t ORDER BY "x"', False),
        ('SELECT max("x") FROM t', False),
        ('SELECT a FROM t WHERE a = "x".b', False),
    ],
)
def test_candidate_quotes_become_strings_only_as_values(sql, changed):
    expected = sql.replace('"x"', "'x'") if changed else sql
    assert quoted_value_as_string(sql, "x") == expected


def test_canonical_sql_folds_form_but_not_meaning():
    same = [
        "SELECT a FROM t WHERE b = 'X'",
        "select  \"A\" from T -- note\n where B='X'",
        "SELECT `a` FROM t WHERE b = 'X';",
    ]
    assert len({canonical_sql(sql) for sql in same}) == 1
    other = [
        "SELECT a FROM t WHERE b = 'x'",
        "SELECT DISTINCT a FROM t WHERE b = 'X'",
        "SELECT a FROM t WHERE b <> 'X'",
    ]
    assert len({canonical_sql(sql) for sql in [*same, *other]}) == 4
    assert canonical_sql('SELECT "order" FROM t') == 'SELECT "order" FROM t'
    # A double-quoted value may be a string, a bare or a backticked word is always a name.
    values = ['SELECT a FROM t WHERE b = "X"', "SELECT a FROM t WHERE b = X", 'SELECT a FROM t WHERE b = "x"']
    assert len({canonical_sql(sql) for sql in values}) == 3
    assert canonical_sql('SELECT "A" FROM t WHERE "B" = "X"') == canonical_sql('SELECT a FROM t WHERE b="X"')
    assert canonical_sql("SELECT ((  FROM\n t ;") == "SELECT ( ( FROM t"
    named = ['SELECT "Home Team" FROM t', "SELECT [home team] FROM T", "SELECT `Home team` FROM t"]
    assert {canonical_sql(sql) for sql in named} == {'SELECT "home team" FROM t'}
    assert canonical_sql('SELECT `a"b``c` FROM t') == 'SELECT "a""b`c" FROM t'
    assert canonical_sql("SELECT a FROM t WHERE b = [Home Team]") == "SELECT a FROM t WHERE b = `home team`"
    assert canonical_sql("SELECT a FROM t WHERE b != 1 AND c == 2") == canonical_sql("SELECT a FROM t WHERE b<>1 AND c=2")


@pytest.mark.parametrize("queries", [
    # (what SQLite runs, what it refuses or answers otherwise)
    ("SELECT LENGTH(name) FROM t", "SELECT LEN(name) FROM t"),
    ("SELECT COALESCE(a, 0) FROM t", "SELECT NVL(a, 0) FROM t"),
    ("SELECT CAST(a AS REAL) / 2 FROM t", "SELECT CAST(a AS DECIMAL) / 2 FROM t"),
    ("SELECT CAST(a AS INTEGER) FROM t", "SELECT a::INTEGER FROM t", "SELECT TRY_CAST(a AS INTEGER) FROM t"),
    ("SELECT a FROM t LIMIT 1", "SELECT a FROM t FETCH FIRST 1 ROWS ONLY"),
    ("SELECT a FROM t WHERE DATE(day) = '2020-01-01'", "SELECT a FROM t WHERE CAST(day AS DATE) = '2020-01-01'"),
    ("SELECT MIN(a), MAX(a) FROM t", "SELECT MIN(a), MAX(a), FROM t"),
    ("SELECT a % 2 FROM t", "SELECT MOD(a, 2) FROM t"),
    ("SELECT a FROM t", "SELECT a FROM t FOR UPDATE"),
    ("SELECT TRUE FROM t", 'SELECT "TRUE" FROM t'),
    ("SELECT CURRENT_DATE FROM t", "SELECT CURRENT_DATE() FROM t", "SELECT [CURRENT_DATE] FROM t"),
    ("SELECT É FROM t", "SELECT é FROM t"),
    ("SELECT a FROM t WHERE a = 1 AND b = 2", "SELECT a FROM t WHERE a = 1AND b = 2"),
    ("SELECT x 'zz' FROM t", "SELECT x'zz' FROM t", "SELECT x'aa' FROM t"),
    ("SELECT a \x0bFROM t", "SELECT a\x0b FROM t", "SELECT/**/\x0ba FROM t"),
    ("SELECT 1 AS x", "SELECT 1\ufeffAS x"),
    ("SELECT a FROM t WHERE b = 'order'", 'SELECT a FROM t WHERE b = "order"', "SELECT a FROM t WHERE b = [order]"),
    ("SELECT a FROM t WHERE b IS c", "SELECT a FROM t WHERE b <=> c"),
])
def test_canonical_sql_tells_apart_what_sqlite_tells_apart(queries):
    assert len({canonical_sql(sql) for sql in queries}) == len(queries)


@pytest.mark.parametrize(
    ("sql", "kinds"),
    [
        ("SELECT a FROM t WHERE b = 'x'", ["simple"]),
        ("SELECT COUNT(*) FROM t", ["aggregate"]),
        ("SELECT DISTINCT a FROM t WHERE b LIKE 'x%' ORDER BY a LIMIT 3", ["distinct", "like", "limit", "order"]),
        ("SELECT b FROM t GROUP BY b HAVING COUNT(*) > 1", ["aggregate", "group", "having"]),
        ("SELECT t.a FROM t JOIN u ON t.a = u.a", ["join"]),
        ("SELECT t.a FROM t, u WHERE t.a = u.a", ["join"]),
        ("SELECT a FROM t WHERE a IN (SELECT a FROM u)", ["nested"]),
        ("WITH x AS (SELECT a FROM t) SELECT a FROM x", ["nested"]),
        ("SELECT a FROM t UNION SELECT a FROM u", ["set"]),
        ("SELECT a FROM t WHERE a BETWEEN 1 AND 2 AND b IS NULL", ["between", "null"]),
    ],
)
def test_query_kinds(sql, kinds):
    assert query_kinds(sql) == kinds


def test_volatile_text():
    assert is_volatile("SELECT date('now')")
    assert is_volatile("SELECT strftime('%Y')")
    assert is_volatile("SELECT datetime()")
    assert is_volatile("SELECT date((SELECT 'Now'))")
    assert not is_volatile("SELECT a FROM t WHERE b = 'now'")
    assert not is_volatile("SELECT date(a) FROM t WHERE b = 'now'")
    assert not is_volatile("SELECT date(a, '+1 day'), strftime('%Y', a) FROM t")
