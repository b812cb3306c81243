"""Intervals and paired tests against numbers worked out by hand or printed in their papers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.significance import mcnemar, newcombe_paired_interval, wilson_interval

counts = st.integers(0, 60)


def answers(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return before, after


def test_wilson_by_hand():
    # z² = 3.8415. 5 of 10: centre 0.5, half = 1.96 / 1.38415 * sqrt(0.025 + 0.0096036) = 0.26341.
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    # 0 of 10: from 0 to z² / (10 + z²) = 3.8415 / 13.8415.
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_wilson_ends_are_exact_and_nothing_asked_says_nothing():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("successes", [-1, 4])
def test_wilson_refuses_impossible_counts(successes):
    with pytest.raises(ValueError, match="Pass counts"):
        wilson_interval(successes, 3)


def test_mcnemar_by_hand():
    paired = mcnemar(*answers(both=20, gained=8, lost=2, neither=10))
    assert (paired["both"], paired["gained"], paired["lost"], paired["neither"]) == (20, 8, 2, 10)
    # Two tails of a fair coin thrown 10 times: 2 (1 + 10 + 45) / 1024.
    assert paired["p"] == pytest.approx(112 / 1024)
    assert paired["difference"] == pytest.approx(6 / 40)
    # 18 questions were wrong before, 12 are wrong after.
    assert paired["error_reduction"] == pytest.approx(6 / 18)


def test_mcnemar_counts_a_worse_model_as_negative():
    paired = mcnemar(*answers(both=0, gained=1, lost=5, neither=3))
    assert paired["difference"] == pytest.approx(-4 / 9)
    assert paired["error_reduction"] == pytest.approx(-1.0)
    assert paired["p"] == pytest.approx(2 * 7 / 64)


def test_mcnemar_without_discordant_pairs():
    paired = mcnemar([True, False], [True, False])
    assert (paired["p"], paired["difference"], paired["error_reduction"]) == (1.0, 0.0, 0.0)
    low, high = paired["ci95"]
    assert low < 0 < high


def test_mcnemar_without_errors_before_and_without_questions():
    assert mcnemar([True], [True])["error_reduction"] is None
    assert mcnemar([], []) == {"gained": 0, "lost": 0, "both": 0, "neither": 0, "difference": None, "ci95": [-1.0, 1.0],
                               "p": 1.0, "error_reduction": None}


def test_mcnemar_refuses_different_lengths():
    with pytest.raises(ValueError, match="2 answers before and 1 after"):
        mcnemar([True, False], [True])


def test_newcombe_without_correlation_by_hand():
    # 5 of 10 right each time; 3 * 3 - 2 * 2 = 5 less n / 2 = 5 leaves phi = 0. So the half width is sqrt(2) times
    # 0.26341, the half width of wilson_interval(5, 10).
    assert newcombe_paired_interval(both=3, gained=2, lost=2, neither=3) == pytest.approx((-0.37252, 0.37252), abs=1e-5)


def test_newcombe_with_negative_correlation_by_hand():
    # phi = (2 * 2 - 3 * 3) / sqrt(5 * 5 * 5 * 5) = -0.2, not corrected: half² = 0.26341² * (2 + 0.4).
    assert newcombe_paired_interval(both=2, gained=3, lost=3, neither=2) == pytest.approx((-0.40807, 0.40807), abs=1e-4)


def test_newcombe_with_an_empty_margin_by_hand():
    # All 10 right after, 6 before: phi = 0. below² = 0.27753² + (0.83182 - 0.6)²; above = 0.6 - 0.31267 alone.
    low, high = newcombe_paired_interval(both=6, gained=4, lost=0, neither=0)
    assert low == pytest.approx(0.4 - (0.27753**2 + 0.23182**2) ** 0.5, abs=1e-4)
    assert high == pytest.approx(0.4 + 0.28733, abs=1e-4)


@given(counts, counts, counts, counts)
def test_newcombe_holds_the_difference_and_mirrors_when_the_models_swap(both, gained, lost, neither):
    low, high = newcombe_paired_interval(both, gained, lost, neither)
    n = both + gained + lost + neither
    assert -1 <= low <= ((gained - lost) / n if n else 0) <= high <= 1
    assert newcombe_paired_interval(both, lost, gained, neither) == pytest.approx((-high, -low))
