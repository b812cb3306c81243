"""The top-level ORDER BY and LIMIT of a query: which rows of its answer may change places, and which rows it may cut
off.

The text is edited by token position, so that SQLite itself computes the sort keys of gold as gold wrote them.
"""

from collections.abc import Callable
from typing import NamedTuple

from reward.compare import Denotation, compare, same_row
from reward.queries import KEYWORDS
from reward.sandbox import Outcome
from reward.tokens import Token, tokenize, unquote

_SET_OPERATIONS = ("UNION", "INTERSECT", "EXCEPT")
_AFTER_ITEMS = ("FROM", "WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", *_SET_OPERATIONS)
# What a collation makes equal; BINARY and unknown ones leave text as it is.
_FOLDS: dict[str, Callable[[str], str]] = {
    "NOCASE": lambda text: text.translate({code: code + 32 for code in range(ord("A"), ord("Z") + 1)}),
    "RTRIM": lambda text: text.rstrip(" "),
}


class Key(NamedTuple):
    """One term of ORDER BY: the index of its column (negative: appended, from the end) or its name, and its
    collation.
    """

    place: int | str
    collation: str = ""


class Ordering(NamedTuple):
    """How the top level of a query orders and cuts its rows.

    `statements`: what gives all rows, before LIMIT, with the sort keys appended as columns; the first one that runs
    holds, none is needed where gold's own rows tell it. `keys`: None where they cannot be told (then only the order
    that gold gave is known). `limit` and `offset` are texts; `window`: the SELECT that computes them where they are
    not plain numbers. `distinct`: the keys are appended to distinct rows, and hold only if that makes no more rows.
    """

    ordered: bool
    statements: tuple[str, ...] = ()
    keys: tuple[Key, ...] | None = ()
    limit: str | None = None
    offset: str = "0"
    window: str | None = None
    distinct: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """What is to be run beside gold for `read_denotation`."""
        return self.statements + ((self.window,) if self.window else ())


def read_ordering(sql: str) -> Ordering:
    """Reads the top-level ORDER BY, LIMIT and OFFSET of one SELECT.

    >>> read_ordering("SELECT a FROM t ORDER BY b DESC LIMIT 2").statements
    ('SELECT a , b FROM t ORDER BY b DESC',)
    """
    tokens = tokenize(sql)
    top = [index for index, token in enumerate(tokens) if token.depth == 0 and token.kind == "word"]
    clauses = {tokens[index].upper: index for index in top}
    order = clauses.get("ORDER") if clauses.get("BY") == clauses.get("ORDER", -2) + 1 else None
    limit_at = clauses.get("LIMIT")
    if order is None and limit_at is None:
        return Ordering(False)
    body, limit, offset, window = sql, None, "0", None
    if limit_at is not None:
        body = sql[: tokens[limit_at].start].rstrip()
        limit, offset = _read_limit(sql, tokens[limit_at + 1 :])
        if not (limit.isascii() and limit.isdigit() and offset.isascii() and offset.isdigit()):
            window = f"SELECT {limit}, {offset}"
    whole = (body,) if limit_at is not None else ()
    if order is None:
        return Ordering(False, whole, (), limit, offset, window)
    unknown = Ordering(True, whole, None, limit, offset, window)
    selects = [index for index in top if tokens[index].upper == "SELECT"]
    if not selects:
        return unknown
    lists = [_select_items(tokens, index + 1) for index in selects]
    terms = [_read_term(term) for term in _split(tokens[order + 2 : limit_at])]
    if any(word in clauses for word in _SET_OPERATIONS):
        keys = [Key(_compound_column(term, lists), collation) for term, collation in terms]
        known = all(key.place is not None for key in keys)
        return Ordering(True, whole, tuple(keys), limit, offset, window) if known else unknown
    [items] = lists[:1]
    if not items:
        return unknown
    aliases = {alias.lower(): item for item in items if (alias := _alias(item))}
    starred = any(item[-1].text == "*" for item in items)
    appended: list[tuple[str, str]] = []
    keys = []
    for term, collation in terms:
        ordinal = _ordinal(term)
        if ordinal is not None:
            keys.append(Key(ordinal - 1, collation))
            continue
        name = unquote(term[0]).lower() if len(term) == 1 and term[0].kind in ("word", "double", "name") else None
        item = aliases.get(name) or next((item for item in items if _words(item) == _words(term)), None)
        if item is not None and not starred:
            keys.append(Key(items.index(item), collation))
            continue
        if name in aliases:
            text = _text(sql, _without_alias(aliases[name]))
            appended.append((text, text))
        else:
            appended.append((_text(sql, term), _with_aliases_resolved(sql, term, aliases)))
        keys.append(Key(-len(appended), collation))  # turned round below, when the number of appended columns is known
    keys = [Key(-(len(appended) + 1 + key.place), key.collation) if key.place < 0 else key for key in keys]
    if appended:
        end = items[-1][-1].end
        texts = [", ".join(pair[attempt] for pair in appended) for attempt in (0, 1)]
        # SQLite reads a name inside a longer term as a column first and as an alias only where there is no column.
        whole = tuple(dict.fromkeys(f"{body[:end]} , {text}{body[end:]}" for text in texts))
    distinct = bool(appended) and tokens[selects[0] + 1].upper == "DISTINCT"
    return Ordering(True, whole, tuple(keys), limit, offset, window, distinct)


def read_denotation(plain: Outcome, others: list[Outcome], ordering: Ordering) -> Denotation:
    """Gold's answer from its own outcome and those of `ordering.needed`."""
    width, rows = len(plain.columns), plain.rows
    exact = Denotation(width, [rows], 0, len(rows), False)
    if not ordering.ordered and ordering.limit is None:
        return exact
    # Where SQLite cannot compute the keys as columns, only gold's own order is known.
    if ordering.ordered:
        exact = Denotation(width, [[row] for row in rows], 0, len(rows), True, False)
    others = list(others)
    limit, offset = ordering.limit, ordering.offset
    if ordering.window is not None:
        outcome = others.pop()
        if outcome.status != "ok" or None in outcome.rows[0]:
            return exact
        limit, offset = outcome.rows[0]
    extended = next((outcome for outcome in others if outcome.status == "ok"), None)
    if extended is None and not ordering.statements:
        extended = plain
    if extended is None or ordering.keys is None or len(extended.rows) < extended.row_count:
        return exact
    groups = _groups(extended.rows, width, plain.columns, ordering) if ordering.ordered else [extended.rows]
    total = len(extended.rows)
    start = min(max(int(float(offset)), 0), total)
    size = -1 if limit is None else int(float(limit))
    stop = total if size < 0 else min(start + size, total)
    if groups is None:
        return exact
    found = Denotation(width, groups, start, stop, ordering.ordered)
    return found if compare(found, width, rows) is None else exact


def _groups(rows: list[tuple], width: int, columns: tuple[str, ...], ordering: Ordering) -> list[list[tuple]] | None:
    """Rows, in order, cut where a sort key changes; None where the keys do not belong to one row each."""
    if ordering.distinct and len({row[:width] for row in rows}) < len(rows):
        return None
    names = [name.lower() for name in columns]
    places = []
    for key in ordering.keys:
        if isinstance(key.place, str):
            if names.count(key.place) != 1:
                return None
            key = key._replace(place=names.index(key.place))
        places.append((key.place, _FOLDS.get(key.collation)))
    groups: list[list[tuple]] = []
    last: tuple = ()
    for row in rows:
        key = tuple(fold(row[place]) if fold and isinstance(row[place], str) else row[place] for place, fold in places)
        if not groups or not same_row(key, last):
            groups.append([])
        groups[-1].append(row[:width])
        last = key
    return groups


def _read_limit(sql: str, tokens: list[Token]) -> tuple[str, str]:
    """The texts of LIMIT n | LIMIT n OFFSET m | LIMIT m, n as (limit, offset)."""
    parts = _split(tokens)
    if len(parts) == 2:
        return _text(sql, parts[1]), _text(sql, parts[0])
    at = next((i for i, token in enumerate(tokens) if token.upper == "OFFSET" and token.depth == 0), len(tokens))
    return _text(sql, tokens[:at]), _text(sql, tokens[at + 1 :]) or "0"


def _text(sql: str, tokens: list[Token]) -> str:
    return sql[tokens[0].start : tokens[-1].end] if tokens else ""


def _split(tokens: list[Token]) -> list[list[Token]]:
    """Splits at the commas outside parentheses."""
    items: list[list[Token]] = [[]]
    for token in tokens:
        if token.text == "," and token.depth == 0:
            items.append([])
        else:
            items[-1].append(token)
    return [item for item in items if item]


def _select_items(tokens: list[Token], begin: int) -> list[list[Token]]:
    """The items of the SELECT whose list begins at `begin`."""
    if begin < len(tokens) and tokens[begin].upper in ("DISTINCT", "ALL"):
        begin += 1
    end = begin
    while end < len(tokens):
        token = tokens[end]
        if token.depth == 0 and token.upper in _AFTER_ITEMS and tokens[end - 1].upper != "DISTINCT":
            break  # a IS DISTINCT FROM b goes on
        end += 1
    return _split(tokens[begin:end])


def _read_term(term: list[Token]) -> tuple[list[Token], str]:
    """A term of ORDER BY without ASC, DESC, NULLS FIRST or LAST, COLLATE and outer parentheses; and its collation."""
    term, collation = list(term), ""
    while len(term) > 1 and term[-1].upper in ("ASC", "DESC", "FIRST", "LAST", "NULLS"):
        term.pop()
    while True:
        if len(term) > 2 and term[-2].upper == "COLLATE":
            collation = collation or unquote(term[-1]).upper()
            term = term[:-2]
        elif len(term) > 2 and term[0].text == "(" and term[-1].text == ")" and _encloses(term):
            term = term[1:-1]
        else:
            return term, collation


def _encloses(term: list[Token]) -> bool:
    return all(token.depth > term[0].depth for token in term[1:-1])


def _ordinal(term: list[Token]) -> int | None:
    number = term[-1].text
    signed = all(token.text == "+" for token in term[:-1])
    return int(number) if signed and term[-1].kind == "number" and number.isdigit() else None


def _alias(item: list[Token]) -> str | None:
    """The alias of an item of SELECT, with or without AS."""
    last, before = item[-1], item[-2] if len(item) > 1 else None
    if before is None or last.kind not in ("word", "double", "name", "string"):
        return None
    if before.upper == "AS":
        return unquote(last)
    ends_value = before.text == ")" or before.kind in ("number", "string", "double", "name", "blob")
    word = before.kind == "word" and (before.upper not in KEYWORDS or before.upper in ("END", "NULL"))
    if last.upper in KEYWORDS or before.upper == "OVER" or not (ends_value or word):
        return None
    return unquote(last)


def _without_alias(item: list[Token]) -> list[Token]:
    if _alias(item) is None:
        return item
    return item[:-2] if item[-2].upper == "AS" else item[:-1]


def _words(item: list[Token]) -> list[str]:
    return [token.upper for token in _without_alias(item)]


def _with_aliases_resolved(sql: str, term: list[Token], aliases: dict[str, list[Token]]) -> str:
    """The text of a term with the expressions of the aliases in it."""
    text = _text(sql, term)
    for position in reversed(range(len(term))):
        token = term[position]
        item = aliases.get(unquote(token).lower()) if token.kind in ("word", "double", "name") else None
        dotted = (position and term[position - 1].text == ".") or (
            position + 1 < len(term) and term[position + 1].text in (".", "(")
        )
        if item is not None and not dotted:
            begin, end = token.start - term[0].start, token.end - term[0].start
            text = f"{text[:begin]}({_text(sql, _without_alias(item))}){text[end:]}"
    return text


def _compound_column(term: list[Token], lists: list[list[list[Token]]]) -> int | str | None:
    """The output column that a term of a compound SELECT sorts by: SQLite looks through its SELECTs from the left."""
    ordinal = _ordinal(term)
    if ordinal is not None:
        return ordinal - 1
    words = [token.upper for token in term]
    for items in lists:
        starred = any(item[-1].text == "*" for item in items)
        for index, item in enumerate(items):
            alias = _alias(item)
            bare = _words(item)
            named = len(term) == 1 and alias is not None and alias.lower() == unquote(term[0]).lower()
            if named or bare == words or (_column_name(item, alias) == _column_name(term, None) is not None):
                return unquote(term[0]).lower() if starred else index
        if starred and _column_name(term, None):
            return _column_name(term, None)
    return None


def _column_name(tokens: list[Token], alias: str | None) -> str | None:
    """The lower-cased name where the tokens are a column, with or without its table; None for other expressions."""
    if alias is not None:
        tokens = _without_alias(tokens)
    named = tokens[-1].kind in ("word", "double", "name") and (len(tokens) == 1 or tokens[-2].text == ".")
    return unquote(tokens[-1]).lower() if named and len(tokens) <= 3 else None
