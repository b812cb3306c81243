"""Pairs whose two sides have as much structure: otherwise DPO learns to leave out clauses, whatever the question. No ML import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy

from reward.queries import KEYWORDS
from reward.tokens import tokenize


def structure(sql: str | None) -> Counter[str]:
    """How often each keyword, function, operator and sign stands in a query, and under `operand` all names and values.

    Example: SELECT MAX(age) FROM pet -> SELECT 1, MAX 1, ( 1, ) 1, FROM 1, operand 2.
    """
    found: Counter[str] = Counter()
    tokens = [token for token in tokenize(sql or "") if token.text != ";"]
    for place, token in enumerate(tokens):
        called = token.kind == "word" and place + 1 < len(tokens) and tokens[place + 1].text == "("
        own = token.kind == "operator" or token.upper in KEYWORDS or called
        found[token.upper if own else "operand"] += 1
    return found


def lead(pair: dict) -> Counter[str]:
    """By how many of each the chosen side of a pair has more than the rejected one; negative where it has fewer."""
    found = structure(pair["chosen_sql"])
    found.subtract(structure(pair["rejected_sql"]))
    return Counter({name: count for name, count in found.items() if count})


def surplus(pairs: Sequence[dict], fixed: Sequence[bool]) -> list[int]:
    """Places of the pairs to leave out, so that over the others no part of `structure` stands more often on one side.

    Wrong samples have more of some (DESC, SUM, DISTINCT ...) than right ones. A question's pair is right to say so; over
    many pairs the loss learns that such a word is bad, and the model drops it where the question asks for it. Pair by pair
    the one is left out that brings the sum of the squared leads down most (the first where even), until none does.
    fixed: pairs that stay in any case.

    Example: leads DESC -1, DESC -1, DESC +1 -> [0]: of the others one has a DESC more, one has one less.
    """
    leads = [lead(pair) for pair in pairs]
    names = sorted(set().union(*leads)) if leads else []
    table = numpy.array([[of_pair[name] for name in names] for of_pair in leads], dtype=numpy.int64).reshape(len(leads), len(names))
    total, squares, left = table.sum(axis=0), (table**2).sum(axis=1), []
    open_pairs = ~numpy.array(fixed, dtype=bool)
    while open_pairs.any():
        gains = numpy.where(open_pairs, 2 * table @ total - squares, 0)
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        left.append(best)
        open_pairs[best] = False
        total -= table[best]
    return sorted(left)
