"""Intervals and paired tests against numbers worked out by hand or printed in their papers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.significance import mcnemar, newcombe_paired_interval, paired_bootstrap, sign_flip_p, wilson_interval

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


# ------------------------------------------------------------------- several seeds


def test_bootstrap_of_two_questions_by_hand():
    # Two draws of two questions, of which one was gained: the difference is 0, 1/2, 1 with chances 1/4, 1/2, 1/4. So the 2.5
    # and 97.5 % points are 0 and 1.
    drawn = paired_bootstrap([[False, False]], [[True, False]])
    assert (drawn["difference"], drawn["ci95"]) == (0.5, [0.0, 1.0])
    # Both were wrong before: what was gained is the share of errors that went.
    assert (drawn["error_reduction"], drawn["error_reduction_ci95"]) == (0.5, [0.0, 1.0])


def test_bootstrap_of_many_questions_is_the_normal_distribution():
    # 1,000 questions, 60 gained, 30 lost: difference 0.03 with standard error sqrt((0.09 - 0.03²) / 1000) = 0.009439. So the
    # interval is 0.03 ± 1.96 x 0.009439.
    drawn = paired_bootstrap(*([row] for row in answers(both=500, gained=60, lost=30, neither=410)))
    assert drawn["difference"] == pytest.approx(0.03)
    assert drawn["ci95"] == pytest.approx([0.0115, 0.0485], abs=0.0011)
    # 470 errors before, 440 after; the ratio's standard error, by the delta method, is 0.0196.
    assert drawn["error_reduction"] == pytest.approx(30 / 470)
    assert drawn["error_reduction_ci95"] == pytest.approx([0.0255, 0.1022], abs=0.003)


def test_bootstrap_takes_a_question_with_its_mean_over_seeds():
    # The first question is gained by one seed and lost by the other, so nothing ever changes, however it is drawn: no interval.
    drawn = paired_bootstrap([[False, True], [True, True]], [[True, True], [False, True]])
    assert drawn == {"difference": 0.0, "ci95": None, "error_reduction": 0.0, "error_reduction_ci95": None}
    # One gained and one lost: no difference either, but draws differ. 2 questions: -1, 0 or 1 with chances 1/4, 1/2, 1/4.
    assert paired_bootstrap([[False, True]], [[True, False]])["ci95"] == [-1.0, 1.0]
    # One seed before, three after: scores 0 -> 2/3 and 1 -> 1 give a difference of 1/3 and two thirds of the errors.
    drawn = paired_bootstrap([[False, True]], [[True, True], [True, True], [False, True]])
    assert drawn["difference"] == pytest.approx(1 / 3)
    assert drawn["error_reduction"] == pytest.approx(2 / 3)
    # Only the first question counts for errors: in each draw that has it the reduction is two thirds.
    assert drawn["error_reduction_ci95"] == pytest.approx([2 / 3, 2 / 3])


def test_bootstrap_is_the_same_every_time():
    rows = [[row] for row in answers(both=5, gained=6, lost=3, neither=4)]
    assert paired_bootstrap(*rows) == paired_bootstrap(*rows)
    worse = paired_bootstrap([[True] * 40], [[False] * 40])
    assert (worse["difference"], worse["error_reduction"], worse["error_reduction_ci95"]) == (-1.0, None, None)


@pytest.mark.parametrize(("before", "after"), [([], [[True]]), ([[True]], [[True, False]]), ([[]], [[]])])
def test_bootstrap_refuses_what_cannot_be_paired(before, after):
    with pytest.raises(ValueError, match="Align them by example_id"):
        paired_bootstrap(before, after)
    with pytest.raises(ValueError, match="Align them by example_id"):
        sign_flip_p(before, after)


def test_sign_flip_by_hand():
    # Differences 1, 1/2, 0: of ±1 ± 1/2 two of four are as far from 0 as 3/2.
    assert sign_flip_p([[False] * 3], [[True, True, False], [True, False, False]]) == 0.5
    # 2/3, 2/3, -1/3, in thirds 2, 2, -1, sum 3. |±2 ± 2 ± 1| is 5, 3, 3, 5 (the first two alike) and 1 four times: 4 of 8.
    after = [[True, True, True], [True, True, True], [False, False, False]]
    assert sign_flip_p([[False, False, True]], after) == 0.5
    # Two seeds against three, sixths: 0 of 2 -> 3 of 3 is 6, 1 -> 3 is 3, 2 -> 2 is -2; sum 7. |±6 ± 3 ± 2|: 11, 7, 5, 1, each
    # twice, so 4 of 8.
    before, after = [[False, True, True], [False, False, True]], [[True, True, True], [True, True, True], [True, True, False]]
    assert sign_flip_p(before, after) == 0.5
    # Few changed: 5 gained, 0 lost is 2 / 2⁵, where drawing questions would give 2 (1 - 5 / n)ⁿ, about 0.013.
    assert sign_flip_p(*([row] for row in answers(both=500, gained=5, lost=0, neither=500))) == 0.0625


def test_sign_flip_where_nothing_changed_or_changes_are_even():
    assert sign_flip_p([[False, True]], [[False, True]]) == 1.0
    # Gained by one seed, lost by the other: a difference of 0.
    assert sign_flip_p([[False, True], [True, True]], [[True, True], [False, True]]) == 1.0
    assert sign_flip_p(*([row] for row in answers(both=0, gained=30, lost=30, neither=0))) == pytest.approx(1.0, rel=1e-12)


@given(counts, counts, counts, counts)
def test_sign_flip_with_one_seed_each_is_mcnemars_p(both, gained, lost, neither):
    before, after = answers(both, gained, lost, neither + 1)
    assert sign_flip_p([before], [after]) == pytest.approx(mcnemar(before, after)["p"], rel=1e-9)
    # A seed told three times is no further evidence.
    assert sign_flip_p([before], [after] * 3) == pytest.approx(mcnemar(before, after)["p"], rel=1e-9)


def test_sign_flip_of_many_questions_is_the_normal_distribution():
    # 1,300 questions, 3 seeds each: 100 gained by all, 60 lost by all. 160 signs of equal size and a sum of 40: with continuity
    # correction 39 / sqrt(160) = 3.083 standard deviations, 0.00205; the exact value has thinner tails.
    before, after = answers(both=500, gained=100, lost=60, neither=640)
    assert sign_flip_p([before] * 3, [after] * 3) == pytest.approx(0.00205, abs=0.00015)
    # The longest computation: every question gained by all seeds, 2 / 2¹⁰⁰⁰ of the choices.
    assert sign_flip_p([[False] * 1000] * 3, [[True] * 1000] * 3) == pytest.approx(2.0**-999, rel=1e-9)
    assert sign_flip_p([[False] * 1300] * 3, [[True] * 1300] * 3) < 1e-300
