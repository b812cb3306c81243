"""Pairs whose two sides have as much structure: otherwise DPO learns to leave out clauses, whatever the question. No ML import."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest

import numpy

from reward.queries import KEYWORDS
from reward.tokens import tokenize, unquote

# Longest run of signs that is counted. Runs say what single words do not: COUNT ( * or COUNT ( DISTINCT, BY name or BY COUNT.
_LONGEST = 3


def skeleton(sql: str | None) -> list[str]:
    """What can be seen of a query without its question and schema: keywords, functions and operators between ^ and $.

    Names are ?, numbers #, and each word of a text is a, or A where it has capitals.
    Example: select Max(age) from pet where name = 'Old Tom' -> ^ SELECT MAX ( ? ) FROM ? WHERE ? = A A $
    """
    tokens = [token for token in tokenize(sql or "") if token.text != ";"]
    signs = []
    for token, after in zip_longest(tokens, tokens[1:]):
        is_function = token.kind == "word" and after is not None and after.text == "("
        if token.kind == "operator" or token.upper in KEYWORDS or is_function:
            signs.append(token.upper)
        elif token.kind == "string":
            signs += ["a" if word == word.lower() else "A" for word in unquote(token).split() or [""]]
        else:
            signs.append("#" if token.kind == "number" else "?")
    return ["^", *signs, "$"]


def structure(sql: str | None) -> Counter[str]:
    """How often each run of one, two or three neighbours stands in a query's skeleton.

    Example: SELECT a -> ^ 1, SELECT 1, ? 1, $ 1, ^ SELECT 1, SELECT ? 1, ? $ 1, ^ SELECT ? 1, SELECT ? $ 1.
    """
    signs = skeleton(sql)
    return Counter(" ".join(signs[start : start + length]) for length in range(1, _LONGEST + 1)
                   for start in range(len(signs) - length + 1))


def lead(pair: dict) -> Counter[str]:
    """Of which runs the chosen side of a pair has more than the rejected one, and by how many; negative where it has fewer."""
    found = structure(pair["chosen_sql"])
    found.subtract(structure(pair["rejected_sql"]))
    return Counter({run: count for run, count in found.items() if count})


def surplus(pairs: Sequence[dict], fixed: Sequence[bool]) -> list[int]:
    """Places of the pairs to leave out, so that over the others no run of `structure` stands more often on one side.

    Wrong samples have more of some (DESC, SUM, COUNT ( * ...) than right ones. A question's pair is right to say so; over
    many pairs the loss learns that such a word is bad, and the model drops it where the question asks for it. Pair by pair
    the one is left out that brings the sum of the squared leads down most (the first where even), until none does; what
    is left of it then is small, not always 0. fixed: pairs that stay in any case.

    Example: leads DESC -1, DESC -1, DESC +1 -> [0]: of the others one has a DESC more, one has one less.
    """
    leads = [lead(pair) for pair in pairs]
    total: Counter[str] = Counter()
    places, counts = defaultdict(list), defaultdict(list)
    for place, of_pair in enumerate(leads):
        total.update(of_pair)
        for run, count in of_pair.items():
            places[run].append(place)
            counts[run].append(count)
    having = {run: (numpy.array(places[run]), numpy.array(counts[run])) for run in places}
    # By how much the sum of squares falls without a pair: sum over its runs of total^2 - (total - count)^2.
    gains = numpy.array([sum(count * (2 * total[run] - count) for run, count in of_pair.items()) for of_pair in leads])
    is_open, left = ~numpy.array(fixed, dtype=bool), []
    while is_open.any():
        best = int(numpy.where(is_open, gains, 0).argmax())
        if gains[best] <= 0 or not is_open[best]:
            break
        left.append(best)
        is_open[best] = False
        for run, count in leads[best].items():
            others, theirs = having[run]
            gains[others] -= 2 * count * theirs
    return sorted(left)
