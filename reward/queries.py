"""What a query says, read from its text: quoting made standard, one form for equal texts, and the kinds of query it
is.
"""

import itertools
import re
import string

import apsw
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from reward.tokens import Token, tokenize, unquote

_EQUALITIES = ("=", "==", "<>", "!=", "LIKE", "GLOB", "IS")
# Words after which a double-quoted text is a name, whatever the schema says.
_NAME_FOLLOWS = ("AS", "FROM", "JOIN", "INTO", "TABLE", "WITH", "RECURSIVE", "COLLATE", "BY")
KEYWORDS = frozenset(
    "ALL AND AS ASC BETWEEN BY CASE COLLATE CROSS DESC DISTINCT ELSE END ESCAPE EXCEPT EXISTS FROM FULL GLOB"
    " GROUP HAVING IN INNER INTERSECT IS ISNULL JOIN LEFT LIKE LIMIT MATCH NATURAL NOT NOTNULL NULL OFFSET ON"
    " OR ORDER OUTER REGEXP RIGHT SELECT THEN UNION USING VALUES WHEN WHERE WITH".split()
)
_NOT_BARE = apsw.keywords | {"TRUE", "FALSE"}  # words that SQLite reads otherwise without quotes
_SAME_OPERATORS = {"!=": "<>", "==": "="}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # SQLite folds the case of ASCII letters alone
_DATE_FUNCTIONS = ("DATE", "TIME", "DATETIME", "JULIANDAY", "UNIXEPOCH", "STRFTIME", "TIMEDIFF")
# What could be a call of one of them, a comment before the parenthesis included.
_DATE_CALL = re.compile(rf"(?:{'|'.join(_DATE_FUNCTIONS).lower()})[\s\ufeff]*(?:\(|/\*|--)")
# A bare column and = or LIKE before a value; what may follow it.
_COMPARED = re.compile(r"(?:^|[\s(,.])([A-Za-z_]\w*)(?:\s*(?:=|!=|<>)|\s+LIKE)\s*\Z", re.ASCII | re.IGNORECASE)
_ROW_IDS = {"rowid", "oid", "_rowid_"}
_AFTER_VALUE = re.compile(r"\s*(?:\Z|\)|[A-Za-z])")
_MISSING_COLUMN = re.compile(r'no such column: "((?:[^"]|"")*)"')
_KINDS = (
    ("aggregate", exp.AggFunc),
    ("between", exp.Between),
    ("distinct", exp.Distinct),
    ("group", exp.Group),
    ("having", exp.Having),
    ("join", exp.Join),
    ("like", exp.Like),
    ("limit", exp.Limit),
    ("null", exp.Null),
    ("order", exp.Order),
    ("set", exp.SetOperation),
)


def parse(sql: str) -> exp.Expression | None:
    """sqlglot's tree of one SQLite query, or None where sqlglot cannot read it."""
    try:
        return sqlglot.parse_one(sql, dialect="sqlite")
    except (SqlglotError, RecursionError, ValueError):
        return None


def canonical_sql(sql: str) -> str:
    """One text for queries that differ only in white space, case of keywords and bare names, comments, quoting of
    names, != for <> and == for =.

    Two queries with the same canonical text have the same rows; the reverse is not claimed. Only SQLite's own tokens are
    read: a parser that knows other dialects makes equal what SQLite tells apart, LEN(a) and LENGTH(a) for one.
    """
    if "\x0b" in sql or "\ufeff" in sql:  # white space in some places and an error in others
        return sql.strip(" \t\n\f\r;")
    tokens = tokenize(sql)
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    text = ""
    for position, token in enumerate(tokens):
        space = "" if not position or _grown_together(tokens[position - 1], token) else " "
        text += space + _folded(tokens, position)
    return text


def _grown_together(left: Token, right: Token) -> bool:
    """Whether SQLite refuses two tokens without a space between them, as here, and takes them with one: 1AND, x'zz'."""
    return left.end == right.start and ((left.kind == "number" and right.kind == "word")
                                        or (left.upper == "X" and right.kind == "string"))


def _folded(tokens: list[Token], position: int) -> str:
    """A token as the canonical text has it. A double-quoted text that may be a string keeps its quotes and its case; a name
    that SQLite reads otherwise without quotes has double ones, or backticks where those could make a string of it."""
    token = tokens[position]
    word = unquote(token)
    if token.kind == "word":
        return word.upper() if word.isascii() and word.upper() in apsw.keywords else word.translate(_LOWER)
    if token.kind == "name" or (token.kind == "double" and not _is_value(tokens, position)):
        word = word.translate(_LOWER)
        if re.fullmatch(r"[a-z_]\w*", word, re.ASCII) and word.upper() not in _NOT_BARE:
            return word
        mark = "`" if _is_value(tokens, position) else '"'
        return mark + word.replace(mark, 2 * mark) + mark
    return _SAME_OPERATORS.get(token.text, token.text)


def query_kinds(sql: str) -> list[str]:
    """The kinds of a query, sorted: aggregate, between, distinct, group, having, join, like, limit, nested, null,
    order, set.

    `["simple"]` when it is none of them. A query that names two tables in FROM is a join; nested means a SELECT
    inside another one, common table expressions included; the sides of a set operation alone are not nested.
    """
    tree = parse(sql)
    if tree is None:
        words = {token.upper for token in tokenize(sql) if token.kind == "word"}
        kinds = {name for name, _ in _KINDS if name.upper() in words}
        return sorted(kinds) or ["simple"]
    kinds = {name for name, kind in _KINDS if tree.find(kind)}
    if any(not isinstance(select.parent, (exp.SetOperation, type(None))) for select in tree.find_all(exp.Select)):
        kinds.add("nested")
    return sorted(kinds) or ["simple"]


def schema_columns(schema_ddl: str) -> set[str]:
    """Lower-cased names of all columns in CREATE TABLE text."""
    names = set()
    tokens = tokenize(schema_ddl)
    for before, token in zip(tokens, tokens[1:]):
        starts_definition = before.text in ("(", ",") and token.depth == 1
        if starts_definition and token.kind in ("word", "double", "name", "string"):
            names.add(unquote(token).lower())
    return names


def normalise_gold(sql: str, schema_ddl: str) -> str:
    """Gold with its double-quoted literals in standard single quotes; every other byte stays.

    A double-quoted text stays a name where it is a column of `schema_ddl`, an alias of the query, part of a dotted
    name, or stands where only a name can (after AS, FROM, JOIN).

    >>> normalise_gold('SELECT a FROM t WHERE b = "it\\'s" AND "a" > 1', "CREATE TABLE t (a INT, b TEXT)")
    'SELECT a FROM t WHERE b = \\'it\\'\\'s\\' AND "a" > 1'
    """
    tokens = tokenize(sql)
    if not any(token.kind == "double" for token in tokens):
        return sql
    names = schema_columns(schema_ddl)
    for position, token in enumerate(tokens):
        if position and token.kind in ("double", "word", "name") and _names_something(tokens, position):
            names.add(unquote(token).lower())
    literals = [
        token
        for position, token in enumerate(tokens)
        if token.kind == "double" and unquote(token).lower() not in names and not _must_be_name(tokens, position)
    ]
    return _replace_by_strings(sql, literals)


def unknown_quoted_name(message: str) -> str | None:
    """The double-quoted name that SQLite's error message says it cannot resolve, else None."""
    match = _MISSING_COLUMN.search(message)
    return match.group(1) if match else None


def quoted_value_as_string(sql: str, name: str) -> str:
    """A candidate with the double-quoted `name` read as a string where it stands as a value against a column.

    That is on the right of =, <>, LIKE, GLOB or IS, in an IN list, or as a bound of BETWEEN, with a column or a call
    on the left; on the right of <, <=, > or >= only a text that no column is named like ("1975-01-01"). Anywhere else
    it stays a name, which SQLite then refuses as unknown.
    """
    tokens = tokenize(sql)
    literals = [
        token
        for position, token in enumerate(tokens)
        if token.kind == "double" and token.text[1:-1] == name and _is_value(tokens, position)
    ]
    return _replace_by_strings(sql, literals)


def plain_values_as_strings(sql: str, ddl: str) -> str:
    """The double-quoted texts that can only be strings, read as such, in the commonest case and at little cost.

    That is what `quoted_value_as_string` makes of them when SQLite finds no such column: a text behind a bare column
    with = or LIKE that stands neither in the lower-cased `ddl`, so that no table can have it, nor elsewhere in the
    query, so that it is no alias. Where the query has comments or other quotes, or reads JSON, all stays as it is.
    """
    parts = sql.split('"')
    code = parts[::2]
    if len(parts) % 2 == 0 or len(parts) == 1 or "" in code[1:-1]:
        return sql
    text = "".join(code).lower()
    if any(mark in text for mark in ("'", "`", "[", "--", "/*", "json")):
        return sql
    places = range(1, len(parts), 2)
    values = {place for place in places if _is_compared(parts[place - 1], parts[place + 1])}
    names = {parts[place].lower() for place in places if place not in values} | _ROW_IDS
    for place in places:
        name = parts[place].lower()
        may_be_name = name in names or name in ddl or name in text or ":" in name or name.startswith("column")
        if place in values and not may_be_name:
            parts[place] = "'" + parts[place].replace("'", "''") + "'"
        else:
            parts[place] = '"' + parts[place] + '"'
    return "".join(parts)


def _is_compared(before: str, after: str) -> bool:
    column = _COMPARED.search(before)
    return column is not None and column.group(1).upper() not in KEYWORDS and bool(_AFTER_VALUE.match(after))


def asks_for_order(sql: str) -> bool:
    """Whether ORDER BY stands anywhere in the query; a table `orders`, a literal and a comment are none."""
    if "order" not in sql.lower():
        return False
    words = [token.upper for token in tokenize(sql)]
    return ("ORDER", "BY") in itertools.pairwise(words)


def is_volatile(sql: str) -> bool:
    """Whether the text asks for the time of day: 'now' or a local time zone in a date function, or one without its
    date.

    `random()` and its like are reported by the worker, which sees the functions that SQLite resolved.
    """
    lowered = sql.lower()
    if "date" not in lowered and "time" not in lowered and "julianday" not in lowered and "unixepoch" not in lowered:
        return False  # most queries need no closer look
    if _DATE_CALL.search(lowered) is None:
        return False
    tokens = tokenize(sql)
    texts = [token.upper for token in tokens]
    calls = [index for index, text in enumerate(texts[:-2]) if text in _DATE_FUNCTIONS and texts[index + 1] == "("]
    if not calls:
        return False
    for index in calls:
        depth = tokens[index].depth
        arguments = list(itertools.takewhile(lambda token: token.depth > depth, tokens[index + 2 :]))
        literals = {unquote(token).strip().lower() for token in arguments if token.kind == "string"}
        if literals & {"now", "localtime", "utc"} or len(arguments) <= (texts[index] == "STRFTIME"):
            return True
    return False


def _replace_by_strings(sql: str, literals: list[Token]) -> str:
    for token in reversed(literals):
        sql = sql[: token.start] + "'" + unquote(token).replace("'", "''") + "'" + sql[token.end :]
    return sql


def _next_text(tokens: list[Token], position: int) -> str:
    return tokens[position + 1].upper if position + 1 < len(tokens) else ""


def _names_something(tokens: list[Token], position: int) -> bool:
    """Whether the token is an alias: after AS, or directly after a value or name without an operator between."""
    before, token = tokens[position - 1], tokens[position]
    if before.upper == "AS":
        return True
    ends_value = (
        before.text == ")"
        or (before.kind in ("number", "name"))
        or (before.kind == "word" and before.upper not in KEYWORDS)
    )
    return ends_value and token.kind == "double"


def _must_be_name(tokens: list[Token], position: int) -> bool:
    before = tokens[position - 1].upper if position else ""
    return before in (".", *_NAME_FOLLOWS) or _next_text(tokens, position) in (".", "(")


def _is_value(tokens: list[Token], position: int) -> bool:
    """Whether a token is, alone, what a column is compared with."""
    following = tokens[position + 1] if position + 1 < len(tokens) else None
    if following is not None and following.kind == "operator" and following.text not in (")", ",", ";"):
        return False  # a call, a dotted name, or a part of a longer expression
    index = _comparison_before(tokens, position)
    if index is None:
        return False
    operator = tokens[index].text
    if operator in ("<", "<=", ">", ">=") and re.fullmatch(r"[^\W\d]\w*", unquote(tokens[position])):
        return False
    index -= 1
    if index >= 0 and tokens[index].upper == "NOT":  # NOT LIKE, NOT IN, NOT BETWEEN
        index -= 1
    if index < 0:
        return False
    left = tokens[index]
    return left.text == ")" or left.kind in ("name", "double") or (left.kind == "word" and left.upper not in KEYWORDS)


def _comparison_before(tokens: list[Token], position: int) -> int | None:
    """The index of the operator whose right side a token is: =, LIKE, IS, < and the like, IN of a list, BETWEEN."""
    depth = tokens[position].depth
    index = position - 1
    if index < 1:
        return None
    before = tokens[index].upper
    if before in (*_EQUALITIES, "<", "<=", ">", ">=", "BETWEEN"):
        return index
    if before == "NOT":  # IS NOT "x"
        return index - 1 if tokens[index - 1].upper == "IS" else None
    if before == "AND":  # the upper bound: BETWEEN low AND "high"
        while index > 0 and tokens[index].depth >= depth:
            index -= 1
            if tokens[index].depth == depth and tokens[index].upper in (
                "BETWEEN",
                "AND",
                "OR",
                "WHERE",
                "ON",
                "HAVING",
            ):
                return index if tokens[index].upper == "BETWEEN" else None
        return None
    if before in ("(", ","):
        while index >= 0 and (tokens[index].depth >= depth):
            if tokens[index].depth == depth and tokens[index].upper == "SELECT":
                return None
            index -= 1
        return index - 1 if index > 0 and tokens[index].text == "(" and tokens[index - 1].upper == "IN" else None
    return None
