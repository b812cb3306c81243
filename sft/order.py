"""The order of training rows, the same whatever the number of ranks."""

from __future__ import annotations

import random


def global_batches(lengths: list[int], *, epochs: float, global_batch_size: int, seed: int, steps: int | None = None,
                   groups: list[str] | None = None, group_size: int = 1, families: list[str] | None = None) -> list[int]:
    """Row indices in training order: a whole number of global batches, each sorted by length, longest first.

    Rows are shuffled anew for every epoch and cut into global batches at random; only inside a batch are they sorted,
    so that the rows of a micro-batch are of like length (little padding) while batches stay unbiased. Rows that do not
    fill the last batch are left to the next epoch, and dropped at the very end; fewer rows than one batch are repeated.
    `steps` global batches are made where it is given, whatever `epochs` says: rows come again, or not all of them come.

    `groups` names the group of each row; rows of one group then stay together in runs of up to `group_size`, drawn at
    random, whose order is shuffled (what `sft.packing` needs to share a schema between questions). `families` names wider
    groups (default: the same): rows of one family stand side by side inside a global batch, which draws none together.

    Example: lengths [3, 1, 2, 5], global_batch_size 2, one epoch, shuffle [2, 0, 3, 1] -> [0, 2, 3, 1].
    """
    if not lengths:
        raise ValueError("there is not one row to train on. See the counts of dropped rows above for the reasons.")
    total = (steps or int(len(lengths) * epochs) // global_batch_size or 1) * global_batch_size
    drawn: list[list[int]] = []
    count = epoch = 0
    while count < total:
        runs = _runs(len(lengths), groups, group_size, random.Random(f"{seed}:{epoch}"))
        drawn += runs
        count += len(lengths)
        epoch += 1
    rows = [row for run in drawn for row in run]
    order = []
    for start in range(0, total, global_batch_size):
        batch = rows[start : start + global_batch_size]
        family = {row: _label(families or groups, row) for row in batch}
        longest: dict = {}
        for row in batch:
            longest[family[row]] = max(longest.get(family[row], 0), lengths[row])
        order += sorted(batch, key=lambda row: (-longest[family[row]], family[row], _label(groups, row), -lengths[row], row))
    return order


def _label(labels: list[str] | None, row: int) -> str | int:
    """A row's group; where there are none, every row is one of its own."""
    return labels[row] if labels else row


def _runs(count: int, groups: list[str] | None, size: int, chance: random.Random) -> list[list[int]]:
    """All rows once, in random order, as runs of up to `size` rows of one group."""
    rows = list(range(count))
    chance.shuffle(rows)
    if groups is None or size == 1:
        return [[row] for row in rows]
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(groups[row], []).append(row)
    runs = [found[start : start + size] for found in members.values() for start in range(0, len(found), size)]
    chance.shuffle(runs)
    return runs


def accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Gradient accumulation that makes micro-batches on all ranks add up to the global batch.

    Raises ValueError where they do not divide it.
    """
    together = micro_batch_size * world_size
    if global_batch_size % together:
        raise ValueError(
            f"train.global_batch_size {global_batch_size} is not a multiple of train.micro_batch_size "
            f"{micro_batch_size} x {world_size} rank(s) = {together}. The global batch stays what the configuration says "
            f"whatever the number of ranks: choose a micro batch that divides {global_batch_size} / {world_size}."
        )
    return global_batch_size // together
