"""Under ZeRO-2 and ZeRO-3 on two ranks, shared prompts give the gradient of plain trl on one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ACCELERATE = Path(sys.executable).with_name("accelerate")
QUESTIONS = ("How many pets?", "Name every pet.")
SIDES = [("SELECT COUNT(*) FROM pet", "SELECT name FROM pet"), ("SELECT COUNT(*) FROM pet", "SELECT COUNT(age) FROM pet"),
         ("SELECT name FROM pet", "SELECT age FROM pet LIMIT 5"), ("SELECT name FROM pet", "SELECT name FROM owner")]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """model/, adapter/ and pairs.json: four pairs of each of two questions."""
    import torch

    from sft.checkpoint import fingerprint, load_base, load_tokenizer, save_adapter
    from sft.prompt import render
    from sft.training import lora_model

    folder = tmp_path_factory.mktemp("step")
    shutil.copytree(tiny_model, folder / "model")
    model = lora_model(load_base(tiny_model, precision="fp32"), rank=4, alpha=12, dropout=0.0, gradient_checkpointing=False,
                       seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    save_adapter(model, load_tokenizer(tiny_model), folder / "adapter",
                 {"model": str(folder / "model"), "base_fingerprint": fingerprint(tiny_model)})
    context = "CREATE TABLE pet (name TEXT, age INTEGER)"
    pairs = [{"prompt": render({"question": question, "context": context}, "compact"), "context": context,
              **{side: [{"role": "assistant", "content": sql}] for side, sql in zip(("chosen", "rejected"), sides, strict=True)}}
             for question in QUESTIONS for sides in SIDES]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def gradients(folder):
    """Plain trl's, by weight's name, on all pairs at once."""
    from trl import DPOConfig, DPOTrainer

    from preference.dpo_training import tokenized_pairs
    from sft.checkpoint import fingerprint, load_adapter, load_base, load_tokenizer

    class PlainTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            return dataset  # token ids already

    tokenizer = load_tokenizer(folder / "model")
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    data = tokenized_pairs(tokenizer, pairs, max_length=256, epochs=1, global_batch_size=8, seed=0)
    model = load_adapter(load_base(folder / "model", precision="fp32"), folder / "adapter",
                         base_fingerprint=fingerprint(folder / "model"), trainable=True)
    arguments = DPOConfig(output_dir=str(folder / "plain"), beta=0.3, bf16=False, use_cpu=True, max_length=None,
                          gradient_checkpointing=False, report_to="none")
    trainer = PlainTrainer(model=model, args=arguments, processing_class=tokenizer,
                           train_dataset=data.remove_columns(["sft_chosen_logps", "sft_rejected_logps"]))
    trainer.compute_loss(model, trainer.data_collator(trainer.train_dataset.to_list())).backward()
    return {name: (parameter.detach().clone(), parameter.grad) for name, parameter in model.named_parameters()
            if parameter.requires_grad}


@pytest.mark.launch
@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_of_shared_prompts_is_plain_trls_gradient(folder, gradients, stage):
    import torch

    command = [ACCELERATE, "launch", "--config_file", f"launch/gpus-zero{stage}.yaml", "--num_processes", "2",
               "tests/launch/one_dpo_step.py", folder, str(stage)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], cwd=PROJECT, env=environment, capture_output=True, text=True,
                          timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    stepped = torch.load(folder / f"stepped-{stage}.pt")
    assert stepped.keys() == gradients.keys() and len(gradients) == 28
    for name, (before, gradient) in gradients.items():
        assert gradient.norm() > 0, name
        found = (before - stepped[name]) / 0.1  # the learning rate
        assert (found - gradient).norm() < 1e-4 * gradient.norm(), name
