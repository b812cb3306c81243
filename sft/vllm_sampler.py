"""Sampling through vLLM (`sample.sampler: vllm`), for GPUs that have it. Not measured on a GPU yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.checkpoint import base_of, is_adapter, read_provenance, resolve_model
from sft.sampler import Completion


@dataclass(frozen=True)
class VllmModel:
    """vLLM's engine, and the adapter that it samples with."""

    engine: Any
    adapter: Any | None


def load(path: str | Path, *, dtype: str, max_tokens: int, trust_remote_code: bool = False) -> VllmModel:
    """The model of a folder (whole, or an adapter on its base) in vLLM.

    dtype: bfloat16 or float32. max_tokens: of the longest prompt and completion together, for which vLLM keeps memory.
    Raises ValueError where vLLM is not installed.
    """
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise ValueError(
            f"sample.sampler: vllm, but vLLM cannot be imported ({error}). Allowed are `builtin`, which needs nothing, "
            "and `vllm` on a machine with a GPU: pip install -e '.[vllm]', or set sample.sampler=builtin."
        ) from None
    arguments: dict[str, Any] = {}
    adapter = None
    if is_adapter(path):
        provenance = read_provenance(path)
        rank = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        # vLLM takes the ranks 8, 16, 32, 64 and so on.
        arguments = {"enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length())}
        adapter = LoRARequest("sft", 1, str(path))
        if provenance.get("load_in_4bit"):
            arguments["quantization"] = "bitsandbytes"
    base = base_of(provenance, trust_remote_code) if adapter else resolve_model(str(path), trust_remote_code)
    # generation_config "vllm": the model's own file would add end tokens that training does not know.
    engine = LLM(model=base, tokenizer=str(path), dtype=dtype,
                 max_model_len=max_tokens, enable_prefix_caching=True, logprobs_mode="raw_logprobs",
                 generation_config="vllm", trust_remote_code=trust_remote_code, **arguments)
    return VllmModel(engine, adapter)


def generate(model: VllmModel, tokenizer, prompts: list[list[int]], example_ids: list[str], *, samples: int = 1,
             max_new_tokens: int, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
             batch_size: int = 128, first_sample: int = 0,
             progress: Callable[[int], None] | None = None) -> list[list[Completion]]:
    """What `sft.sampler.generate` does, by vLLM; vLLM chooses its own batches, and shares prefixes by its own cache.

    Each sample has a seed of its own from (seed, example_id, sample_index); the numbers drawn are vLLM's, so the
    samples are others than the builtin sampler's.
    """
    from vllm import SamplingParams

    requests = [({"prompt_token_ids": prompt}, name, index)
                for prompt, name in zip(prompts, example_ids, strict=True)
                for index in range(first_sample, first_sample + samples)]
    # logprobs=0: the chosen token's own; raw_logprobs: before temperature, top_k and top_p.
    parameters = [SamplingParams(n=1, temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_new_tokens,
                                 seed=sample_seed(seed, name, index), stop_token_ids=[tokenizer.eos_token_id],
                                 logprobs=0, detokenize=False)
                  for _, name, index in requests]
    outputs = model.engine.generate([prompt for prompt, _, _ in requests], parameters, lora_request=model.adapter,
                                    use_tqdm=False)
    completions = [completion(tokenizer, output.outputs[0]) for output in outputs]
    if progress is not None:
        progress(len(prompts))
    return [completions[start : start + samples] for start in range(0, len(completions), samples)]


def sample_seed(seed: int, example_id: str, sample_index: int) -> int:
    """A seed of 31 bits for one sample."""
    digest = hashlib.sha256(f"{seed}\0{example_id}\0{sample_index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def completion(tokenizer, output) -> Completion:
    """One of vLLM's outputs as a completion; nothing is kept from the first end token on."""
    ids = list(output.token_ids)
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    kept = tuple(ids[:-1] if ended else ids)
    logp_sum = sum(step[token].logprob for token, step in zip(ids, output.logprobs, strict=True))
    return Completion(tokenizer.decode(kept, skip_special_tokens=True), kept, logp_sum, len(ids), ended)
