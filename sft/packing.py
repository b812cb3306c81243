"""Rows that begin alike as one tree of tokens: what they share is computed once, and no row sees another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# A token's layers cost about as much as attention between it and so many others (more in larger models). Attention is
# computed over whole trees, so for long rows to share the few tokens that open every prompt would cost more than it saves.
TOKEN_COST = 1000


def common_prefix(one: list[int], other: list[int]) -> int:
    """Number of leading ids that two rows share."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(index for index in range(shortest) if one[index] != other[index])


def token_trees(rows: list[list[int]]) -> tuple[list[list[tuple[int, int, int]]], list[tuple[int, list[int]]]]:
    """Rows as trees of tokens, and the path of each row in its tree.

    A tree is a list of (id, position, end) in depth-first order: a token at place p is seen by itself and by the tokens at
    places p + 1 to end - 1, which are those that follow it in some row. Row number r is `paths[r]`: (tree, places).

    Example: rows [4, 5, 6], [4, 5, 7] and [9] give the trees [(4, 0, 4), (5, 1, 4), (6, 2, 3), (7, 2, 4)] and
    [(9, 0, 1)], and the paths (0, [0, 1, 2]), (0, [0, 1, 3]), (1, [0]).
    """
    trees: list[list[tuple[int, int, int]]] = []
    paths: list = [None] * len(rows)
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    path: list[int] = []
    previous: list[int] = []

    def close(depth: int) -> None:
        for place in path[depth:]:
            ends[place] = len(ids)

    for number in sorted(range(len(rows)), key=lambda number: rows[number]):
        row = rows[number]
        shared = common_prefix(previous, row)
        if not previous or shared * TOKEN_COST < (len(row) - shared) * (len(ids) - shared):
            close(0)
            if ids:
                trees.append(list(zip(ids, positions, ends, strict=True)))
            ids, positions, ends, path, shared = [], [], [], [], 0
        close(shared)
        path = path[:shared] + list(range(len(ids), len(ids) + len(row) - shared))
        ids += row[shared:]
        positions += range(shared, len(row))
        ends += [0] * (len(row) - shared)
        paths[number] = (len(trees), path)
        previous = row
    close(0)
    trees.append(list(zip(ids, positions, ends, strict=True)))
    return trees, paths


def _lines(lengths: list[int]) -> list[list[int]]:
    """Trees (by index) put together so that no line is longer than the longest tree: longest first, first line that fits.

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


def pack(rows: list[list[int]], prompt_lengths: list[int]) -> dict[str, torch.Tensor]:
    """The trees of a batch's rows one after the other, without padding, and where each completion token's predictor is.

    Returns int64 tensors:
    input_ids, position_ids [1, tokens]: the trees; positions are those that a token has in its row.
    lines [lines, width]: attention is computed over lines, each filled with whole trees; the token in each cell (0 in
    cells left over). cells [tokens]: the cell of each token, counted along the lines. ends [lines, width]: a cell is seen
    by the cells of its line from itself up to this one, not included.
    sources [scored]: the tokens that predict a completion's tokens; targets [scored]: their places in the batch as rows
    padded to one length, [rows, longest], counted along the rows.

    Example: rows [4, 5, 6, 1] and [4, 5, 7, 8] with prompts of 3 and 2 tokens: input_ids [4, 5, 6, 1, 7, 8], positions
    [0, 1, 2, 3, 2, 3]; 1 is predicted by 6 (source 2, target 2), 7 by the second row's 5 (source 1, target 5) and 8 by 7
    (source 4, target 6).
    """
    import torch

    trees, paths = token_trees(rows)
    starts = [0]
    for tree in trees:
        starts.append(starts[-1] + len(tree))
    filled = _lines([len(tree) for tree in trees])
    width, longest = max(map(len, trees)), max(map(len, rows))
    lines = torch.zeros(len(filled), width, dtype=torch.long)
    ends = torch.arange(1, width + 1).repeat(len(filled), 1)
    cells = torch.empty(starts[-1], dtype=torch.long)
    for number, line in enumerate(filled):
        place = 0
        for index in line:
            count = len(trees[index])
            tokens = torch.arange(starts[index], starts[index] + count)
            lines[number, place : place + count] = tokens
            ends[number, place : place + count] = place + torch.tensor([end for *_, end in trees[index]])
            cells[tokens] = torch.arange(number * width + place, number * width + place + count)
            place += count
    sources, targets = [], []
    for number, (tree, path) in enumerate(paths):
        # A completion's first token is predicted by the prompt's last one, which other rows may share.
        for place in range(prompt_lengths[number] - 1, len(path) - 1):
            sources.append(starts[tree] + path[place])
            targets.append(number * longest + place)
    flat = [token for tree in trees for token in tree]
    return {"input_ids": torch.tensor([[token for token, *_ in flat]]),
            "position_ids": torch.tensor([[position for _, position, _ in flat]]),
            "lines": lines, "cells": cells, "ends": ends,
            "sources": torch.tensor(sources), "targets": torch.tensor(targets)}
