"""Shared prompts: several architectures against transformers' own generation, prefixes computed once, rows refilled."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessorList,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sft import sampler
from sft.checkpoint import load_tokenizer
from sft.sampler import generate, order_by_prefix
from sft.shared_prompt_attention import COMPLETION_TOKENS, SharedPromptCache, Step, shared_prompt_attention

SHAPE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0}
# Windows shorter than the prompts below, so that their beginning passes out of sight while rows go on.
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "llama without groups": LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=24),
    "mistral, window of 9": MistralConfig(**SHAPE, head_dim=16, sliding_window=9),
    "qwen2, window in two layers": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "gemma3, window and full": Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16,
                                                layer_types=[f"{kind}_attention" for kind in ("sliding", "full", "sliding")]),
}
SHARED = list(range(40, 70))
PROMPTS = [[*SHARED, 100, 101, 102], list(range(200, 212)), [*SHARED, 100, 103], [300], [*SHARED, *range(400, 420)],
           list(range(205, 230)), SHARED]


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Attention that matters, biases that are not zero, and logits apart enough for one clear winner.
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "_proj" in name:
                parameter.mul_(5)
            elif "embed" in name or "lm_head" in name:
                parameter.mul_(8)
    return model


def often_ending(model):
    """The model with an end token that a good part of the rows takes early."""
    with torch.no_grad():
        model.lm_head.weight[2].mul_(20)
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return random_model(MODELS[request.param])


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture
def steps(monkeypatch):
    """Every forward pass that is made, as Step; none where the model was not switched."""
    made = []
    monkeypatch.setattr(sampler, "Step", lambda *arguments: made.append(Step(*arguments)) or made[-1])
    return made


def greedily(model, prompt, count):
    """What transformers generates: token ids, the end token too where it comes."""
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=2, pad_token_id=0)
    ids = torch.tensor([prompt])
    rows = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return rows[0, len(prompt) :].tolist()


def names(prompts):
    return [f"question {number}" for number in range(len(prompts))]


def test_greedy_tokens_are_those_of_transformers(model, tokenizer, steps):
    found = generate(model, tokenizer, PROMPTS, names(PROMPTS), max_new_tokens=20, batch_size=3)
    assert steps
    different = set()
    for prompt, [completion] in zip(PROMPTS, found, strict=True):
        theirs = greedily(model, prompt, 20)
        assert [*completion.token_ids, *([2] if completion.ended_with_eos else [])] == theirs
        different.add(tuple(theirs))
    assert len(different) > 4


def test_log_probabilities_are_those_of_a_plain_forward_pass(model, tokenizer):
    found = generate(model, tokenizer, PROMPTS, names(PROMPTS), samples=4, max_new_tokens=15, temperature=1.5, top_k=20,
                     seed=5, batch_size=10)
    assert len({completion.token_ids for rows in found for completion in rows}) > 20
    for prompt, rows in zip(PROMPTS, found, strict=True):
        for completion in rows:
            ids = [*completion.token_ids, *([2] if completion.ended_with_eos else [])]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            wanted = logits.double().log_softmax(-1)[torch.arange(len(ids)), ids].sum().item()
            assert math.isclose(completion.logp_sum, wanted, abs_tol=2e-3)


def test_pairs_of_tokens_are_distributed_as_transformers_would_draw_them(tokenizer):
    """The second token hangs on the first: its prompt is shared, its own keys are not."""
    model = random_model(MODELS["llama"])
    warpers = LogitsProcessorList([TemperatureLogitsWarper(4.0), TopKLogitsWarper(6), TopPLogitsWarper(0.9)])
    found = generate(model, tokenizer, PROMPTS[:3], names(PROMPTS[:3]), samples=1500, max_new_tokens=2, temperature=4.0,
                     top_k=6, top_p=0.9, seed=9, batch_size=2000)
    for prompt, rows in zip(PROMPTS[:3], found, strict=True):
        with torch.inference_mode():
            first = warpers(None, model(input_ids=torch.tensor([prompt])).logits[:, -1])[0].softmax(-1)
            tokens = first.nonzero().flatten().tolist()
            after = torch.tensor([[*prompt, token] for token in tokens])
            second = warpers(None, model(input_ids=after).logits[:, -1]).softmax(-1)
        joint = {(token, other): (first[token] * second[number, other]).item() * len(rows)
                 for number, token in enumerate(tokens) for other in second[number].nonzero().flatten().tolist()}
        counts = dict.fromkeys(joint, 0)
        for row in rows:
            counts[row.token_ids] += 1  # a KeyError is a pair that cannot be drawn
        observed = np.array([counts[pair] for pair in joint])
        expected = np.array(list(joint.values()))
        assert len(joint) >= 8 and expected.min() > 2
        assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.001


def test_the_model_is_left_as_it_was(tokenizer):
    model = random_model(MODELS["llama"])
    generate(model, tokenizer, [[5, 6]], ["a"], max_new_tokens=2)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(IndexError):
        generate(model, tokenizer, [[5, 6000]], ["a"], max_new_tokens=2)
    assert model.config._attn_implementation == "eager"


def test_an_attention_with_other_terms_takes_the_plain_path_with_the_same_tokens(tokenizer, steps):
    """Gemma 2 caps its scores, which is not computed here; without the cap it is switched like the others."""
    capped = Gemma2Config(**SHAPE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16, attn_logit_softcapping=2.0)
    model = random_model(capped)
    settings = {"samples": 3, "max_new_tokens": 12, "temperature": 1.0, "top_k": 30, "seed": 1, "batch_size": 6}
    seen = []
    found = generate(model, tokenizer, PROMPTS, names(PROMPTS), progress=seen.append, **settings)
    assert len(steps) == 1 and sum(seen) == len(PROMPTS)  # the first pass was refused
    assert model.config._attn_implementation == "eager"
    likeliest = generate(model, tokenizer, PROMPTS, names(PROMPTS), max_new_tokens=12)
    for prompt, [completion] in zip(PROMPTS, likeliest, strict=True):
        theirs = greedily(model, prompt, 12)
        assert [*completion.token_ids, *([2] if completion.ended_with_eos else [])] == theirs
    llama = random_model(MODELS["llama"])
    shared = generate(llama, tokenizer, PROMPTS, names(PROMPTS), **settings)
    llama._supports_attention_backend = False
    plain = generate(llama, tokenizer, PROMPTS, names(PROMPTS), **settings)
    assert [[row.token_ids for row in rows] for rows in plain] == [[row.token_ids for row in rows] for rows in shared]
    assert len({row.token_ids for rows in found for row in rows}) > 10


def test_every_prompt_token_is_computed_once_and_every_row_once_a_token(tokenizer, steps):
    """Seven prompts, four of them with the same 30 tokens; the work is counted by the tokens of every forward pass."""
    model = often_ending(random_model(MODELS["llama"]))
    found = generate(model, tokenizer, PROMPTS, names(PROMPTS), samples=2, max_new_tokens=10, temperature=3.0,
                     batch_size=8, seed=2)
    computed = sum(prompt.length - prompt.shared for step in steps for prompt in step.new)
    # 30 once, then 20, 100 101 102, 103, and the last token of the one that is all prefix; 25, 12 and 1 of the others.
    assert computed == 30 + 20 + 3 + 1 + 1 + 25 + 12 + 1
    rows = sum(step.rows for step in steps)
    # The first token of a completion comes from the prompt's own pass.
    assert rows == sum(completion.token_count - 1 for completions in found for completion in completions)
    assert max(step.rows for step in steps) <= 8
    # New prompts come while others go on.
    assert any(step.rows and step.new for step in steps)


def test_samples_do_not_depend_on_what_they_are_generated_with(tokenizer):
    model = often_ending(random_model(MODELS["qwen2"]))
    settings = {"samples": 3, "max_new_tokens": 12, "temperature": 3.0, "top_k": 100, "seed": 1}
    together = generate(model, tokenizer, PROMPTS, names(PROMPTS), batch_size=64, **settings)
    few = generate(model, tokenizer, PROMPTS, names(PROMPTS), batch_size=7, **settings)
    for first, second in zip(together, few, strict=True):
        assert [row.token_ids for row in first] == [row.token_ids for row in second]
    again = generate(model, tokenizer, PROMPTS, names(PROMPTS), batch_size=7, **settings)
    assert again == few


def test_order_keeps_schemas_together_and_long_ones_first():
    assert order_by_prefix([[1, 2, 3], [8, 9], [1, 2, 4, 5]]) == [2, 0, 1]
    # A common beginning of less than half is no schema.
    assert order_by_prefix([[1, 2, 3], [1, 5, 6, 7, 8], [1, 2, 9]]) == [1, 0, 2]


def test_attention_is_the_softmax_over_prompt_and_completion():
    """By hand: one row, prompt keys 0 and log 3, own key log 4; weights 1, 3, 4 of 8."""
    query, key = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 0.0], [math.log(3), 0.0]]]])
    value = torch.tensor([[[[8.0, 0.0], [0.0, 8.0]]]])
    cache = SharedPromptCache(slots=1, rows=1)
    step = Step(cache, row_slots=[0], row_steps=[0], slot_lengths=[2], new=[], device=query.device)
    prompt_key, prompt_value, _, _ = cache.layer(0, key, value)
    prompt_key[:], prompt_value[:] = key, value
    own_key, own_value = torch.tensor([[[[math.log(4), 0.0]]]]), torch.tensor([[[[16.0, 16.0]]]])
    layer = type("Layer", (), {"layer_idx": 0})
    found, _ = shared_prompt_attention(layer, query, own_key, own_value, shared_prompts=step, scaling=1.0)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1 + 8.0, 3 + 8.0]))


def test_the_cache_keeps_what_it_holds_when_its_room_changes():
    cache = SharedPromptCache(slots=2, rows=3)
    cache.fit(prompt_tokens=8, completion_tokens=1)
    states = torch.zeros(1, 2, 1, 4)
    prompt_key, _, own_key, _ = cache.layer(0, states, states)
    assert (prompt_key.shape, own_key.shape) == ((2, 2, 8, 4), (3, 2, COMPLETION_TOKENS, 4))
    prompt_key[:], own_key[:] = torch.randn(prompt_key.shape), torch.randn(own_key.shape)
    for prompt_tokens, kept in ((6, 8), (9, 9), (5, 5)):
        cache.fit(prompt_tokens, COMPLETION_TOKENS + 1)
        found, _, own, _ = cache.layer(0, states, states)
        assert (found.shape[2], own.shape[2]) == (kept, 2 * COMPLETION_TOKENS)
        assert torch.equal(found[:, :, : min(8, kept)], prompt_key[:, :, : min(8, kept)])
        assert torch.equal(own[:, :, :COMPLETION_TOKENS], own_key) and not own[:, :, COMPLETION_TOKENS:].any()
