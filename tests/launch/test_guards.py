"""On two ranks under ZeRO-2 and ZeRO-3, guards generate with the weights as they are, stop what harms and give back the start."""

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
CONTEXT = "CREATE TABLE pet (name TEXT, age INTEGER)"
SIDES = {"How many pets?": ("SELECT COUNT(*) FROM pet", "SELECT name FROM pet"),
         "Name every pet.": ("SELECT name FROM pet", "SELECT age FROM pet LIMIT 5"),
         "Who is five?": ("SELECT name FROM pet WHERE age = 5", "SELECT name FROM pet"),
         "How old is Ada?": ("SELECT age FROM pet WHERE name = 'Ada'", "SELECT age FROM pet")}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """model/, adapter/, pairs.json with four pairs, questions.json with the answers of the start."""
    import torch

    from sft.checkpoint import fingerprint, load_base, load_tokenizer, save_adapter
    from sft.evaluation import answer
    from sft.prompt import render
    from sft.training import lora_model

    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(tiny_model, folder / "model")
    tokenizer = load_tokenizer(tiny_model)
    base = load_base(tiny_model, precision="fp32")
    with torch.no_grad():  # the random model's logits are too small to ever be sure of a token
        base.model.norm.weight.mul_(12)
    base.save_pretrained(folder / "model")
    model = lora_model(base, rank=4, alpha=12, dropout=0.0, gradient_checkpointing=False, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    save_adapter(model, tokenizer, folder / "adapter",
                 {"model": str(folder / "model"), "base_fingerprint": fingerprint(folder / "model")})
    questions = [{"example_id": str(number), "question": question, "context": CONTEXT} for number, question in enumerate(SIDES)]
    answers = answer(model, tokenizer, questions, schema_style="compact", max_new_tokens=12, batch_size=4)
    questions = [row | {"answer": found["completion"]} for row, found in zip(questions, answers, strict=True)]
    assert len({row["answer"] for row in questions}) > 1
    pairs = [{"prompt": render(row, "compact"), "context": CONTEXT, "margin": 0.5, "weight": 1.0 + number,
              **{side: [{"role": "assistant", "content": sql}]
                 for side, sql in zip(("chosen", "rejected"), SIDES[row["question"]], strict=True)}}
             for number, row in enumerate(questions)]
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What either stage gives, by stage."""
    import torch

    def launch(stage):
        command = [ACCELERATE, "launch", "--config_file", f"launch/gpus-zero{stage}.yaml", "--num_processes", "2",
                   "tests/launch/guarded_dpo.py", folder, str(stage)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([str(part) for part in command], cwd=PROJECT, env=environment, capture_output=True, text=True,
                              timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-5000:]
        return torch.load(folder / f"guarded-{stage}.pt") | {"output": done.stdout}

    return {stage: launch(stage) for stage in (2, 3)}


@pytest.mark.launch
@pytest.mark.parametrize("stage", [2, 3])
def test_a_harmful_learning_rate_is_stopped_and_the_start_given_back(folder, found, stage):
    import torch
    from safetensors.torch import load_file

    result = found[stage]
    rows = result["guards"]
    assert rows[0]["execution_accuracy"] == 1.0, "at the start, the answers of the same model without DeepSpeed"
    assert result["stopped"].startswith("training stopped: at step ") and result["stopped"] in result["output"]
    assert rows[-1]["step"] < 4 and rows[-1]["limit_passed"] and result["kept_step"] == 0
    start = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(start) == 28
    assert all(torch.equal(result["state"][name.replace(".weight", ".default.weight")], held) for name, held in start.items())
    last = result["last"]
    assert last.keys() == result["state"].keys() and all(tensor.shape == last[name].shape and not torch.equal(tensor, last[name])
                                                         for name, tensor in result["state"].items()), "whole, and trained"


@pytest.mark.launch
def test_both_stages_measure_and_train_the_same(found):
    two, three = found[2], found[3]
    assert two["losses"] == pytest.approx(three["losses"], abs=1e-3)
    assert [row["step"] for row in two["guards"]] == [row["step"] for row in three["guards"]] == [0, 2]
    for one, other in zip(two["guards"], three["guards"], strict=True):
        for name in ("chosen_logp", "rejected_logp", "execution_accuracy"):
            assert one[name] == pytest.approx(other[name], abs=2e-3), name


@pytest.mark.launch
def test_the_last_adapter_stands_beside_the_best_as_training_without_guards_ends(start, copy_run, dpo_settings):
    """Stage two on a learning rate that harms, measured and not stopped: the start is the result, the last step is kept, too."""
    from safetensors.torch import load_file

    guarded, plain = copy_run("train"), copy_run("train")
    harmful = [*dpo_settings, "train.learning_rate=0.3"]
    start("preference/dpo.py", plain, harmful).finish()
    start("preference/dpo.py", guarded, [*harmful, "guards.every_steps=2", "guards.questions=6", "guards.stop=false"]).finish()
    dpo = guarded / "round-1" / "dpo"
    facts = json.loads((dpo / "training.json").read_text())
    assert (facts["kept_step"], facts["stopped"], [row["step"] for row in facts["guards"]]) == (0, None, [0, 2, 4])
    weights = "adapter_model.safetensors"
    assert (dpo / "last" / weights).read_bytes() == (plain / "round-1" / "dpo" / weights).read_bytes()
    kept, sft = load_file(dpo / weights), load_file(guarded / "sft" / weights)
    assert kept.keys() == sft.keys() and all((kept[name] == sft[name]).all() for name in sft)
    assert not (plain / "round-1" / "dpo" / "last").exists() and not (guarded / "best" / "last").exists()
