"""Intervals and tests for execution accuracy: one model alone, two models on the same questions, several seeds of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt

import numpy
from scipy.stats import binomtest

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, as fractions; (0, 1) where n is 0.

    Unlike p ± 1.96 standard errors it stays inside [0, 1] and has a width at 0 and at n successes.

    Raises:
        ValueError: successes not between 0 and n.
    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson_interval got {successes} successes of {n}. Allowed is 0 <= successes <= n. "
                         "Pass counts, not shares.")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    shrink = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / shrink
    half = Z_95 * sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / shrink
    # The ends are exactly 0 and 1 at the extremes; floats would miss them by 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """Compares two models on the same questions; `before[i]` and `after[i]` say whether question i was right.

    Returns:
        gained, lost, both, neither: counts (wrong then right, right then wrong, right twice, wrong twice).
        difference: share right after minus share right before; None without questions.
        ci95: Newcombe's paired interval of the difference.
        p: exact two-sided binomial test of gained against lost; 1.0 where none changed.
        error_reduction: share of the first model's errors that the second no longer makes, net (negative where it
            makes more); None where the first made none.

    Example: before 1100, after 1010 gives gained 1, lost 1, both 1, neither 1, difference 0, p 1.

    Raises:
        ValueError: sequences of different length.
    Source: McNemar (1947), Note on the sampling error of the difference between correlated proportions.
    """
    if len(before) != len(after):
        raise ValueError(f"mcnemar got {len(before)} answers before and {len(after)} after. Both must be about the "
                         "same questions in the same order. Align them by example_id first.")
    outcomes = [(bool(one), bool(other)) for one, other in zip(before, after, strict=True)]
    both, lost = outcomes.count((True, True)), outcomes.count((True, False))
    gained, neither = outcomes.count((False, True)), outcomes.count((False, False))
    n, errors_before = len(outcomes), gained + neither
    return {
        "gained": gained, "lost": lost, "both": both, "neither": neither,
        "difference": (gained - lost) / n if n else None,
        "ci95": list(newcombe_paired_interval(both, gained, lost, neither)),
        "p": float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0,
        "error_reduction": (gained - lost) / errors_before if errors_before else None,
    }


def newcombe_paired_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of (share right after - share right before) on the same questions; (-1, 1) without any.

    Two Wilson intervals joined by squaring and adding, less their correlation phi (continuity-corrected where
    positive). Needs no random numbers and keeps a width where nothing changed, which a bootstrap does not.

    Source: Newcombe (1998), Improved confidence intervals for the difference between binomial proportions based on
        paired data, Statistics in Medicine 17:2635-2650, method 10.
    """
    n = both + gained + lost + neither
    if n == 0:
        return -1.0, 1.0
    right_after, right_before = both + gained, both + lost
    after_low, after_high = (abs(end - right_after / n) for end in wilson_interval(right_after, n))
    before_low, before_high = (abs(end - right_before / n) for end in wilson_interval(right_before, n))

    product = both * neither - gained * lost
    corrected = max(product - n / 2, 0) if product > 0 else product
    margins = right_after * (n - right_after) * right_before * (n - right_before)
    phi = corrected / sqrt(margins) if margins else 0.0

    difference = (gained - lost) / n
    below = sqrt(after_low**2 - 2 * phi * after_low * before_high + before_high**2)
    above = sqrt(after_high**2 - 2 * phi * after_high * before_low + before_low**2)
    return max(-1.0, difference - below), min(1.0, difference + above)


def sign_flip_p(before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]]) -> float:
    """Two-sided p of a paired permutation test over questions: are two arms, with one or several seeds, equally good?

    `before[k][i]` says whether the model of seed k was right on question i. A question's difference is the mean score of one
    arm less that of the other. Were the arms equally good, it could as well have had the other sign: p is the share of all
    choices of signs with a sum at least as far from 0 as the one observed, counted exactly. With one seed each it is McNemar's
    exact p. Signs are free to change where both arms have as many seeds, each a model of its own; where one model stands against
    several seeds, once or as a copy for each, it is an approximation, good from some hundred questions on (1,200: 5.0 % of true
    nulls below 0.05).

    Example: before [[0, 0, 0]], after [[1, 1, 0], [1, 0, 0]]: differences 1, 1/2, 0. Of the sums ±1 ± 1/2 two, 3/2 and -3/2,
    are as far from 0 as 3/2, so p is 2/4.

    Raises:
        ValueError: no seed, no question, or rows of different length.
    Source: Fisher (1935), The Design of Experiments, section 21.
    """
    differences = [new * len(before) - old * len(after) for old, new in right_counts(before, after)]
    sizes = [abs(difference) for difference in differences if difference]
    total = sum(sizes)
    # chances[t]: that the differences with a plus sign add up to t, and all of them to t - (total - t). Only numbers >= 0 are
    # added, so that small chances are as exact as large ones.
    chances = numpy.zeros(total + 1)
    chances[0] = 1.0
    for size in sizes:
        chances /= 2
        chances[size:] += chances[:-size].copy()
    sums = 2 * numpy.arange(total + 1) - total
    return min(1.0, float(chances[abs(sums) >= abs(sum(differences))].sum()))


def right_counts(before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """For each question, how many seeds of each arm were right: whole numbers, so that equal scores stay equal.

    Raises ValueError for no seed, no question, or rows of different length.
    """
    lengths = {len(row) for row in (*before, *after)}
    if not before or not after or len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"found {len(before)} and {len(after)} seeds with {sorted(lengths)} questions. Each arm needs at "
                         "least one seed, all on the same questions, in the same order. Align them by example_id first.")
    return [(sum(old), sum(new)) for old, new in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)]


def paired_bootstrap(before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]], *, resamples: int = 100_000,
                     seed: int = 0) -> dict:
    """Intervals for two arms, each trained with one or several seeds, on the same questions, by drawing questions anew.

    `before[k][i]` says whether the model of seed k was right on question i. An arm's score on a question is its mean over
    its seeds, and a question is drawn with all its scores: the interval tells how far other questions of the same kind
    could move the difference between these very models; what other seeds would do it does not tell. For a p value where few
    questions changed, draws are no guide (5 gained, 0 lost: 0.013, where the exact one is 0.063): see `sign_flip_p`.

    Returns:
        difference, ci95: mean accuracy after minus before, and the percentile interval of it.
        error_reduction, error_reduction_ci95: share of the first arm's errors that the second no longer makes, net;
            draws in which the first made none are left out. None where it made none at all.
        Both intervals are None where no question's score changed: they would have no width, as if nothing could change.

    Only the counts of questions with equal scores matter, so a draw is multinomial over the distinct pairs of scores: the
    same distribution as drawing questions one by one. The same inputs and seed give the same numbers.

    Example: before [[0, 0]], after [[1, 0]]: the drawn difference is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.

    Raises:
        ValueError: no seed, no question, or rows of different length.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile interval); paired over test
        items as in Koehn (2004), Statistical significance tests for machine translation evaluation.
    """
    scores = Counter(right_counts(before, after))
    old, new = (numpy.array([key[side] / len(seeds) for key in scores]) for side, seeds in ((0, before), (1, after)))
    counts, n = numpy.array(list(scores.values())), sum(scores.values())
    drawn = numpy.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    gains = numpy.array([key[1] * len(before) - key[0] * len(after) for key in scores], dtype=numpy.int64)
    share = len(before) * len(after) * n
    errors, errors_before = drawn @ (1 - old), float(counts @ (1 - old))
    some, changed = errors > 1e-9, bool(gains.any())
    reductions = (drawn[some] @ (new - old)) / errors[some]
    return {
        "difference": float(counts @ gains) / share,
        "ci95": [float(end) for end in numpy.percentile(drawn @ gains / share, (2.5, 97.5))] if changed else None,
        "error_reduction": float(counts @ (new - old)) / errors_before if errors_before > 1e-9 else None,
        "error_reduction_ci95": ([float(end) for end in numpy.percentile(reductions, (2.5, 97.5))]
                                 if errors_before > 1e-9 and changed else None),
    }
