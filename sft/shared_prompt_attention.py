"""Attention for sampling many completions of a prompt: its keys and values are held, and attended to, once for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "shared_prompt"
# Arguments of transformers' attention functions that change the scores in ways not computed here.
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")


class CannotShareError(Exception):
    """The model's attention has terms that this module does not compute; nothing was changed."""


class SharedPromptCache:
    """Keys and values of prompts, one a slot, and of completions, one a row; of fixed size, so nothing is concatenated.

    Rows are kept dense: the rows being generated are 0 to n - 1. A row belongs to a slot, and the rows of a slot are
    always at the same step. Tensors are made by the first forward pass, one pair a layer:
    prompts [slots, key-value heads, prompt_tokens, head size], completions [rows, key-value heads, new_tokens, head size].
    """

    def __init__(self, slots: int, prompt_tokens: int, rows: int, new_tokens: int) -> None:
        self.slots, self.prompt_tokens, self.rows, self.new_tokens = slots, prompt_tokens, rows, new_tokens
        self.prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.completions: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor):
        """The four tensors of a layer: prompt keys, prompt values, completion keys, completion values."""
        if index not in self.prompts:
            # Zeros, since a masked place still counts with weight 0, and 0 x NaN is NaN.
            self.prompts[index], self.completions[index] = (
                tuple(states.new_zeros((count, states.shape[1], length, states.shape[3])) for states in (key, value))
                for count, length in ((self.slots, self.prompt_tokens), (self.rows, self.new_tokens))
            )
        return *self.prompts[index], *self.completions[index]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Put a row's completion in another row's place."""
        for pair in self.completions.values():
            for states in pair:
                states[target, :, :length] = states[source, :, :length]

    def move_slot(self, source: int, target: int, length: int) -> None:
        """Put a slot's prompt in another slot's place."""
        for pair in self.prompts.values():
            for states in pair:
                states[target, :, :length] = states[source, :, :length]


@dataclass(frozen=True)
class NewPrompt:
    """A prompt that this forward pass computes: tokens `shared` to `length` of it; those before stand in slot `source`."""

    slot: int
    length: int
    source: int
    shared: int


class Step:
    """One forward pass over a line of tokens: the last token of every row, then the new prompts' tokens.

    row_slots, row_steps: for each row its slot and the place of its token in its completion. slot_lengths: tokens of the
    prompt in each slot (the slots before the last one in use).
    """

    def __init__(self, cache: SharedPromptCache, row_slots: list[int], row_steps: list[int], slot_lengths: list[int],
                 new: list[NewPrompt], device: torch.device) -> None:
        import torch

        self.cache, self.new, self.rows = cache, new, len(row_slots)
        self.masks: dict = {}
        if not row_slots:
            return
        used = max(row_slots) + 1
        members: list[list[int]] = [[] for _ in range(used)]
        for row, slot in enumerate(row_slots):
            members[slot].append(row)
        self.stacked = max(map(len, members))
        self.prompt_width = max(slot_lengths[slot] for slot in set(row_slots))
        self.completion_width = max(row_steps) + 1
        stack = [row for rows in members for row in rows + [0] * (self.stacked - len(rows))]
        place = [0] * self.rows
        for slot, rows in enumerate(members):
            for number, row in enumerate(rows):
                place[row] = slot * self.stacked + number
        self.stack, self.place, self.steps, self.lengths, self.numbers = (
            torch.tensor(values, device=device)
            for values in (stack, place, row_steps, slot_lengths[:used], range(self.rows))
        )
        # Where the query of each slot's rows stands; slots without rows are computed and thrown away.
        self.slot_steps = torch.tensor([row_steps[rows[0]] if rows else 0 for rows in members], device=device)

    def row_masks(self, window: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the scores against prompts [slots, 1, 1, width] and own completions [rows, 1, 1, width]."""
        import torch

        if (window, dtype) not in self.masks:
            places = torch.arange(max(self.prompt_width, self.completion_width), device=self.steps.device)
            lengths, steps = self.lengths.unsqueeze(1), self.steps.unsqueeze(1)
            prompt, own = places[: self.prompt_width], places[: self.completion_width]
            hidden_prompt, hidden_own = prompt >= lengths, own > steps
            if window is not None:  # a query sees the last `window` tokens, itself included
                hidden_prompt = hidden_prompt | (prompt <= lengths + self.slot_steps.unsqueeze(1) - window)
                hidden_own = hidden_own | (own <= steps - window)
            self.masks[window, dtype] = tuple(_additive(hidden, dtype)[:, None, None] for hidden in (hidden_prompt, hidden_own))
        return self.masks[window, dtype]

    def prompt_mask(self, prompt: NewPrompt, window: int | None, dtype: torch.dtype,
                    device: torch.device) -> torch.Tensor:
        """What is added to the scores of a new prompt's tokens against the whole prompt: [1, 1, new tokens, tokens]."""
        import torch

        name = (prompt.shared, prompt.length, window, dtype)
        if name not in self.masks:
            keys = torch.arange(prompt.length, device=device)
            queries = keys[prompt.shared :].unsqueeze(1)
            hidden = keys > queries
            if window is not None:
                hidden = hidden | (keys <= queries - window)
            self.masks[name] = _additive(hidden, dtype)[None, None]
        return self.masks[name]


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token is seen; where it is hidden a number so low that nothing is left of it, and still finite."""
    import torch

    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min / 4)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float,
           causal: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the logarithm of its normaliser: [batch, queries, heads, head size] and [batch, queries, heads].

    query, key, value: [batch, heads, tokens, head size] with as many heads of keys as of queries.
    """
    import torch

    if query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        found, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scaling)
    else:
        scores = torch.matmul(query, key.transpose(-1, -2)).float() * scaling
        if causal:
            scores = scores + _additive(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1),
                                        scores.dtype)
        elif mask is not None:
            scores = scores + mask
        normaliser = scores.logsumexp(-1)
        found = torch.matmul((scores - normaliser.unsqueeze(-1)).exp().to(value.dtype), value)
    return found.transpose(1, 2), normaliser.transpose(1, 2)


def _attend_rows(step: Step, query, key, value, layer, scaling: float, window: int | None) -> torch.Tensor:
    """Attention of the rows' tokens [rows, heads, head size] to their prompts and to their own completions.

    The queries of all rows of a slot are stacked into one matrix against the prompt's keys; both parts are then
    weighed by their normalisers, which is the softmax over all keys.
    """
    import torch

    prompt_keys, prompt_values, own_keys, own_values = layer
    rows, heads, size = query.shape
    key_heads, width = key.shape[1], step.cache.new_tokens
    groups = heads // key_heads
    if ("index", key_heads) not in step.masks:
        kind = torch.arange(key_heads, device=query.device)
        pairs = step.numbers.unsqueeze(1) * key_heads + kind
        # Where each row's key goes among all [rows x key-value heads x new_tokens], and where each stacked query is.
        step.masks["index", key_heads] = (
            (pairs * width + step.steps.unsqueeze(1)).view(-1),
            (step.stack.view(-1, 1, step.stacked) * key_heads + kind.view(1, -1, 1)).view(-1),
        )
    written, stacking = step.masks["index", key_heads]
    own_keys.view(-1, key.shape[-1]).index_copy_(0, written, key.reshape(-1, key.shape[-1]))
    own_values.view(-1, value.shape[-1]).index_copy_(0, written, value.reshape(-1, value.shape[-1]))

    prompt_mask, own_mask = step.row_masks(window, query.dtype)
    slots = len(prompt_mask)
    stacked = query.reshape(rows * key_heads, groups * size).index_select(0, stacking)
    shared, shared_normaliser = attend(
        stacked.view(slots, key_heads, step.stacked * groups, size), prompt_keys[:slots, :, : step.prompt_width],
        prompt_values[:slots, :, : step.prompt_width], prompt_mask, scaling)
    own, own_normaliser = attend(
        query.reshape(rows, key_heads, groups, size), own_keys[:rows, :, : step.completion_width],
        own_values[:rows, :, : step.completion_width], own_mask, scaling)
    shared = shared.reshape(slots * step.stacked, groups, key_heads, -1).index_select(0, step.place)
    shared_normaliser = shared_normaliser.reshape(slots * step.stacked, groups, key_heads).index_select(0, step.place)
    weight = torch.sigmoid(shared_normaliser - own_normaliser).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, shared, weight).transpose(1, 2).reshape(rows, heads, -1)


def shared_prompt_attention(module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask=None, *,
                            shared_prompts: Step, scaling: float | None = None, sliding_window: int | None = None,
                            **rest) -> tuple[torch.Tensor, None]:
    """An attention function for transformers' AttentionInterface; query, key, value: [1, heads, tokens, head size].

    The line of tokens is that of `shared_prompts`, which a model hands on from its own keyword arguments.
    Raises CannotShareError where the model's attention has a term that is not computed here.
    """
    import torch

    if any(rest.get(name) is not None for name in UNKNOWN_TERMS):
        raise CannotShareError
    step = shared_prompts
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = step.cache.layer(module.layer_idx, key, value)
    parts = []
    if step.rows:
        first, first_key, first_value = (states[0, :, : step.rows].transpose(0, 1) for states in (query, key, value))
        parts.append(_attend_rows(step, first, first_key, first_value, layer, scaling, sliding_window))
    start = step.rows
    groups = query.shape[1] // key.shape[1]
    for prompt in step.new:
        count = prompt.length - prompt.shared
        held = []
        for states, new in zip(layer[:2], (key, value), strict=True):
            if prompt.shared and prompt.source != prompt.slot:
                states[prompt.slot, :, : prompt.shared] = states[prompt.source, :, : prompt.shared]
            states[prompt.slot, :, prompt.shared : prompt.length] = new[0, :, start : start + count]
            held.append(states[prompt.slot : prompt.slot + 1, :, : prompt.length].repeat_interleave(groups, 1))
        plain = not prompt.shared and sliding_window is None
        mask = None if plain else step.prompt_mask(prompt, sliding_window, query.dtype, query.device)
        found, _ = attend(query[:, :, start : start + count], *held, mask, scaling, causal=plain)
        parts.append(found[0])
        start += count
    return torch.cat(parts).unsqueeze(0) if len(parts) > 1 else parts[0].unsqueeze(0), None


@contextmanager
def shared_prompts(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute with `shared_prompt_attention` for a while; it takes `shared_prompts=Step` in its forward pass.

    Raises CannotShareError for a model whose attention does not go through transformers' interface, or not in all layers.
    """
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not getattr(model, "_supports_attention_backend", False) or kinds - {"full_attention", "sliding_attention"}:
        raise CannotShareError
    AttentionInterface.register(NAME, shared_prompt_attention)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
