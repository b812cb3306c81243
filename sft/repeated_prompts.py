"""Sampling for models whose attention cannot be exchanged: transformers' own cache, repeated for every sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft.token_choice import candidates, choose, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]],
                  example_ids: list[str], *, samples: int, batch_size: int, progress,
                  **settings) -> list[list[tuple[list[int], float, bool]]]:
    """For each prompt and sample (token ids without EOS, logp_sum, whether it ended with EOS)."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    results: list = [[] for _ in prompts]
    together = max(1, batch_size // samples)
    for start in range(0, len(order), together):
        batch = order[start : start + together]
        rows = _generate_batch(model, tokenizer, [prompts[index] for index in batch],
                               [example_ids[index] for index in batch], samples, **settings)
        for number, index in enumerate(batch):
            results[index] = rows[number * samples : (number + 1) * samples]
        progress(len(batch))
    return results


def _generate_batch(model, tokenizer, prompts, example_ids, samples, max_new_tokens, temperature, top_k, top_p, seed,
                    first_sample):
    """The rows of one batch: prompts are padded on the left, computed once, then repeated; finished rows leave."""
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
    draws = torch.stack([uniforms(seed, key, index, max_new_tokens) for key in example_ids
                         for index in range(first_sample, first_sample + samples)])
    alive = torch.arange(len(draws))  # where the rows still in the batch belong
    rows: list[tuple[list[int], float, bool]] = [([], 0.0, False)] * len(draws)
    for count in range(max_new_tokens):
        values, found, normaliser = candidates(logits, temperature, top_k)
        choice = choose(values, draws[alive, count], temperature, top_p).unsqueeze(1)
        chosen = found.gather(1, choice).squeeze(1)
        scores = values.gather(1, choice).squeeze(1).float() - normaliser
        finished = chosen == tokenizer.eos_token_id
        for row, token, score, stop in zip(*(numbers.tolist() for numbers in (alive, chosen, scores, finished)), strict=True):
            tokens, logp_sum, _ = rows[row]
            rows[row] = (tokens if stop else [*tokens, token], logp_sum + score, stop)
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
    return rows
