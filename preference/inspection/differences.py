"""Where two queries differ, token by token, for both sides to be shown with the differing parts marked."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import NamedTuple

from reward.tokens import tokenize

_COMPARED_TOKENS = 3000
_COMPARED_CHARACTERS = 100_000


class Part(NamedTuple):
    """A piece of a query's text. kind: as in reward.tokens, or `space`; differs: whether the other query lacks it."""

    text: str
    kind: str
    differs: bool


def marked(left: str, right: str) -> tuple[list[Part], list[Part]]:
    """Both queries in parts that join to their text; case of words and white space are no difference.

    Example: SELECT a FROM t against select b from t marks `a` and `b`. Queries beyond 3,000 tokens are not compared.
    """
    if max(len(left), len(right)) > _COMPARED_CHARACTERS:
        return [Part(left, "text", False)], [Part(right, "text", False)]
    sides = [tokenize(text) for text in (left, right)]
    differing = [set(), set()]
    if max(map(len, sides)) <= _COMPARED_TOKENS:
        matcher = SequenceMatcher(None, *([token.upper for token in tokens] for tokens in sides), autojunk=False)
        for what, start, end, other_start, other_end in matcher.get_opcodes():
            if what != "equal":
                differing[0].update(range(start, end))
                differing[1].update(range(other_start, other_end))
    return tuple(_parts(text, tokens, differs) for text, tokens, differs in zip((left, right), sides, differing, strict=True))


def _parts(text: str, tokens: list, differs: set[int]) -> list[Part]:
    parts, end = [], 0
    for index, token in enumerate(tokens):
        if token.start > end:
            parts.append(Part(text[end:token.start], "space", index in differs and index - 1 in differs))
        parts.append(Part(token.text, token.kind, index in differs))
        end = token.end
    if end < len(text):
        parts.append(Part(text[end:], "space", False))
    return parts
