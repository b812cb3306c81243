"""Attention for sampling many completions of a prompt: its keys and values are held, and attended to, once for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.checkpoint import layer_kinds

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "shared_prompt"
# Arguments of transformers' attention functions that change the scores in ways not computed here.
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
# Tokens by which the room for completions grows.
COMPLETION_TOKENS = 32


class CannotShareError(Exception):
    """The model's attention has terms that this module does not compute; nothing was changed."""


class SharedPromptCache:
    """Keys and values of prompts, one a slot, and of completions, one a row: places to write to, never concatenated.

    Rows are kept dense: those being generated are 0 to n - 1. A row belongs to a slot. For each layer there are keys
    and values of prompts [slots, key-value heads, prompt_tokens, head size] and of completions [rows, key-value heads,
    completion_tokens, head size]; they are made by the first forward pass. Both lengths follow what is held (`fit`), so
    that matrices over all of it are whole tensors, which torch multiplies without copying them first.
    """

    def __init__(self, slots: int, rows: int) -> None:
        self.slots, self.rows = slots, rows
        self.prompt_tokens = self.completion_tokens = 0
        self.prompts: dict[int, list[torch.Tensor]] = {}
        self.completions: dict[int, list[torch.Tensor]] = {}

    def fit(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Make room for these lengths; room for prompts is given back once a quarter of it is not needed."""
        if not 3 * self.prompt_tokens / 4 <= prompt_tokens <= self.prompt_tokens:
            self.prompt_tokens = prompt_tokens
            _resize(self.prompts, prompt_tokens)
        if completion_tokens > self.completion_tokens:
            self.completion_tokens = -(-completion_tokens // COMPLETION_TOKENS) * COMPLETION_TOKENS
            _resize(self.completions, self.completion_tokens)

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
        """The four tensors of a layer: prompt keys, prompt values, completion keys, completion values."""
        if index not in self.prompts:
            # Zeros, since a masked place still counts with weight 0, and 0 x NaN is NaN.
            self.prompts[index], self.completions[index] = (
                [states.new_zeros((count, states.shape[1], length, states.shape[3])) for states in (key, value)]
                for count, length in ((self.slots, self.prompt_tokens), (self.rows, self.completion_tokens))
            )
        return self.prompts[index] + self.completions[index]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Put a row's completion of `length` tokens in another row's place."""
        _move(self.completions, source, target, length)

    def move_slot(self, source: int, target: int, length: int) -> None:
        """Put a slot's prompt of `length` tokens in another slot's place."""
        _move(self.prompts, source, target, length)


def _resize(layers: dict[int, list[torch.Tensor]], length: int) -> None:
    """Give the tensors of all layers another length; what they held is kept as far as it fits."""
    for pair in layers.values():
        for number, states in enumerate(pair):
            kept = min(length, states.shape[2])
            pair[number] = states.new_zeros((*states.shape[:2], length, states.shape[3]))
            pair[number][:, :, :kept] = states[:, :, :kept]


def _move(layers: dict[int, list[torch.Tensor]], source: int, target: int, length: int) -> None:
    for pair in layers.values():
        for states in pair:
            states[target, :, :length] = states[source, :, :length]


@dataclass(frozen=True)
class NewPrompt:
    """A prompt that this forward pass computes, from token `shared` on; the tokens before stand in slot `source`."""

    slot: int
    length: int
    source: int
    shared: int


class Step:
    """One forward pass over a line of tokens: the newest token of every row, then the new prompts' tokens.

    row_slots, row_steps: for each row its slot, and the place of its token in its completion. slot_lengths: tokens of
    the prompt in each slot.
    """

    def __init__(self, cache: SharedPromptCache, row_slots: list[int], row_steps: list[int], slot_lengths: list[int],
                 new: list[NewPrompt], device: torch.device) -> None:
        import torch

        cache.fit(max(slot_lengths), max(row_steps, default=0) + 1)
        self.cache, self.new, self.rows = cache, new, len(row_slots)
        self.made: dict = {}  # what several layers use
        members: list[list[int]] = [[] for _ in range(max(row_slots, default=-1) + 1)]
        places = []
        for row, slot in enumerate(row_slots):
            places.append(len(members[slot]))
            members[slot].append(row)
        # The queries of a slot's rows are stacked; a slot with fewer rows than another repeats row 0, for nothing.
        self.slots, self.stacked = len(members), max(map(len, members), default=0)
        stack = [row for rows in members for row in rows + [0] * (self.stacked - len(rows))]
        self.row_slots, self.places, self.steps, self.stack, self.lengths = (
            torch.tensor(numbers, device=device, dtype=torch.long)
            for numbers in (row_slots, places, row_steps, stack, [slot_lengths[slot] for slot in row_slots])
        )

    def indices(self, key_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For every row and key-value head, row by row: where its newest key goes [rows x heads x completion tokens], and
        where it is in the stack [slots x heads x stacked]; for every place of the stack, which row and head it is.
        """
        import torch

        if key_heads not in self.made:
            heads = torch.arange(key_heads, device=self.steps.device)
            pairs = torch.arange(self.rows, device=heads.device).unsqueeze(1) * key_heads + heads
            written = pairs * self.cache.completion_tokens + self.steps.unsqueeze(1)
            stacked = (self.row_slots.unsqueeze(1) * key_heads + heads) * self.stacked + self.places.unsqueeze(1)
            stack = self.stack.view(-1, 1, self.stacked) * key_heads + heads.unsqueeze(1)
            self.made[key_heads] = tuple(numbers.reshape(-1) for numbers in (written, stacked, stack))
        return self.made[key_heads]

    def row_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the rows' scores against their prompt and their completion: [rows, 1, 1, tokens of both]."""
        import torch

        if (window, dtype) not in self.made:
            lengths, steps = self.lengths.unsqueeze(1), self.steps.unsqueeze(1)
            prompt, own = (torch.arange(count, device=steps.device)
                           for count in (self.cache.prompt_tokens, self.cache.completion_tokens))
            hidden = [prompt >= lengths, own > steps]
            if window is not None:  # a query sees the last `window` tokens, itself included
                hidden[0] = hidden[0] | (prompt <= lengths + steps - window)
                hidden[1] = hidden[1] | (own <= steps - window)
            self.made[window, dtype] = _additive(torch.cat(hidden, dim=1), dtype)[:, None, None]
        return self.made[window, dtype]

    def prompt_mask(self, prompt: NewPrompt, window: int | None) -> torch.Tensor | None:
        """Which tokens of a prompt each of its new tokens sees [new tokens, tokens]; None: all up to itself."""
        import torch

        if not prompt.shared and window is None:
            return None
        name = (prompt.shared, prompt.length, window)
        if name not in self.made:
            keys = torch.arange(prompt.length, device=self.steps.device)
            queries = keys[prompt.shared :].unsqueeze(1)
            self.made[name] = (keys <= queries) & (keys > queries - (window or prompt.length))
        return self.made[name]


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token is seen; where it is hidden a number so low that nothing is left of it, and still finite."""
    import torch

    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min / 4)


def _attend_rows(step: Step, query, key, value, layer, scaling: float, window: int | None) -> torch.Tensor:
    """Attention of the rows' tokens [rows, heads, head size] to their prompts and to their own completions.

    The queries of all rows of a slot, and of all heads that share a key head, are one matrix against the prompt's keys.
    The softmax is over the keys of prompt and completion together.
    """
    import torch

    prompt_keys, prompt_values, own_keys, own_values = layer
    rows, heads, size = query.shape
    key_heads, width = key.shape[1], prompt_keys.shape[2]
    groups = heads // key_heads
    written, stacked, stack = step.indices(key_heads)
    for states, new in ((own_keys, key), (own_values, value)):
        states.view(-1, new.shape[-1]).index_copy_(0, written, new.reshape(-1, new.shape[-1]))
    prompt_keys, prompt_values = (states[: step.slots].flatten(0, 1) for states in (prompt_keys, prompt_values))
    own_keys, own_values = (states[:rows].flatten(0, 1) for states in (own_keys, own_values))

    def to_stack(states: torch.Tensor) -> torch.Tensor:
        """[rows x key heads, groups, n] -> [slots x key heads, stacked x groups, n]"""
        found = states.reshape(rows * key_heads, -1).index_select(0, stack)
        return found.view(step.slots * key_heads, step.stacked * groups, states.shape[-1])

    def from_stack(states: torch.Tensor) -> torch.Tensor:
        found = states.view(step.slots * key_heads * step.stacked, -1).index_select(0, stacked)
        return found.view(rows * key_heads, groups, states.shape[-1])

    query = (query * scaling).view(rows * key_heads, groups, size)
    scores = torch.cat([from_stack(torch.bmm(to_stack(query), prompt_keys.transpose(1, 2))),
                        torch.bmm(query, own_keys.transpose(1, 2))], dim=-1)
    scores.view(rows, key_heads, groups, -1).add_(step.row_mask(window, scores.dtype))
    weights = torch.softmax(scores, dim=-1)
    found = torch.bmm(weights[..., width:], own_values)
    found += from_stack(torch.bmm(to_stack(weights[..., :width]), prompt_values))
    return found.view(rows, heads, -1)


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
        newest = (states[0, :, : step.rows].transpose(0, 1) for states in (query, key, value))
        parts.append(_attend_rows(step, *newest, layer, scaling, sliding_window))
    start = step.rows
    for prompt in step.new:
        end = start + prompt.length - prompt.shared
        held = []
        for states, new in zip(layer[:2], (key, value), strict=True):
            if prompt.source != prompt.slot:
                states[prompt.slot, :, : prompt.shared] = states[prompt.source, :, : prompt.shared]
            states[prompt.slot, :, prompt.shared : prompt.length] = new[0, :, start:end]
            held.append(states[prompt.slot, :, : prompt.length].unsqueeze(0))
        mask = step.prompt_mask(prompt, sliding_window)
        found = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end], *held, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
        parts.append(found[0].transpose(0, 1))
        start = end
    return torch.cat(parts).unsqueeze(0) if len(parts) > 1 else parts[0].unsqueeze(0), None


@contextmanager
def shared_prompts(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute with `shared_prompt_attention` for a while; its forward pass then takes `shared_prompts`.

    Raises CannotShareError for a model whose attention does not go through transformers' interface in all layers.
    """
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False) or layer_kinds(model) - {"full_attention", "sliding_attention"}:
        raise CannotShareError
    AttentionInterface.register(NAME, shared_prompt_attention)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
