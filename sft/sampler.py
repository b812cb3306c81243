"""Sampling completions: each prompt is computed once for all its samples, and rows leave when they finish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """One generated completion.

    token_ids: the generated ids without EOS. logp_sum: nats, summed over the generated tokens (EOS included), under
    the model itself (temperature 1, whole vocabulary). token_count counts EOS too.
    """

    text: str
    token_ids: tuple[int, ...]
    logp_sum: float
    token_count: int
    ended_with_eos: bool


def uniforms(seed: int, example_id: str, sample_index: int, count: int) -> torch.Tensor:
    """`count` uniform numbers in [0, 1), float32, that depend on (seed, example_id, sample_index) alone."""
    import torch

    digest = hashlib.sha256(f"{seed}\0{example_id}\0{sample_index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator)


def choose(logits: torch.Tensor, draw: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Next token ids [rows] from logits [rows, vocabulary] and one uniform number a row [rows].

    temperature 0 is greedy. Otherwise the distribution of `generate` with the same values: logits / temperature, then
    the top_k likeliest (0: all), then the smallest set of them with probability of at least top_p; drawn by inverting
    the cumulative distribution, likeliest first. Example: probabilities .6, .3, .1 and draw .65 give the second token.
    """
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1)
    width = min(top_k, logits.shape[-1]) if top_k else logits.shape[-1]
    values, indices = torch.topk(logits.float(), width, dim=-1)
    probabilities = torch.softmax(values / temperature, dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    if top_p < 1:
        probabilities = probabilities.masked_fill(cumulative - probabilities >= top_p, 0)
        cumulative = probabilities.cumsum(dim=-1)
    target = draw.to(cumulative.device).unsqueeze(-1) * cumulative[:, -1:]
    position = (cumulative <= target).sum(dim=-1, keepdim=True).clamp(max=width - 1)
    # Rounding must never land on a token that top_p removed.
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return indices.gather(-1, torch.minimum(position, last)).squeeze(-1)


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]],
             example_ids: list[str], *, samples: int = 1, max_new_tokens: int, temperature: float = 0.0, top_k: int = 0,
             top_p: float = 1.0, seed: int = 0, batch_size: int = 128,
             progress: Callable[[int], None] | None = None) -> list[list[Completion]]:
    """`samples` completions for every prompt (token ids), in the order of the prompts.

    A sample depends on (seed, example_id, sample_index), the model and, through the rounding of bf16, on the shape of
    its batch; batches are formed from these prompts alone, longest first. batch_size counts rows (prompts x samples).
    `progress` is called with the number of prompts that are finished, batch by batch.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    results: list[list[Completion]] = [[] for _ in prompts]
    step = max(1, batch_size // samples)
    with torch.inference_mode():
        for start in range(0, len(order), step):
            batch = order[start : start + step]
            completions = _generate_batch(
                model, tokenizer, [prompts[index] for index in batch], [example_ids[index] for index in batch],
                samples, max_new_tokens, temperature, top_k, top_p, seed,
            )
            for index, found in zip(batch, completions, strict=True):
                results[index] = found
            if progress is not None:
                progress(len(batch))
    return results


def _generate_batch(model, tokenizer, prompts, example_ids, samples, max_new_tokens, temperature, top_k, top_p, seed):
    """Completions [prompts][samples] of one batch: prompts are padded on the left, computed once, then repeated."""
    import torch
    from transformers import DynamicCache

    place = model.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(place), mask.to(place)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                   logits_to_keep=1).logits[:, -1]

    cache.batch_repeat_interleave(samples)
    logits, mask = logits.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    position = positions[:, -1:].repeat_interleave(samples, 0)
    draws = None
    if temperature > 0:
        draws = torch.stack([uniforms(seed, key, index, max_new_tokens) for key in example_ids
                             for index in range(samples)])
    rows = len(prompts) * samples
    alive = torch.arange(rows)  # where the rows still in the batch belong
    tokens: list[list[int]] = [[] for _ in range(rows)]
    logp = torch.zeros(rows, dtype=torch.float64)
    ended = [False] * rows
    for count in range(max_new_tokens):
        draw = draws[alive, count] if draws is not None else None
        chosen = choose(logits, draw, temperature, top_k, top_p)
        scores = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).float() - torch.logsumexp(logits.float(), dim=-1)
        logp[alive] += scores.double().cpu()
        finished = chosen == tokenizer.eos_token_id
        for row, token, stop in zip(alive.tolist(), chosen.tolist(), finished.tolist(), strict=True):
            if stop:
                ended[row] = True
            else:
                tokens[row].append(token)
        if finished.all() or count == max_new_tokens - 1:
            break
        if finished.any():
            keep = (~finished).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, chosen, mask, position = alive[keep.cpu()], chosen[keep], mask[keep], position[keep]
        position = position + 1
        mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        logits = model(input_ids=chosen.unsqueeze(-1), attention_mask=mask, position_ids=position,
                       past_key_values=cache, use_cache=True).logits[:, -1]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    completions = [
        Completion(text, tuple(found), float(score), len(found) + stop, stop)
        for text, found, score, stop in zip(texts, tokens, logp, ended, strict=True)
    ]
    return [completions[start : start + samples] for start in range(0, rows, samples)]
