"""A model's forward over packed rows (`sft.packing`): attention by tree, all else on the bare tokens."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface

from sft import ranks
from sft.checkpoint import layer_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Queries of one line that are computed at a time: keys behind them are passed over, which saves nearly half of a long
# line's work, and what is left stays in the cache.
BLOCK = 128


class LineAttention(torch.autograd.Function):
    """softmax(q k^T) v over lines, in blocks of queries; probabilities are kept for the backward pass in q's precision.

    On the CPU its backward is faster than sdpa's. Query heads share key heads in groups without a copy of the keys.
    """

    @staticmethod
    def forward(ctx, query, key, value, blocks):
        """query [key_heads, groups, lines, width, head_size], already scaled; key, value [key_heads, lines, width,
        head_size]; blocks as `query_blocks` gives them. Returns query's shape.
        """
        heads, groups, lines, width, size = query.shape
        out, kept = torch.empty_like(query), []
        for start, stop, free, unseen in blocks:
            block = query[:, :, :, start:stop].transpose(1, 2).reshape(heads * lines, -1, size)
            keys, values = (tensor[:, :, :stop].reshape(heads * lines, stop, size) for tensor in (key, value))
            scores = torch.bmm(block, keys.transpose(1, 2))
            scores.view(heads, lines, groups, stop - start, stop)[..., free:].masked_fill_(unseen, -torch.inf)
            chances = scores.softmax(-1).to(query.dtype)  # autocast on GPUs makes it fp32
            found = torch.bmm(chances, values).view(heads, lines, groups, stop - start, size)
            out[:, :, :, start:stop] = found.transpose(1, 2)
            kept.append(chances)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.places = [block[:2] for block in blocks]
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, *kept = ctx.saved_tensors
        heads, groups, lines, width, size = query.shape
        of_query = torch.empty_like(query)
        of_key, of_value = (tensor.new_zeros(heads * lines, width, size) for tensor in (key, value))
        for (start, stop), chances in zip(ctx.places, kept, strict=True):
            block, given = (tensor[:, :, :, start:stop].transpose(1, 2).reshape(heads * lines, -1, size)
                            for tensor in (query, gradient))
            keys, values = (tensor[:, :, :stop].reshape(heads * lines, stop, size) for tensor in (key, value))
            of_value[:, :stop] += torch.bmm(chances.transpose(1, 2), given)
            of_chances = torch.bmm(given, values.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_chances, chances, -1, chances.dtype)
            of_key[:, :stop] += torch.bmm(of_scores.transpose(1, 2), block)
            found = torch.bmm(of_scores, keys).view(heads, lines, groups, stop - start, size)
            of_query[:, :, :, start:stop] = found.transpose(1, 2)
        return of_query, of_key.view(key.shape), of_value.view(value.shape), None


def packed_attention(kernel: str, module, query, key, value, attention_mask, *, scaling: float, packed: dict,
                     sliding_window: int | None = None, dropout: float = 0.0, **others):
    """transformers' attention interface for packed tokens: query, key, value [1, heads, tokens, head_size].

    Returns (output [1, tokens, heads, head_size], None).
    """
    lines, cells = packed["lines"], packed["cells"]
    more = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if sliding_window is not None and sliding_window < lines.shape[1]:
        more.append(f"sliding_window {sliding_window}, shorter than {lines.shape[1]} tokens")
    if dropout:
        more.append(f"dropout {dropout}")
    if more:
        raise ValueError(f"the model's attention has {', '.join(more)}; shared prompts are computed by plain attention "
                         "over all earlier tokens. Set train.share_prompts: false.")
    query, key, value = (tensor[0].index_select(1, lines.view(-1)).unflatten(1, lines.shape)
                         for tensor in (query, key, value))
    heads, groups = key.shape[0], query.shape[0] // key.shape[0]
    if kernel == "eager":
        out = LineAttention.apply((query * scaling).unflatten(0, (heads, groups)), key, value, packed["blocks"])
        out = out.flatten(0, 1)
    else:
        given = (tensor.transpose(0, 1) for tensor in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=packed["sees"].unsqueeze(1), scale=scaling,
                                                               enable_gqa=groups > 1).transpose(0, 1)
    return out.flatten(1, 2).index_select(1, cells).transpose(0, 1).unsqueeze(0).contiguous(), None


for _kernel in ("eager", "sdpa"):
    AttentionInterface.register(f"packed_{_kernel}", partial(packed_attention, _kernel))


def visible(ends: torch.Tensor) -> torch.Tensor:
    """Which keys each query of a line sees, bool [lines, queries, keys], from `ends` [lines, width] of `sft.packing.pack`.

    Example: ends [[3, 2, 3]] -> [[[1, 0, 0], [1, 1, 0], [1, 0, 1]]].
    """
    place = torch.arange(ends.shape[1], device=ends.device)
    return (place[None, :, None] >= place[None, None, :]) & (place[None, :, None] < ends[:, None, :])


def query_blocks(sees: torch.Tensor) -> list[tuple[int, int, int, torch.Tensor]]:
    """(start, stop, free, unseen) of each block of queries: all of them see the keys before `free`, and which they do not
    see of the keys from there to `stop` says unseen, bool [lines, 1, queries, keys].
    """
    blocks = []
    for start in range(0, sees.shape[1], BLOCK):
        block = sees[:, start : start + BLOCK, : start + BLOCK]
        free = int(block.all(dim=1).all(dim=0).long().cumprod(0).sum())
        blocks.append((start, start + block.shape[1], free, ~block[:, None, :, free:]))
    return blocks


@contextmanager
def packs_accepted(model: PreTrainedModel, *, wanted: bool = True):
    """For a while, let a causal language model take `pack=` (of `sft.packing.pack`) beside the padded rows it stands for.

    The layers then run on the pack, and the hidden states of the tokens that predict a completion are put where the padded
    rows have them (zeros elsewhere), so that whatever scores them finds what it would find without the pack. For anything
    but packs give the model its own attention back meanwhile (`attention`). Yields whether the model takes packs: not
    where they are not `wanted`, nor where its attention cannot be replaced.
    """
    own = model.config._attn_implementation
    if wanted and layer_kinds(model) <= {"full_attention", "sliding_attention"}:  # others run on over the rows of a pack
        model.set_attn_implementation("packed_eager" if own == "eager" else "packed_sdpa")
    if not wanted or not model.config._attn_implementation.startswith("packed_"):
        if wanted and ranks.is_main():
            print(f"train.share_prompts: false, since {type(model).__name__} does not let its attention be replaced")
        yield False
        return
    backbone, in_blocks = model.base_model, own == "eager"
    original = backbone.forward

    def forward(*arguments, pack=None, **keywords):
        if pack is None:
            return original(*arguments, **keywords)
        shape = keywords.pop("input_ids").shape
        keywords["attention_mask"] = None
        sees = visible(pack["ends"])
        packed = {"lines": pack["lines"], "cells": pack["cells"], "sees": sees,
                  "blocks": query_blocks(sees) if in_blocks else None}
        output = original(input_ids=pack["input_ids"], position_ids=pack["position_ids"], packed=packed, **keywords)
        hidden = output.last_hidden_state[0]
        scored = hidden.index_select(0, pack["sources"])
        padded = hidden.new_zeros(shape.numel(), hidden.shape[-1]).index_copy(0, pack["targets"], scored)
        output.last_hidden_state = padded.view(*shape, -1)
        return output

    backbone.forward = forward
    try:
        yield True
    finally:
        backbone.forward = original
        model.set_attn_implementation(own)


@contextmanager
def attention(model: PreTrainedModel, implementation: str):
    """Give a model another attention for a while; back to its own at the end."""
    own = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
