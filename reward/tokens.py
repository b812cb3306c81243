"""Splits SQL text into SQLite's own tokens, each with its position, so that text can be edited byte for byte."""

import re
from typing import NamedTuple

# One alternative per kind, in SQLite's order of preference. An opening quote without its end falls through to "bad".
_PATTERN = re.compile(
    r"""
    (?P<space>[ \t\n\f\r\ufeff]+ | --[^\n]* | /\*(?!\Z).*?(?:\*/|\Z))
  | (?P<blob>[xX]'[0-9a-fA-F]*')
  | (?P<string>'(?:[^']|'')*')
  | (?P<double>"(?:[^"]|"")*")
  | (?P<name>`(?:[^`]|``)*` | \[[^\]]*\])
  | (?P<bad>['"`\[\x00])
  | (?P<number>0[xX][0-9a-fA-F]+ | (?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
  | (?P<parameter>\?\d* | [:@$\#][A-Za-z0-9_$:]+)
  | (?P<operator>->>|->|\|\||<<|>>|<=|>=|<>|==|!=|.)
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """kind: blob, string, double (double-quoted text), name (`x` or [x]), bad, number, word, parameter or operator."""

    kind: str
    text: str
    start: int
    end: int
    upper: str
    depth: int


def tokenize(sql: str) -> list[Token]:
    """Tokens of `sql` without white space and comments; `depth` counts the parentheses that enclose a token.

    A parenthesis carries the depth outside itself: in `f(x)` the tokens have depth 0, 0, 1, 0.
    """
    tokens = []
    depth = 0
    for match in _PATTERN.finditer(sql):
        kind = match.lastgroup
        if kind == "space":
            continue
        text = match.group()
        if text == ")":
            depth = max(0, depth - 1)
        tokens.append(Token(kind, text, match.start(), match.end(), text.upper() if kind == "word" else text, depth))
        if text == "(":
            depth += 1
    return tokens


def unquote(token: Token) -> str:
    """The name or text that a token stands for, without its quotes: `"a""b"` gives `a"b`."""
    text = token.text
    if token.kind in ("string", "double") or text[0] == "`":
        return text[1:-1].replace(text[0] * 2, text[0])
    if token.kind == "name":
        return text[1:-1]
    return text
