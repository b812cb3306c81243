"""Sampling through vLLM, with a small module in its place: what it is given, and how its output is read."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from sft import vllm_sampler
from sft.checkpoint import load_tokenizer

END = 2


class FakeEngine:
    """Answers request number n with n tokens, and an end token where n is even; log-probability -0.5 a token."""

    made = None

    def __init__(self, **arguments):
        self.arguments, self.asked = arguments, None
        FakeEngine.made = self

    def generate(self, prompts, parameters, lora_request, use_tqdm):
        self.asked = (prompts, parameters, lora_request, use_tqdm)
        outputs = []
        for number in range(len(prompts)):
            ids = [*range(10, 10 + number), *([END] if number % 2 == 0 else [])]
            logprobs = [{token: SimpleNamespace(logprob=-0.5), 999: SimpleNamespace(logprob=-9.0)} for token in ids]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs)]))
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    """vLLM's names that are used, as a module."""
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = FakeEngine, lambda **arguments: SimpleNamespace(**arguments)
    request.LoRARequest = lambda *arguments: arguments
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_requests_and_completions(vllm, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    model = vllm_sampler.load(tiny_model, dtype="bfloat16", max_tokens=80)
    done = []
    found = vllm_sampler.generate(model, tokenizer, [[5, 6], [7]], ["a", "b"], samples=2, max_new_tokens=9,
                                  temperature=0.7, top_k=32, top_p=0.9, seed=3, progress=done.append)
    prompts, parameters, adapter, _ = FakeEngine.made.asked
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [[5, 6], [5, 6], [7], [7]]
    assert adapter is None and done == [2]
    assert {(row.n, row.temperature, row.top_k, row.top_p, row.max_tokens, row.logprobs, *row.stop_token_ids)
            for row in parameters} == {(1, 0.7, 32, 0.9, 9, 0, END)}
    assert len({row.seed for row in parameters}) == 4
    assert parameters[3].seed == vllm_sampler.sample_seed(3, "b", 1) != vllm_sampler.sample_seed(4, "b", 1)
    ids = [[row.token_ids for row in rows] for rows in found]
    assert ids == [[(), (10,)], [(10, 11), (10, 11, 12)]]
    assert [row.ended_with_eos for rows in found for row in rows] == [True, False, True, False]
    assert [row.token_count for rows in found for row in rows] == [1, 1, 3, 3]
    assert [row.logp_sum for rows in found for row in rows] == [-0.5, -0.5, -1.5, -1.5]
    assert found[1][1].text == tokenizer.decode([10, 11, 12])
    vllm_sampler.generate(model, tokenizer, [[7]], ["b"], samples=2, first_sample=1, max_new_tokens=9, temperature=0.7, seed=3)
    assert [row.seed for row in FakeEngine.made.asked[1]] == [vllm_sampler.sample_seed(3, "b", index) for index in (1, 2)]


def test_a_whole_model_and_an_adapter(vllm, tiny_model, tmp_path):
    vllm_sampler.load(tiny_model, dtype="float32", max_tokens=80)
    arguments = FakeEngine.made.arguments
    assert (arguments["model"], arguments["tokenizer"]) == (str(tiny_model), str(tiny_model))
    assert arguments["dtype"] == "float32" and arguments["max_model_len"] == 80 and "enable_lora" not in arguments
    # Log-probabilities before temperature and top_k, and no end tokens but ours.
    assert (arguments["logprobs_mode"], arguments["generation_config"]) == ("raw_logprobs", "vllm")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 12}))
    (tmp_path / "provenance.json").write_text(json.dumps({"model": str(tiny_model), "load_in_4bit": True}))
    model = vllm_sampler.load(tmp_path, dtype="bfloat16", max_tokens=80)
    arguments = FakeEngine.made.arguments
    assert (arguments["model"], arguments["tokenizer"]) == (str(tiny_model), str(tmp_path))
    assert (arguments["max_lora_rank"], arguments["quantization"]) == (16, "bitsandbytes")
    assert model.adapter == ("sft", 1, str(tmp_path))


def test_without_vllm_the_message_says_what_to_do(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"(?s)sample.sampler: vllm.*Allowed are.*pip install.*sample.sampler=builtin"):
        vllm_sampler.load(tiny_model, dtype="bfloat16", max_tokens=80)
