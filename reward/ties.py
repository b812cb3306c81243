"""The top-level ORDER BY and LIMIT of a query: which rows of its answer may change places, and which rows it may cut
off.

The text is edited by token position, so that SQLite itself computes the sort keys of gold as gold wrote them.
"""

from typing import NamedTuple

from reward.tokens import Token, tokenize, unquote

_SET_OPERATIONS = ("UNION", "INTERSECT", "EXCEPT")


class Ordering(NamedTuple):
    """How the top level of a query orders and cuts its rows.

    `sql`: the query without its LIMIT and with its sort keys appended as columns; None where nothing needs it.
    `keys`: for each term of ORDER BY the index of its column, negative from the end for appended ones, or the name of
    an output column; None where the keys cannot be told (then only the order that gold gave is known).
    """

    ordered: bool
    sql: str | None = None
    keys: tuple[int | str, ...] | None = ()
    limit: int | None = None
    offset: int = 0


def read_ordering(sql: str) -> Ordering:
    """Reads the top-level ORDER BY, LIMIT and OFFSET of one SELECT.

    >>> read_ordering("SELECT a FROM t ORDER BY b DESC LIMIT 2")
    Ordering(ordered=True, sql='SELECT a , b FROM t ORDER BY b DESC', keys=(-1,), limit=2, offset=0)
    """
    tokens = tokenize(sql)
    top = [index for index, token in enumerate(tokens) if token.depth == 0 and token.kind == "word"]
    clauses = {tokens[index].upper: index for index in top}
    order = clauses.get("ORDER") if "ORDER" in clauses and clauses.get("BY", -1) > clauses["ORDER"] else None
    limit_at = clauses.get("LIMIT")
    if order is None and limit_at is None:
        return Ordering(False)
    limit, offset = (None, 0) if limit_at is None else _read_limit(tokens[limit_at + 1 :])
    if limit_at is not None and limit is None:
        return Ordering(order is not None, None, None)
    body = sql if limit_at is None else sql[: tokens[limit_at].start].rstrip()
    if order is None:
        return Ordering(False, body, (), limit, offset)
    terms = _split_terms(tokens[order + 2 : limit_at])
    select = clauses.get("SELECT")
    compound = any(word in clauses for word in _SET_OPERATIONS)
    first = next((index for index in top if tokens[index].upper == "SELECT"), None)
    if select is None or first is None:
        return Ordering(True, body, None, limit, offset)
    closing = next((index for index in top if index > first and tokens[index].upper in ("FROM", "ORDER")), order)
    distinct = tokens[first + 1].upper == "DISTINCT"
    items = _split_items(tokens[first + 1 + distinct : closing])
    keys: list[int | str] = []
    appended: list[str] = []
    for term in terms:
        key = _output_column(sql, term, items)
        if key is None and (compound or distinct):
            return Ordering(True, body, None, limit, offset)
        if key is None:
            appended.append(sql[term[0].start : term[-1].end])
            key = len(appended)  # made negative below, when the number of appended columns is known
            keys.append(-key)
        else:
            keys.append(key)
    # Appended column j of n stands at index j - 1 - n.
    keys = [-(len(appended) + 1 + key) if isinstance(key, int) and key < 0 else key for key in keys]
    if appended:
        place = tokens[closing - 1].end
        body = body[:place] + " , " + ", ".join(appended) + body[place:]
    return Ordering(True, body, tuple(keys), limit, offset)


def _read_limit(tokens: list[Token]) -> tuple[int | None, int]:
    """LIMIT n | LIMIT n OFFSET m | LIMIT m, n; (None, 0) for anything else, LIMIT -1 included."""
    texts = [token.upper for token in tokens]
    numbers = [int(text) for text in texts if text.isascii() and text.isdigit()]
    if len(texts) == 1 and len(numbers) == 1:
        return numbers[0], 0
    if len(texts) == 3 and len(numbers) == 2 and texts[1] == "OFFSET":
        return numbers[0], numbers[1]
    if len(texts) == 3 and len(numbers) == 2 and texts[1] == ",":
        return numbers[1], numbers[0]
    return None, 0


def _split_items(tokens: list[Token]) -> list[list[Token]]:
    """Splits at the commas outside parentheses."""
    items: list[list[Token]] = [[]]
    for token in tokens:
        if token.text == "," and token.depth == 0:
            items.append([])
        else:
            items[-1].append(token)
    return [item for item in items if item]


def _split_terms(tokens: list[Token]) -> list[list[Token]]:
    """The expressions of ORDER BY without ASC, DESC and NULLS FIRST or LAST."""
    terms = []
    for term in _split_items(tokens):
        while len(term) > 1 and term[-1].upper in ("ASC", "DESC", "FIRST", "LAST", "NULLS"):
            term.pop()
        terms.append(term)
    return terms


def _output_column(sql: str, term: list[Token], items: list[list[Token]]) -> int | str | None:
    """The output column that a term sorts by: an ordinal's index, an alias' name, or the item written in the same
    words.
    """
    if len(term) == 1 and term[0].kind == "number" and term[0].text.isdigit():
        return int(term[0].text) - 1
    words = [token.upper for token in term]
    starred = any(item[-1].text == "*" for item in items)
    for index, item in enumerate(items):
        alias = item[-1] if len(item) > 1 and item[-2].upper == "AS" else None
        if len(term) == 1 and alias is not None and unquote(alias).lower() == unquote(term[0]).lower():
            return unquote(alias)
        bare = item[:-2] if alias is not None else item
        if not starred and [token.upper for token in bare] == words:
            return index
    if len(term) == 1 and term[0].kind != "number" and any(item[-1].text == "*" for item in items):
        return unquote(term[0])
    return None
