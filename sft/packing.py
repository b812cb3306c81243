"""Several questions about one schema in one sequence: the schema is computed once, and no question sees another."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def common_prefix(rows: list[list[int]]) -> int:
    """Number of leading ids that all rows share."""
    shortest = min(map(len, rows))
    return next((index for index in range(shortest) if any(row[index] != rows[0][index] for row in rows)), shortest)


def _lines(lengths: list[int]) -> list[list[int]]:
    """Packs (by index) put together so that no line is longer than the longest pack: longest first, first line that fits.

    Example: lengths [2, 5, 3] -> [[1], [2, 0]].
    """
    room, lines = [], []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = next((number for number, free in enumerate(room) if free >= lengths[index]), None)
        if fits is None:
            room.append(max(lengths) - lengths[index])
            lines.append([index])
        else:
            room[fits] -= lengths[index]
            lines[fits].append(index)
    return lines


def pack(rows: list[dict], *, pad_token_id: int, attention: str) -> dict[str, torch.Tensor]:
    """A batch of packs, one for each run of rows with the same `schema`; short packs share a line of the batch.

    A pack is the rows' common prefix of prompt tokens, then what is left of each row. Every row sees the prefix and
    itself, at the positions it would have alone, so its loss is the same as alone.

    rows: {input_ids, labels (-100: no loss), schema}. Returns input_ids, labels and position_ids [lines, tokens], and
    attention_mask [lines, 1, tokens, tokens]: bool (True: may see), or for `attention: eager` float32 to be added (0 or
    the smallest number). Where every row has a line of its own it is the usual [lines, tokens] one, 1 for tokens, 0 for
    padding.

    Example: input_ids [4, 5, 6, 1] and [4, 5, 7, 8], labels [-100, -100, -100, 1] and [-100, -100, 7, 8]: shared is [4],
    since 5 predicts the second row's answer; the pack is [4, 5, 6, 1, 5, 7, 8] with positions [0, 1, 2, 3, 1, 2, 3], and
    token 7 sees 4, the second 5 and itself.
    """
    import torch

    packs = []
    for _, group in groupby(rows, key=lambda row: row["schema"]):
        group = list(group)
        # The prefix ends before the last prompt token of every row: that one predicts the row's own answer.
        prompts = [row["input_ids"][: max(0, sum(label == -100 for label in row["labels"]) - 1)] for row in group]
        shared = common_prefix(prompts) if len(group) > 1 else 0
        ids, labels = group[0]["input_ids"][:shared], [-100] * shared
        positions, branch = list(range(shared)), [0] * shared
        for number, row in enumerate(group, start=1):
            ids, labels = ids + row["input_ids"][shared:], labels + row["labels"][shared:]
            positions += range(shared, len(row["input_ids"]))
            branch += [number] * (len(row["input_ids"]) - shared)
        packs.append((ids, labels, positions, branch))
    lines = _lines([len(ids) for ids, *_ in packs])
    width = max(sum(len(packs[index][0]) for index in line) for line in lines)
    batch = {name: torch.full((len(lines), width), fill)
             for name, fill in (("input_ids", pad_token_id), ("labels", -100), ("position_ids", 0))}
    # Padding is pack -1: it sees only padding.
    owner, branches = torch.full((len(lines), width), -1), torch.full((len(lines), width), 1)
    for number, line in enumerate(lines):
        start = 0
        for index in line:
            ids, labels, positions, branch = packs[index]
            place = slice(start, start + len(ids))
            for name, values in zip(("input_ids", "labels", "position_ids"), (ids, labels, positions), strict=True):
                batch[name][number, place] = torch.tensor(values)
            owner[number, place], branches[number, place] = index, torch.tensor(branch)
            start += len(ids)
    if len(lines) == len(rows):
        return {**batch, "attention_mask": (owner >= 0).long()}
    seen = (branches.unsqueeze(1) == 0) | (branches.unsqueeze(1) == branches.unsqueeze(2))
    seen &= owner.unsqueeze(1) == owner.unsqueeze(2)
    mask = (seen & torch.ones(width, width, dtype=torch.bool).tril()).unsqueeze(1)
    if attention == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return {**batch, "attention_mask": mask}
