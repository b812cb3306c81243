"""global_batches: whole batches whose order no number of ranks can change; accumulation_steps: they must add up."""

import random

import pytest

from sft.order import accumulation_steps, global_batches


def test_worked_example(monkeypatch):
    """The docstring's: shuffled to [2, 0, 3, 1], cut into [2, 0] and [3, 1], each with its longest row first."""
    monkeypatch.setattr(random.Random, "shuffle", lambda self, rows: rows.__setitem__(slice(None), [2, 0, 3, 1]))
    assert global_batches([3, 1, 2, 5], epochs=1, global_batch_size=2, seed=0) == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "total"),
    [(10, 1, 5, 10), (10, 1, 4, 8), (10, 2, 4, 20), (10, 2.5, 4, 24), (10, 0.5, 4, 4), (3, 1, 8, 8), (10, 0.1, 4, 4)],
)
def test_a_whole_number_of_batches_near_rows_times_epochs(rows, epochs, batch, total):
    assert len(global_batches(list(range(rows)), epochs=epochs, global_batch_size=batch, seed=0)) == total


def test_every_epoch_is_a_permutation_and_another_one():
    lengths = [7] * 12
    order = global_batches(lengths, epochs=3, global_batch_size=4, seed=1)
    epochs = [order[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    batches = [[set(epoch[start : start + 4]) for start in (0, 4, 8)] for epoch in epochs]
    assert batches[0] != batches[1] != batches[2]


def test_rows_left_over_open_the_next_epoch():
    """10 rows in batches of 4: the third batch holds the last two of the first epoch and two of the second."""
    order = global_batches(list(range(10)), epochs=2, global_batch_size=4, seed=5)
    first = [row for row in range(10) if row not in order[:8]]
    assert len(first) == 2 and set(first) <= set(order[8:12])
    assert sorted(order) == sorted([*range(10), *range(10)])


def test_batches_are_sorted_by_length_inside_only():
    lengths = [random.Random(row).randrange(5, 99) for row in range(64)]
    order = global_batches(lengths, epochs=1, global_batch_size=8, seed=0)
    batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, 64, 8)]
    assert all(batch == sorted(batch, reverse=True) for batch in batches)
    longest = [batch[0] for batch in batches]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_equal_lengths_stand_in_row_order():
    order = global_batches([4] * 6, epochs=1, global_batch_size=6, seed=0)
    assert order == [0, 1, 2, 3, 4, 5]


def test_the_seed_decides_and_nothing_else():
    same = global_batches([3] * 40, epochs=2, global_batch_size=8, seed=7)
    random.seed(123)
    assert global_batches([3] * 40, epochs=2, global_batch_size=8, seed=7) == same
    assert global_batches([3] * 40, epochs=2, global_batch_size=8, seed=8) != same


def test_fewer_rows_than_a_batch_are_repeated():
    order = global_batches([5, 6, 7], epochs=1, global_batch_size=8, seed=0)
    assert len(order) == 8 and {order.count(row) for row in range(3)} <= {2, 3}


# ---------------------------------------------------------------------- groups


def test_rows_of_a_group_stay_together_in_runs():
    """Twelve rows of three schemas in runs of up to two: every batch of four holds two runs."""
    groups = ["a", "b", "c"] * 4
    lengths = [5, 9, 7] * 4
    order = global_batches(lengths, epochs=2, global_batch_size=4, seed=0, groups=groups, group_size=2)
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))
    for start in range(0, 24, 4):
        batch = [groups[row] for row in order[start : start + 4]]
        assert batch[0] == batch[1] and batch[2] == batch[3]
        # Longest group first: b (9), c (7), a (5).
        assert ["b", "c", "a"].index(batch[0]) <= ["b", "c", "a"].index(batch[2])
    assert order[:12] != order[12:]


def test_a_group_size_of_one_draws_rows_as_without_groups():
    lengths = [3] * 40
    plain = global_batches(lengths, epochs=1, global_batch_size=8, seed=7)
    grouped = global_batches(
        lengths, epochs=1, global_batch_size=8, seed=7, groups=["ab"[row % 2] for row in range(40)]
    )
    for start in range(0, 40, 8):
        assert sorted(grouped[start : start + 8]) == sorted(plain[start : start + 8])


def test_no_rows_is_an_error_that_points_to_the_counts():
    with pytest.raises(ValueError, match="not one row to train on.*counts of dropped rows"):
        global_batches([], epochs=1, global_batch_size=8, seed=0)


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "steps"), [(16, 8, 1, 2), (16, 8, 2, 1), (16, 2, 4, 2), (6, 6, 1, 1)]
)
def test_accumulation_makes_up_the_global_batch(batch, micro, ranks, steps):
    assert accumulation_steps(batch, micro, ranks) == steps


def test_accumulation_that_does_not_divide_says_every_number():
    with pytest.raises(ValueError) as error:
        accumulation_steps(16, 3, 2)
    message = str(error.value)
    assert "train.global_batch_size 16 is not a multiple of train.micro_batch_size 3 x 2 rank(s) = 6" in message
    assert "choose a micro batch that divides 16 / 2" in message


def test_families_stand_side_by_side_inside_a_batch_and_draw_none_together():
    """Two pairs of each of eight questions, questions of two schemas in turn."""
    groups, families = [f"q{row // 2}" for row in range(16)], [f"s{row // 2 % 2}" for row in range(16)]
    lengths = [10 + row for row in range(16)]
    settings = {"epochs": 1, "global_batch_size": 8, "seed": 2, "groups": groups, "group_size": 8}
    alone, together = (global_batches(lengths, **settings, families=wider) for wider in (None, families))
    for start in (0, 8):
        assert sorted(alone[start : start + 8]) == sorted(together[start : start + 8])
        found = [families[row] for row in together[start : start + 8]]
        assert found == sorted(found) or found == sorted(found, reverse=True)
        questions = [groups[row] for row in together[start : start + 8]]
        assert questions[::2] == questions[1::2]


def test_so_many_steps_whatever_the_number_of_rows():
    for rows in (3, 8, 10, 100):
        order = global_batches([5] * rows, epochs=2.5, steps=6, global_batch_size=4, seed=0)
        assert len(order) == 6 * 4
        # Every row comes as often as another, or once more: 24 of 10 rows are two whole passes and four rows of a third.
        times = [order.count(row) for row in range(rows)]
        assert max(times) - min(times) <= 1
    plain = {"global_batch_size": 4, "seed": 3}
    assert global_batches([5] * 8, epochs=1, steps=4, **plain) == global_batches([5] * 8, epochs=2, **plain)
