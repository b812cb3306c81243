"""Choosing the next token: the distribution of transformers' `generate`, worked out on the likeliest tokens alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Logits in a group, when the likeliest are looked for among the largest of each group first.
GROUP = 16
# Rows whose logits are converted to float32 at a time on the CPU, so that they stay in its cache.
ROWS_AT_A_TIME = 16


def uniforms(seed: int, example_id: str, sample_index: int, count: int) -> torch.Tensor:
    """`count` uniform numbers in [0, 1), float32, that depend on (seed, example_id, sample_index) alone."""
    import torch

    digest = hashlib.sha256(f"{seed}\0{example_id}\0{sample_index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator)


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest logits of every row and their token ids, largest first: both [rows, count].

    They stand in the `count` groups with the largest maxima, so that only these are searched. Group g holds the ids g,
    g + groups, g + 2 x groups and so on. Example with groups of 2: the 2 largest of [3, 1, 9, 0, 2, 8] are in the
    groups [9, 8] (ids 2 and 5) and [3, 0].
    """
    import torch

    rows, vocabulary = logits.shape
    groups = vocabulary // GROUP
    if groups < 4 * count:
        return torch.topk(logits, count, dim=-1)
    even = groups * GROUP
    found = logits[:, :even].view(rows, GROUP, groups).amax(1).topk(count, dim=-1).indices
    ids = (found.unsqueeze(-1) + torch.arange(0, even, groups, device=logits.device)).view(rows, -1)
    if even < vocabulary:
        rest = torch.arange(even, vocabulary, device=logits.device).expand(rows, -1)
        ids = torch.cat([ids, rest], dim=1)
    values, places = logits.gather(1, ids).topk(count, dim=-1)
    return values, ids.gather(1, places)


def candidates(logits: torch.Tensor, temperature: float, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the next token of each row of logits [rows, vocabulary] is chosen from.

    Logits and token ids of the top_k likeliest (0: all; temperature 0: the likeliest alone) [rows, count], and the
    logarithm of the sum of the exponentials of all logits, in float32 [rows].
    """
    vocabulary = logits.shape[-1]
    if temperature == 0:
        values, ids = logits.max(dim=-1, keepdim=True)
    else:
        values, ids = likeliest(logits, min(top_k or vocabulary, vocabulary))
    return values, ids, normalisers(logits, values[:, :1].float())


def normalisers(logits: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of the exponentials of every row of logits [rows, vocabulary], in float32 [rows].

    largest: the largest of each row [rows, 1], in float32.
    """
    import torch

    rows = ROWS_AT_A_TIME if logits.device.type == "cpu" else len(logits)
    sums = [part.to(torch.float32, copy=True).sub_(top).exp_().sum(dim=-1)
            for part, top in zip(logits.split(rows), largest.split(rows), strict=True)]
    return torch.cat(sums).log() + largest.squeeze(1)


def choose(values: torch.Tensor, draw: torch.Tensor | None, temperature: float, top_p: float) -> torch.Tensor:
    """Places [rows] of the next tokens among the candidates' logits [rows, count], largest first.

    temperature 0 is greedy. Otherwise the distribution of `generate` with the same values: logits / temperature, and of
    the candidates the smallest set with probability of at least top_p; drawn by inverting the cumulative distribution
    with one uniform number a row [rows]. Example: probabilities .6, .3, .1 and draw .65 give place 1.
    """
    import torch

    if temperature == 0:
        return torch.zeros(len(values), dtype=torch.long, device=values.device)
    probabilities = torch.softmax(values.float() / temperature, dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    if top_p < 1:
        probabilities = probabilities.masked_fill(cumulative - probabilities >= top_p, 0)
        cumulative = probabilities.cumsum(dim=-1)
    target = draw.to(cumulative.device).unsqueeze(-1) * cumulative[:, -1:]
    place = (cumulative <= target).sum(dim=-1)
    # Rounding must never land on a token that top_p removed.
    return torch.minimum(place, (probabilities > 0).sum(dim=-1) - 1)
