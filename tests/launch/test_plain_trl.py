"""pairs.parquet is TRL's own format: plain trl trains on it, with nothing of this project in between."""

from __future__ import annotations

import math

import pytest


@pytest.mark.launch
def test_plain_trl_trains_on_the_pairs_unchanged(finished_run, learning_model, tmp_path):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    file = finished_run / "round-1" / "pairs.parquet"
    pairs = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(pairs) >= 16 and {"prompt", "chosen", "rejected", "chosen_trace", "pair_id"} <= set(pairs.column_names)
    model = AutoModelForCausalLM.from_pretrained(learning_model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = DPOConfig(output_dir=str(tmp_path / "dpo"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3,
                          logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, seed=0)
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=pairs,
                         processing_class=AutoTokenizer.from_pretrained(learning_model))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert all(not parameter.equal(before[name]) for name, parameter in model.named_parameters())
