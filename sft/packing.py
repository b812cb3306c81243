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


def pack(rows: list[dict], *, pad_token_id: int, attention: str) -> dict[str, torch.Tensor]:
    """A batch of packs, one for each run of rows with the same `schema`.

    A pack is the rows' common prefix of prompt tokens, then what is left of each row. Every row sees the prefix and
    itself, at the positions it would have alone, so its loss is the same as alone.

    rows: {input_ids, labels (-100: no loss), schema}. Returns input_ids, labels and position_ids [packs, tokens], and
    attention_mask [packs, 1, tokens, tokens]: bool (True: may see), or for `attention: eager` float32 to be added (0 or
    the smallest number). Where no pack holds two rows it is the usual [packs, tokens] one, 1 for tokens, 0 for padding.

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
    width = max(len(ids) for ids, *_ in packs)
    batch = {name: torch.full((len(packs), width), fill)
             for name, fill in (("input_ids", pad_token_id), ("labels", -100), ("position_ids", 0))}
    # Padding belongs to no row, and sees only padding.
    branches = torch.full((len(packs), width), -1)
    for index, (ids, labels, positions, branch) in enumerate(packs):
        for name, values in zip(("input_ids", "labels", "position_ids"), (ids, labels, positions), strict=True):
            batch[name][index, : len(values)] = torch.tensor(values)
        branches[index, : len(branch)] = torch.tensor(branch)
    if all(max(branch) <= 1 for *_, branch in packs):
        return {**batch, "attention_mask": (branches >= 0).long()}
    seen = (branches.unsqueeze(1) == branches.unsqueeze(2)) | ((branches == 0).unsqueeze(1) & (branches > 0).unsqueeze(2))
    mask = (seen & torch.ones(width, width, dtype=torch.bool).tril()).unsqueeze(1)
    if attention == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return {**batch, "attention_mask": mask}
