"""Sampling completions: a prompt is computed once for all its samples; rows that finish make room for new prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sft.packed_weights import packed_weights
from sft.packing import common_prefix
from sft.shared_prompt_attention import CannotShareError, NewPrompt, SharedPromptCache, Step, shared_prompts
from sft.token_choice import candidates, choose, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Prompt tokens that one forward pass computes beside the rows; at least one prompt, however long.
PROMPT_TOKENS_PER_STEP = 1024


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


@dataclass
class Row:
    """A completion that is being generated. `draws`: one uniform number for each of its tokens (none: greedy)."""

    prompt: int
    sample: int
    slot: int
    draws: list[float]
    tokens: list[int] = field(default_factory=list)
    logp_sum: float = 0.0


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]],
             example_ids: list[str], *, samples: int = 1, max_new_tokens: int, temperature: float = 0.0, top_k: int = 0,
             top_p: float = 1.0, seed: int = 0, batch_size: int = 128, first_sample: int = 0,
             progress: Callable[[int], None] | None = None) -> list[list[Completion]]:
    """`samples` completions for every prompt (token ids), in the order of the prompts.

    The distribution is that of transformers' `generate` with the same temperature (0: greedy), top_k (0: all), top_p.
    A sample depends on (seed, example_id, sample_index), the model and, through the rounding of bf16, on the prompts it
    is generated with; sample indexes count from first_sample, so that more can be drawn for a prompt later. batch_size
    counts rows (prompts x samples) that are generated at a time. `progress` is called with the number of prompts that
    were finished since the last call.
    """
    import torch

    settings = {"samples": samples, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
                "top_p": top_p, "seed": seed, "batch_size": max(batch_size, samples), "first_sample": first_sample,
                "progress": progress or (lambda count: None)}
    if not prompts:
        return []
    with torch.inference_mode(), packed_weights(model):
        try:
            with shared_prompts(model):
                rows = _generate(model, tokenizer.eos_token_id, prompts, example_ids, **settings)
        except CannotShareError:
            from sft.repeated_prompts import generate_rows

            rows = generate_rows(model, tokenizer, prompts, example_ids, **settings)
    texts = iter(tokenizer.batch_decode([ids for found in rows for ids, _, _ in found], skip_special_tokens=True))
    return [[Completion(next(texts), tuple(ids), logp_sum, len(ids) + ended, ended) for ids, logp_sum, ended in found]
            for found in rows]


def order_by_prefix(prompts: list[list[int]]) -> list[int]:
    """The order in which prompts are computed: those on one schema (half of the shorter prompt is shared) follow each
    other, longest first; groups with the longest prompts first.

    Example: prompts a b c, x y, a b d e, each letter a token -> [2, 0, 1].
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: (prompts[index], index)):
        near = groups and common_prefix(prompts[groups[-1][-1]], prompts[index])
        if groups and 2 * near >= min(len(prompts[groups[-1][-1]]), len(prompts[index])):
            groups[-1].append(index)
        else:
            groups.append([index])
    for group in groups:
        group.sort(key=lambda index: (-len(prompts[index]), index))
    groups.sort(key=lambda group: (-len(prompts[group[0]]), group[0]))
    return [index for group in groups for index in group]


def _generate(model, eos, prompts, example_ids, *, samples, max_new_tokens, temperature, top_k, top_p, seed, batch_size,
              first_sample, progress) -> list[list[tuple[list[int], float, bool]]]:
    """For each prompt and sample (token ids without EOS, logp_sum, whether it ended with EOS)."""
    import torch

    place = model.device
    waiting = order_by_prefix(prompts)[::-1]
    # Rows finish at different steps: with half as many slots again as full ones would take, stragglers keep few waiting.
    slots = min(len(prompts), batch_size // samples if samples == 1 else -(-3 * batch_size // (2 * samples)))
    cache = SharedPromptCache(slots, min(batch_size, len(prompts) * samples))
    held: list[list[int]] = [[] for _ in range(slots)]  # the prompt in each slot, also after its rows have finished
    in_use: list[int] = [0] * slots  # rows of each slot that are being generated
    rows: list[Row] = []
    results: list[list] = [[None] * samples for _ in prompts]
    while waiting or rows:
        new, arrivals, budget = [], [], PROMPT_TOKENS_PER_STEP
        while waiting and 0 in in_use and len(rows) + len(arrivals) + samples <= cache.rows and budget > 0:
            index = waiting.pop()
            slot = in_use.index(0)
            prompt = new_prompt(prompts[index], slot, held)
            held[slot], in_use[slot] = prompts[index], samples
            new.append(prompt)
            budget -= prompt.length - prompt.shared
            arrivals += [Row(index, sample, slot, uniforms(seed, example_ids[index], first_sample + sample,
                                                           max_new_tokens).tolist() if temperature else [])
                         for sample in range(samples)]
        logits = _forward(model, cache, rows, new, held, place)
        values, ids, normaliser = candidates(logits, temperature, top_k)
        # The samples of a new prompt choose their first token from one row of logits.
        if arrivals:
            chooser = torch.tensor([*range(len(rows)), *(len(rows) + number for number in range(len(new))
                                                         for _ in range(samples))], device=place)
            values, ids, normaliser = values[chooser], ids[chooser], normaliser[chooser]
            rows += arrivals
        draws = torch.tensor([row.draws[len(row.tokens)] for row in rows]) if temperature else None
        choice = choose(values, draws, temperature, top_p).unsqueeze(1)
        scores = values.gather(1, choice).squeeze(1).float() - normaliser
        tokens, finished = ids.gather(1, choice).squeeze(1).tolist(), []
        for number, (row, token, score) in enumerate(zip(rows, tokens, scores.tolist(), strict=True)):
            row.logp_sum += score
            row.tokens.append(token)
            if token == eos or len(row.tokens) >= max_new_tokens:
                finished.append(number)
                in_use[row.slot] -= 1
                ids_found = row.tokens[:-1] if token == eos else row.tokens
                results[row.prompt][row.sample] = (ids_found, row.logp_sum, token == eos)
                if in_use[row.slot] == 0:
                    progress(1)
        remove_rows(cache, rows, finished)
        if not waiting:
            fill_slots(cache, rows, held, in_use)
    return results


def new_prompt(prompt: list[int], slot: int, held: list[list[int]]) -> NewPrompt:
    """What is to be computed of a prompt that goes to `slot`: all but the longest prefix that a slot already holds."""
    shared = [common_prefix(prompt, other) for other in held]
    source = max(range(len(held)), key=lambda other: (shared[other], other == slot))
    # The last token is always computed: the first one generated depends on it.
    return NewPrompt(slot, len(prompt), source, min(shared[source], len(prompt) - 1))


def _forward(model, cache: SharedPromptCache, rows: list[Row], new: list[NewPrompt], held: list[list[int]], place):
    """Logits [rows + new prompts, vocabulary] of the next token of every row and every new prompt."""
    import torch

    steps = [len(row.tokens) - 1 for row in rows]
    lengths = [len(prompt) for prompt in held]
    ids = [row.tokens[-1] for row in rows]
    positions = [lengths[row.slot] + step for row, step in zip(rows, steps, strict=True)]
    last = list(range(len(rows)))
    for prompt in new:
        ids += held[prompt.slot][prompt.shared :]
        positions += range(prompt.shared, prompt.length)
        last.append(len(ids) - 1)
    step = Step(cache, [row.slot for row in rows], steps, lengths, new, place)
    ids, positions, last = (torch.tensor(numbers, device=place) for numbers in (ids, positions, last))
    return model(input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, logits_to_keep=last,
                 shared_prompts=step).logits[0]


def remove_rows(cache: SharedPromptCache, rows: list[Row], finished: list[int]) -> None:
    """Take finished rows out; rows from the end take their places, so that the others stay 0 to n - 1."""
    for number in reversed(finished):
        last = rows.pop()
        if number < len(rows):
            # Its newest token's key and value come with the next forward pass.
            cache.move_row(len(rows), number, len(last.tokens) - 1)
            rows[number] = last


def fill_slots(cache: SharedPromptCache, rows: list[Row], held: list[list[int]], in_use: list[int]) -> None:
    """When no prompt waits: slots from the end take the places of empty ones, so that those in use come first."""
    while held and 0 in in_use:
        empty = in_use.index(0)
        prompt, count = held.pop(), in_use.pop()
        if count:
            cache.move_slot(len(held), empty, len(prompt))
            held[empty], in_use[empty] = prompt, count
            for row in rows:
                if row.slot == len(held):
                    row.slot = empty
