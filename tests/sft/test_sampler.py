"""generate: against transformers' own generation and a plain loop without cache."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sft import sampler
from sft.checkpoint import load_base, load_tokenizer
from sft.sampler import generate
from sft.shared_prompt_attention import CannotShareError
from sft.token_choice import uniforms

QUESTIONS = [
    "How many orders?",
    "List the names of all customers who live in the city of Lisbon.",
    "SELECT",
    "What is the total of the orders that each customer placed? Answer with one SQLite query: name, city, total.",
    "CREATE TABLE employee (id INTEGER PRIMARY KEY, name TEXT)",
]
WARM = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with sharper choices, attention that matters, and an EOS that not every completion reaches."""
    model = load_base(tiny_model, precision="fp32").eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(8)
            layer.self_attn.k_proj.weight.mul_(8)
            layer.self_attn.v_proj.weight.mul_(8)
            layer.self_attn.o_proj.weight.mul_(8)
        model.model.norm.weight.mul_(6)
        model.model.embed_tokens.weight[2].mul_(2.5)
    return model


@pytest.fixture(scope="module")
def prompts(tokenizer):
    found = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    assert len({len(prompt) for prompt in found}) == len(found)
    return found


@pytest.fixture(scope="module")
def sampled(model, tokenizer, prompts):
    """Eight samples of every prompt, all in one batch."""
    return generate(model, tokenizer, prompts, list("abcde"), samples=8, max_new_tokens=20, seed=3, **WARM)


def full_logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def plain_sample(model, prompt, *, seed, example_id, sample_index, max_new_tokens, temperature, top_k, top_p, eos=2):
    """One sample the slow way: no cache, no padding, no batch, float64 on the CPU."""
    draws = uniforms(seed, example_id, sample_index, max_new_tokens).tolist()
    ids = []
    for draw in draws:
        logits = full_logits(model, [*prompt, *ids])[-1].double().numpy()
        likeliest = np.argsort(-logits)[:top_k]
        weights = np.exp((logits[likeliest] - logits.max()) / temperature)
        shares = weights / weights.sum()
        kept = [index for index in range(top_k) if shares[:index].sum() < top_p]
        edges = np.cumsum(shares[kept]) / shares[kept].sum()
        token = int(likeliest[kept[int(np.searchsorted(edges, draw, side="right"))]])
        if token == eos:
            return tuple(ids), True
        ids.append(token)
    return tuple(ids), False


# ---------------------------------------------------------------------- greedy


def test_greedy_is_what_transformers_generates(model, tokenizer, prompts):
    found = generate(model, tokenizer, prompts, list("abcde"), max_new_tokens=24)
    greedy = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0)
    for prompt, [completion] in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)[
            0, len(prompt) :
        ].tolist()
        ended = theirs[-1] == 2
        assert list(completion.token_ids) == (theirs[:-1] if ended else theirs)
        assert (completion.ended_with_eos, completion.token_count) == (ended, len(theirs))


def test_progress_counts_every_prompt_once(model, tokenizer, prompts):
    seen = []
    generate(model, tokenizer, prompts, list("abcde"), samples=2, max_new_tokens=1, batch_size=4, progress=seen.append)
    assert sum(seen) == 5 and set(seen) == {1}


# -------------------------------------------------------------------- sampling


def test_samples_equal_a_plain_loop_without_cache(model, prompts, sampled):
    for prompt, example_id, completions in zip(prompts, "abcde", sampled, strict=True):
        for index in (0, 3, 7):
            found = plain_sample(
                model, prompt, seed=3, example_id=example_id, sample_index=index, max_new_tokens=20, **WARM
            )
            assert (completions[index].token_ids, completions[index].ended_with_eos) == found


def test_samples_end_at_their_first_eos_and_count_it(tokenizer, sampled):
    everything = [completion for completions in sampled for completion in completions]
    assert {completion.ended_with_eos for completion in everything} == {True, False}
    assert any(0 < len(completion.token_ids) < 19 and completion.ended_with_eos for completion in everything)
    for completion in everything:
        assert tokenizer.eos_token_id not in completion.token_ids
        assert completion.token_count == len(completion.token_ids) + completion.ended_with_eos
        assert completion.ended_with_eos or completion.token_count == 20
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_logp_sum_is_the_log_probability_of_the_completion_and_its_eos(model, prompts, sampled):
    """Under the model itself: temperature 1 and the whole vocabulary, whatever the sampler's settings."""
    for prompt, completions in zip(prompts, sampled, strict=True):
        for completion in completions:
            ids = [*completion.token_ids, *([2] if completion.ended_with_eos else [])]
            logp = full_logits(model, prompt + ids)[len(prompt) - 1 : -1].double().log_softmax(-1)
            wanted = sum(logp[place, token].item() for place, token in enumerate(ids))
            assert math.isclose(completion.logp_sum, wanted, abs_tol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 16, 24])
def test_a_sample_does_not_depend_on_its_batch(model, tokenizer, prompts, sampled, batch_size):
    again = generate(
        model, tokenizer, prompts, list("abcde"), samples=8, max_new_tokens=20, seed=3, batch_size=batch_size, **WARM
    )
    assert [[row.token_ids for row in rows] for rows in again] == [[row.token_ids for row in rows] for rows in sampled]


def test_a_sample_does_not_depend_on_the_other_prompts_or_samples(model, tokenizer, prompts, sampled):
    for index, example_id in enumerate("abcde"):
        [alone] = generate(
            model, tokenizer, [prompts[index]], [example_id], samples=3, max_new_tokens=20, seed=3, **WARM
        )
        assert [row.token_ids for row in alone] == [row.token_ids for row in sampled[index][:3]]
    turned = generate(model, tokenizer, prompts[::-1], list("edcba"), samples=8, max_new_tokens=20, seed=3, **WARM)
    assert [[row.token_ids for row in rows] for rows in turned[::-1]] == [
        [row.token_ids for row in rows] for rows in sampled
    ]


@pytest.mark.parametrize("shared", [True, False])
def test_samples_drawn_later_are_those_of_one_draw(model, tokenizer, prompts, sampled, monkeypatch, shared):
    """Where a prompt's cache is shared by its samples, and where it is repeated for them."""
    if not shared:
        def refuse(model):
            raise CannotShareError

        monkeypatch.setattr(sampler, "shared_prompts", refuse)
    for first, count in ((0, 3), (3, 3), (6, 2)):
        part = generate(model, tokenizer, prompts, list("abcde"), samples=count, first_sample=first, max_new_tokens=20, seed=3,
                        **WARM)
        assert [[row.token_ids for row in rows] for rows in part] == [
            [row.token_ids for row in rows[first : first + count]] for rows in sampled]


def test_seed_example_and_index_each_change_the_sample(model, tokenizer, prompts, sampled):
    assert len({row.token_ids for row in sampled[1]}) > 4
    for example_id, seed in (("b", 4), ("z", 3)):
        [other] = generate(
            model, tokenizer, [prompts[1]], [example_id], samples=8, max_new_tokens=20, seed=seed, **WARM
        )
        assert [row.token_ids for row in other] != [row.token_ids for row in sampled[1]]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.5, 12, 0.9), (1.0, 20, 1.0), (1.3, 0, 0.5)])
def test_first_tokens_are_distributed_as_transformers_would_draw_them(
    model, tokenizer, prompts, temperature, top_k, top_p
):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    prompt = prompts[0]
    exact = warpers(None, full_logits(model, prompt)[-1:].clone())[0].softmax(-1).double().numpy()
    [found] = generate(
        model,
        tokenizer,
        [prompt],
        ["a"],
        samples=4000,
        max_new_tokens=1,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=1,
    )
    counts = np.zeros(len(exact))
    for completion in found:
        counts[completion.token_ids[0] if completion.token_ids else 2] += 1
    assert (exact > 0).sum() >= 4 and counts[exact == 0].sum() == 0
    # Cells with an expectation under 5 are taken together, as the test asks.
    common = exact * 4000 >= 5
    observed, expected = list(counts[common]), list(exact[common] * 4000)
    if (rest := (exact[~common] * 4000).sum()) > 0:
        observed.append(counts[~common].sum())
        expected.append(rest)
    expected = np.array(expected) * 4000 / sum(expected)
    assert chisquare(observed, expected).pvalue > 0.001
