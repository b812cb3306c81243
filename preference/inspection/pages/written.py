"""Untrusted text and SQL as inert HTML: hidden characters written out, and what two queries do not share marked."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from preference.inspection.differences import marked
from preference.report_page.text import visible
from reward.tokens import Token, tokenize

LONGEST_SHOWN = 4_000  # characters of one text on a page; the whole text has an address of its own
LONGEST_ONE_LINE = 56  # characters of a query that is shown without line breaks of ours

_HIDDEN = re.compile(r"⟨U\+[0-9A-F]{4,6}⟩")
_KEYWORDS = frozenset(
    "SELECT FROM WHERE GROUP BY HAVING ORDER LIMIT OFFSET DISTINCT AS ON AND OR NOT IN IS NULL LIKE GLOB BETWEEN EXISTS"
    " JOIN INNER LEFT RIGHT FULL OUTER CROSS NATURAL USING UNION ALL EXCEPT INTERSECT WITH RECURSIVE CASE WHEN THEN"
    " ELSE END ASC DESC CAST OVER PARTITION VALUES".split()
)
_NEW_LINE_BEFORE = frozenset("FROM WHERE GROUP HAVING ORDER LIMIT UNION EXCEPT INTERSECT JOIN INNER LEFT CROSS".split())


def inert(text: str) -> Markup:
    """Text as HTML in which no character hides: U+202E stands there as a marked ⟨U+202E⟩."""
    return Markup(_HIDDEN.sub(r'<span class="hidden-character">\g<0></span>', str(escape(visible(text)))))


def shown(value: object, limit: int = LONGEST_SHOWN) -> Markup:
    """Any value as inert HTML, kept apart from the writing direction around it and cut after `limit` characters."""
    text = value if isinstance(value, str) else str(value)
    return Markup("<bdi>{}</bdi>{}").format(inert(text[:limit]), _cut(len(text) - limit))


def plain(text: str, limit: int) -> str:
    """Text for where HTML takes no markup, such as a title."""
    return visible(text[:limit])


def sql(text: str, other: str | None = None, limit: int = LONGEST_SHOWN) -> Markup:
    """A query as inert HTML with its keywords set off; what `other` does not have stands in <mark>.

    >>> str(sql("SELECT a", "SELECT b"))
    '<span class="keyword">SELECT</span> <mark>a</mark>'
    """
    kept = text[:limit]
    tokens = tokenize(kept)
    parts = [] if other is None else [part for part in marked(kept, other[:limit])[0] if part.kind != "space"]
    apart = {index for index, part in enumerate(parts) if part.differs}
    broken = len(kept) > LONGEST_ONE_LINE and "\n" not in kept
    pieces, position = [], 0
    for index, token in enumerate(tokens):
        between = inert(kept[position : token.start])
        if broken and index and token.depth == 0 and _starts_line(tokens, index):
            between = Markup("\n")
        if index in apart:
            # One mark spans neighbouring tokens, so that a phrase reads as one difference.
            if index - 1 in apart and between != "\n":
                pieces[-1] = pieces[-1].removesuffix(Markup("</mark>"))
                pieces += [between, _token(token), Markup("</mark>")]
            else:
                pieces += [between, Markup("<mark>"), _token(token), Markup("</mark>")]
        else:
            pieces += [between, _token(token)]
        position = token.end
    pieces.append(inert(kept[position:]))
    return Markup("").join(pieces) + _cut(len(text) - limit)


def cell(value: object) -> Markup:
    """A value of a result; numbers as they are, so that 1 and 1.0 differ to the eye as they do in SQLite."""
    return shown(value if isinstance(value, str) else repr(value), 400)


def _starts_line(tokens: list[Token], index: int) -> bool:
    if tokens[index].upper not in _NEW_LINE_BEFORE:
        return False
    return not (tokens[index].upper == "JOIN" and tokens[index - 1].upper in ("INNER", "LEFT", "CROSS", "OUTER"))


def _token(token: Token) -> Markup:
    if token.upper in _KEYWORDS and token.kind == "word":
        return Markup('<span class="keyword">{}</span>').format(inert(token.text))
    if token.kind in ("string", "double", "number", "blob"):
        return Markup('<span class="literal">{}</span>').format(inert(token.text))
    return inert(token.text)


def _cut(left_out: int) -> Markup:
    return Markup(' <span class="cut">… {:,} more characters</span>').format(left_out) if left_out > 0 else Markup("")
