"""The last step of a round: train DPO, save and check the adapter, measure it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from preference.rounds import adapter_of, standings
from sft import ranks
from sft.artefacts import mark_complete, write_json
from sft.checkpoint import (
    base_of,
    fingerprint,
    load_adapter,
    load_base,
    load_for_inference,
    precision_dtype,
    read_provenance,
    release_memory,
    save_adapter,
)
from sft.evaluation import evaluate
from sft.examples import load
from sft.records import peak_memory_bytes, write_card


def train_round(config, sft_config: dict, folder: Path, number: int, tokenizer, pairs: list[dict], inputs: dict) -> None:
    """Train on the pairs from the adapter of the round before, write RUN/round-NUMBER/dpo, and measure it on dev.

    The frozen reference is a copy of the adapter that the round starts from. Where the guards keep the adapter of an earlier
    step, that of the last step trained stands in dpo/last, to compare with; nothing goes on from it.
    """
    from preference.dpo_training import train_dpo
    from preference.guards import drawn, gathered_adapter

    started = time.time()
    settings = config.train
    adapter, output = adapter_of(folder, number - 1), adapter_of(folder, number)
    provenance = read_provenance(adapter)
    base_path = base_of(provenance, sft_config["trust_remote_code"])
    base_fingerprint = fingerprint(base_path)

    def load_policy():
        from transformers.integrations import is_deepspeed_zero3_enabled

        base = load_base(base_path, precision=settings.precision, attention=settings.attention,
                         load_in_4bit=settings.load_in_4bit, trust_remote_code=sft_config["trust_remote_code"],
                         place=None if is_deepspeed_zero3_enabled() else ranks.device())
        return load_adapter(base, adapter, base_fingerprint=base_fingerprint, trainable=True)

    watched = drawn(load(folder / "data", "dev"), config.guards.questions)
    # What the first round's guards measured at its start.
    sft = standings(folder, 1)[1].facts.get("guards", [None])[0] if number > 1 else None

    def evaluate_policy(policy, step: int) -> dict:
        return evaluate(policy, tokenizer, watched, seed=sft_config["seed"], schema_style=provenance["prompt"]["schema_style"],
                        description=f"guards, step {step}", **config.evaluate.model_dump(), **config.judge.model_dump())

    model, state, facts = train_dpo(load_policy, tokenizer, pairs, output / "checkpoints", seed=config.seed,
                                    checkpoint=inputs["checkpoint"], guards=config.guards.model_dump(),
                                    evaluate=evaluate_policy,
                                    sft=sft,
                                    bf16="bfloat16" in str(precision_dtype(settings.precision)),
                                    **settings.model_dump(exclude={"precision", "load_in_4bit", "attention", "label_noise"})
                                    | {"label_smoothing": inputs.get("label_smoothing", settings.label_smoothing)})
    trainable = sum(tensor.numel() for tensor in state.values())
    adapters = {output: state}
    if facts.get("kept_step") not in (None, facts["steps"]):
        adapters[output / "last"] = gathered_adapter(model)  # by all ranks: under ZeRO-3 each has a part
    if ranks.is_main():
        shutil.rmtree(output / "last", ignore_errors=True)
        for place, weights in adapters.items():
            save_adapter(model, tokenizer, place, {"sft_checkpoint": inputs["checkpoint"], **provenance, "stage": "dpo",
                                                   "round": number, "start_checkpoint": inputs["checkpoint"],
                                                   "seed": config.seed}, weights)
            check_saved(place, weights)
    del model, state, adapters
    release_memory()
    ranks.barrier()

    # ------------------------------------------------------------------ read it back, measure it
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # ZeRO-3 is over: transformers would partition the model that is read back, too.
    unset_hf_deepspeed_config()
    model, tokenizer, _ = load_for_inference(output, precision=settings.precision, attention=settings.attention,
                                             trust_remote_code=sft_config["trust_remote_code"], place=ranks.device())
    after = evaluate(model, tokenizer, load(folder / "data", "dev"), seed=sft_config["seed"],
                     schema_style=provenance["prompt"]["schema_style"], description="DPO model",
                     **config.evaluate.model_dump(), **config.judge.model_dump())
    if ranks.is_main():
        earlier = standings(folder, number - 1)
        before = earlier[-1].measures
        total = trainable + sum(parameter.numel() for name, parameter in model.named_parameters() if "lora" not in name)
        facts |= {"round": number, "pairs": len(pairs), "trainable_parameters": trainable, "trainable_share": trainable / total,
                  "adapter_bytes": (output / "adapter_model.safetensors").stat().st_size,
                  "peak_memory_bytes": peak_memory_bytes(), "duration_s": round(time.time() - started, 1),
                  "dev_before": before, "dev_after": after}
        write_json(output / "training.json", facts)
        write_card(output, "dpo", {"model": sft_config["model"]}, facts | {"dev_before": earlier[0].measures})
        mark_complete(output, inputs, {"pairs": len(pairs)})
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        print(f"round {number} done in {facts['duration_s']:.0f} s of training and evaluation: development accuracy "
              f"{before['execution_accuracy']:.1%} -> {after['execution_accuracy']:.1%}; adapter in {output}")
    ranks.barrier()


def check_saved(folder: Path, state: dict) -> None:
    """Raise ValueError unless the saved file holds exactly the trained weights: same logits follow from same weights."""
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    trained = {name.replace(".default.", "."): tensor for name, tensor in state.items()}
    if saved.keys() != trained.keys() or not all(_same(saved[name], trained[name]) for name in saved):
        raise ValueError(f"the adapter saved in {folder} is not the one that was trained: the files are damaged. Free "
                         "disk space and run the same command again; training goes on from its last checkpoint.")


def _same(one, other) -> bool:
    """Whether two tensors are equal in type, shape and every number; what is no number in both (the last step of a training
    that diverged) counts as equal.
    """
    return one.dtype == other.dtype and one.shape == other.shape and one.allclose(other, rtol=0, atol=0, equal_nan=True)
