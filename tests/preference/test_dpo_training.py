"""DPO's training: exact ids, the loss by hand, where it starts, what it trains, and plain trl on the same pairs."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer

from preference.dpo_trainer import ExecutionDPOTrainer, preference_collator
from preference.dpo_training import (
    check_resumable,
    deepspeed_configuration,
    gathered_adapter,
    tokenized_pairs,
    train_dpo,
    zero_settings,
)
from preference.pairs import PAIRS_SCHEMA
from sft.artefacts import content_hash, write_parquet
from sft.checkpoint import fingerprint, load_adapter, load_base, load_tokenizer, save_adapter
from sft.configuration import DpoConfig, read_configuration
from sft.order import global_batches
from sft.prompt import completion_ids, prompt_ids, render
from sft.training import lora_model, mark_checkpoint

CONTEXT = "CREATE TABLE pet (name TEXT, age INTEGER)"
SIDES = {
    "How many pets?": ("SELECT COUNT(*) FROM pet", "SELECT name FROM pet"),
    "Name every pet.": ("SELECT name FROM pet", "SELECT age FROM pet ORDER BY name LIMIT 5"),
    "Who is five?": ("SELECT name FROM pet WHERE age = 5", "SELECT name FROM pet WHERE age = '5 years'"),
    "How old is Ada?": ("SELECT age FROM pet WHERE name = 'Ada'", "SELECT age FROM pet WHERE name = 'ada'"),
}
TOKENIZE = {"max_length": 256, "epochs": 1, "global_batch_size": 4, "seed": 0}


def randomised(model, seed, std=0.2):
    """The model with a `default` adapter that changes its logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and ".default." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def adapter(tiny_model, tokenizer, tmp_path_factory):
    """Folder of an SFT adapter on the tiny model."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    model = lora_model(
        load_base(tiny_model, precision="fp32"), rank=4, alpha=8, dropout=0.0, gradient_checkpointing=False, seed=0
    )
    provenance = {"model": str(tiny_model), "base_fingerprint": fingerprint(tiny_model)}
    save_adapter(randomised(model, 1), tokenizer, folder, provenance)
    return folder


@pytest.fixture
def load_policy(tiny_model, adapter):
    return lambda: load_adapter(
        load_base(tiny_model, precision="fp32"), adapter, base_fingerprint=fingerprint(tiny_model), trainable=True
    )


def completion_logps(model, tokenizer, pair, side):
    """Summed log-probability (nats) of a side's completion and EOS from a plain forward."""
    prompt, completion = prompt_ids(tokenizer, pair["prompt"]), completion_ids(tokenizer, pair[side][0]["content"])
    with torch.inference_mode():
        logp = model(input_ids=torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    return sum(logp[len(prompt) - 1 + place, token].item() for place, token in enumerate(completion))


@pytest.fixture
def pairs(tokenizer, load_policy):
    """Four pairs with the log-probabilities that the SFT model gives them."""
    model, found = load_policy().eval(), []
    for question, (chosen, rejected) in SIDES.items():
        pair = {
            "prompt": render({"question": question, "context": CONTEXT}, "compact"),
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for side in ("chosen", "rejected"):
            pair[f"{side}_logp_sum"], pair[f"{side}_tokens_round_trip"] = completion_logps(model, tokenizer, pair, side), True
        found.append(pair)
    return found


def settings(**changes):
    return {
        "epochs": 3,
        "learning_rate": 1e-2,
        "warmup_share": 0.0,
        "beta": 0.1,
        "loss_type": ["sigmoid"],
        "loss_weights": [1.0],
        "label_smoothing": 0.0,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "share_prompts": True,
        "checkpoint": "sft",
        "gradient_checkpointing": False,
        "max_length": 256,
        "save_steps": 100,
        "zero_stage": 0,
        "offload": "none",
        "bf16": False,
        "seed": 0,
        "trl": {},
    } | changes


# ------------------------------------------------------------------- token ids


def test_ids_are_those_of_the_prompt_and_of_each_side_with_its_eos(tokenizer, pairs):
    rows = tokenized_pairs(tokenizer, pairs, **TOKENIZE | {"global_batch_size": 1}).to_list()
    by_prompt = {tuple(row["prompt_ids"]): row for row in rows}
    assert len(by_prompt) == 4
    for (question, (chosen, rejected)), pair in zip(SIDES.items(), pairs, strict=True):
        text = (
            "<|im_start|>system\nAnswer with one SQLite query.<|im_end|>\n<|im_start|>user\npet(name, age)\n"
            f"Question: {question}<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert by_prompt[tuple(prompt)] == {
            "prompt_ids": prompt,
            "chosen_ids": [*tokenizer(chosen, add_special_tokens=False)["input_ids"], 2],
            "rejected_ids": [*tokenizer(rejected, add_special_tokens=False)["input_ids"], 2],
            "sft_chosen_logps": pair["chosen_logp_sum"],
            "sft_rejected_logps": pair["rejected_logp_sum"],
            "margin": 0.0,
            "weight": 1.0,
            "answer": True,
        }


def test_rows_stand_in_the_order_of_global_batches(tokenizer, pairs):
    rows = tokenized_pairs(tokenizer, pairs, **TOKENIZE | {"global_batch_size": 1}).to_list()
    by_prompt = {tuple(row["prompt_ids"]): row for row in rows}
    in_order = [by_prompt[tuple(prompt_ids(tokenizer, pair["prompt"]))] for pair in pairs]
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in in_order]
    # All on one schema; every question is a group of its own, named by its prompt's ids.
    order = global_batches(lengths, epochs=2, global_batch_size=2, seed=3, families=["schema"] * 4, group_size=2,
                           groups=[content_hash(row["prompt_ids"]) for row in in_order])
    for pair in pairs:
        pair["context"] = CONTEXT
    found = tokenized_pairs(tokenizer, pairs, max_length=256, epochs=2, global_batch_size=2, seed=3).to_list()
    assert found == [in_order[index] for index in order]


def test_pairs_of_one_question_stand_together_and_so_do_questions_on_one_schema(tokenizer, pairs):
    """Three pairs of each of four questions, every other question on another schema; any seed, batches of six."""
    many = [pair | {"context": f"schema {number % 2}"} for number, pair in enumerate(pairs) for _ in range(3)]
    schema_of = {tuple(prompt_ids(tokenizer, pair["prompt"])): number % 2 for number, pair in enumerate(pairs)}
    for seed in range(5):
        rows = tokenized_pairs(tokenizer, many, max_length=256, epochs=1, global_batch_size=6, seed=seed)["prompt_ids"]
        for start in range(0, 12, 3):
            assert rows[start] == rows[start + 1] == rows[start + 2]
    rows = tokenized_pairs(tokenizer, many, max_length=256, epochs=1, global_batch_size=12, seed=0)["prompt_ids"]
    assert [schema_of[tuple(ids)] for ids in rows] in ([0] * 6 + [1] * 6, [1] * 6 + [0] * 6)


def test_pairs_that_are_too_long_are_left_out_whole_and_counted(tokenizer, pairs, capsys):
    def length(pair):
        return len(prompt_ids(tokenizer, pair["prompt"])) + max(
            len(completion_ids(tokenizer, pair[side][0]["content"])) for side in ("chosen", "rejected")
        )

    longest = max(pairs, key=length)
    others = [pair for pair in pairs if length(pair) < length(longest)][:1]
    many, limit = others * 19 + [longest], length(longest) - 1
    capsys.readouterr()
    assert len(tokenized_pairs(tokenizer, many, **TOKENIZE | {"max_length": limit, "global_batch_size": 19})) == 19
    assert capsys.readouterr().out == f"pairs: 20 read, 19 kept, 1 dropped as longer than {limit} tokens\n"
    assert len(tokenized_pairs(tokenizer, many, **TOKENIZE | {"max_length": limit + 1, "global_batch_size": 20})) == 20
    with pytest.raises(ValueError, match=rf"1 of 19 pairs are longer than train.max_length {limit} tokens; at most 5%"):
        tokenized_pairs(tokenizer, many[1:], **TOKENIZE | {"max_length": limit})


def test_a_completion_that_encodes_to_other_tokens_has_no_known_log_probability(tokenizer, pairs):
    pairs[0]["chosen_tokens_round_trip"] = False
    pairs[0]["rejected_logp_sum"] = None
    rows = tokenized_pairs(tokenizer, pairs[:1], **TOKENIZE | {"global_batch_size": 1}).to_list()
    assert (rows[0]["sft_chosen_logps"], rows[0]["sft_rejected_logps"]) == (None, None)
    batch = preference_collator(tokenizer)(rows)
    assert batch["sft_logps"].isnan().all() and batch["sft_logps"].shape == (2,)


def test_the_collator_puts_all_chosen_before_all_rejected(tokenizer, pairs):
    rows = tokenized_pairs(tokenizer, pairs, **TOKENIZE).to_list()[:2]
    batch = preference_collator(tokenizer)(rows)
    wanted = [(row, side) for side in ("chosen", "rejected") for row in rows]
    assert len(batch["input_ids"]) == 4
    for place, (row, side) in enumerate(wanted):
        mask = batch["attention_mask"][place] == 1
        assert batch["input_ids"][place][mask].tolist() == row["prompt_ids"] + row[f"{side}_ids"]
        assert batch["input_ids"][place][batch["completion_mask"][place] == 1].tolist() == row[f"{side}_ids"]
        assert batch["sft_logps"][place].item() == pytest.approx(row[f"sft_{side}_logps"], abs=1e-4)


# -------------------------------------------------------------------- the loss


def trainer_of(load_policy, tokenizer, pairs, folder, **changes):
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        beta=0.3,
        bf16=False,
        use_cpu=True,
        max_length=None,
        gradient_checkpointing=False,
        report_to="none",
        **changes,
    )
    data = tokenized_pairs(tokenizer, pairs, **TOKENIZE)
    return ExecutionDPOTrainer(
        model=load_policy(),
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=preference_collator(tokenizer),
    )


def test_the_loss_of_a_policy_that_moved_is_the_papers(load_policy, tokenizer, pairs, tmp_path):
    """-log sigmoid(beta ((policy - reference of chosen) - (policy - reference of rejected))), mean over the pairs.

    Source: Rafailov et al. 2023, equation 7. The reference is the SFT adapter, whose log-probabilities the pairs hold.
    """
    trainer = trainer_of(load_policy, tokenizer, pairs, tmp_path)
    randomised(trainer.model, 2, std=0.1)
    trainer.start = {}  # the first step is over
    loss = trainer.compute_loss(trainer.model, preference_collator(tokenizer)(trainer.train_dataset.to_list())).item()
    trainer.model.set_adapter("default")
    wanted = []
    for pair in pairs:
        gain = {
            side: completion_logps(trainer.model.eval(), tokenizer, pair, side) - pair[f"{side}_logp_sum"]
            for side in ("chosen", "rejected")
        }
        wanted.append(math.log1p(math.exp(-0.3 * (gain["chosen"] - gain["rejected"]))))
    assert max(abs(value - math.log(2)) for value in wanted) > 0.01
    assert loss == pytest.approx(sum(wanted) / 4, abs=1e-4)


def test_a_policy_that_is_not_the_reference_at_step_0_is_refused(load_policy, tokenizer, pairs, tmp_path):
    trainer = trainer_of(load_policy, tokenizer, pairs, tmp_path)
    randomised(trainer.model, 2, std=0.2)
    with pytest.raises(
        ValueError, match=r"the first DPO loss is 0\.\d+, not ln 2 = 0.6931.*frozen copy of the SFT adapter"
    ):
        trainer.compute_loss(trainer.model, preference_collator(tokenizer)(trainer.train_dataset.to_list()))


# ------------------------------------------------------------------ whole runs


def test_training_starts_at_ln_2_and_at_the_sft_models_log_probabilities(
    load_policy, tokenizer, pairs, adapter, tmp_path, capsys
):
    before = load_file(adapter / "adapter_model.safetensors")
    model, state, facts = train_dpo(load_policy, tokenizer, pairs, tmp_path, **settings())
    # The first micro-batch holds two of the four pairs, longest first.
    rows = tokenized_pairs(tokenizer, pairs, **TOKENIZE).to_list()[:2]
    sampled = sum(row[f"sft_{side}_logps"] for row in rows for side in ("chosen", "rejected")) / 4
    assert facts["start"]["sigmoid_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert facts["start"]["policy_logps"] == pytest.approx(sampled, abs=1e-3)
    assert facts["start"]["sft_logps"] == pytest.approx(sampled, abs=1e-4)
    assert "start proved: sigmoid loss 0.6931 (ln 2 = 0.6931)" in capsys.readouterr().out
    losses = [row["loss"] for row in facts["log"] if "loss" in row]
    assert facts["steps"] == len(losses) == 3 and losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[2] < losses[1] < losses[0]
    # Every trained weight moved; the frozen reference is still the SFT adapter, and the base model was not touched.
    assert {name.replace(".default.", ".") for name in state} == before.keys() and len(state) == 28
    for name, tensor in state.items():
        assert not torch.equal(tensor, before[name.replace(".default.", ".")]), name
    frozen = {name: parameter for name, parameter in model.named_parameters() if ".ref." in name}
    assert len(frozen) == 28 and not any(parameter.requires_grad for parameter in frozen.values())
    assert all(torch.equal(parameter, before[name.replace(".ref.", ".")]) for name, parameter in frozen.items())


def test_the_sft_term_is_added_to_the_sigmoid_loss(load_policy, tokenizer, pairs, tmp_path):
    """At the start: ln 2 plus half the mean loss of a chosen token."""
    _, _, facts = train_dpo(
        load_policy,
        tokenizer,
        pairs,
        tmp_path,
        **settings(epochs=1, micro_batch_size=4, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]),
    )
    count = sum(len(completion_ids(tokenizer, pair["chosen"][0]["content"])) for pair in pairs)
    sft_loss = -sum(pair["chosen_logp_sum"] for pair in pairs) / count
    assert facts["log"][0]["loss"] == pytest.approx(math.log(2) + 0.5 * sft_loss, abs=1e-3)
    assert facts["start"]["sigmoid_loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("reference_weight", [1.0, 0.25, 0.0])
def test_a_part_of_the_reference_counts_from_the_first_step_on(load_policy, tokenizer, pairs, tmp_path, reference_weight):
    """-log sigmoid(beta (1 - r) lead) while the policy is the reference; each pair comes once, so that no reference is kept."""
    sizes = {"epochs": 1, "global_batch_size": 2}
    _, _, facts = train_dpo(load_policy, tokenizer, pairs, tmp_path / "checkpoints", **settings(
        **sizes, beta=0.5, learning_rate=1e-12, reference_weight=reference_weight))
    rows = tokenized_pairs(tokenizer, pairs, **TOKENIZE | sizes).to_list()
    wanted = [math.log1p(math.exp(-0.5 * (1 - reference_weight) * (row["sft_chosen_logps"] - row["sft_rejected_logps"])))
              for row in rows]
    losses = [row["loss"] for row in facts["log"] if "loss" in row]
    assert losses == pytest.approx([sum(wanted[:2]) / 2, sum(wanted[2:]) / 2], abs=1e-4) and len(set(wanted)) in (1, 4)
    assert facts["start"]["sigmoid_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert not (tmp_path / "reference_logps.jsonl").exists()


def test_the_global_batch_alone_decides_the_result(load_policy, tokenizer, pairs, tmp_path):
    """1 x 4 and 4 x 1 micro-batches, prompts shared or not: the same weights, to the rounding of sums in another order."""
    ways = [(micro, shared) for shared in (False, True) for micro in (1, 4)]
    found = [
        train_dpo(
            load_policy,
            tokenizer,
            pairs,
            tmp_path / str(number),
            **settings(micro_batch_size=micro, share_prompts=shared),
        )
        for number, (micro, shared) in enumerate(ways)
    ]
    losses = [[row["loss"] for row in facts["log"] if "loss" in row] for _, _, facts in found]
    for number in (1, 2, 3):
        for (name, one), other in zip(found[0][1].items(), found[number][1].values(), strict=True):
            assert torch.allclose(one, other, atol=2e-4), name
        assert losses[0] == pytest.approx(losses[number], abs=1e-3)


def test_the_reference_is_kept_where_pairs_come_more_than_once(load_policy, tokenizer, pairs, tmp_path, capsys):
    kept = tmp_path / "reference_logps.jsonl"
    train_dpo(load_policy, tokenizer, pairs, tmp_path / "once", **settings(epochs=1))
    assert not kept.exists()
    train_dpo(load_policy, tokenizer, pairs, tmp_path / "checkpoints", **settings(epochs=2))
    assert "reference log-probabilities: 4 pairs computed, 4 known" in capsys.readouterr().out
    sampled = sorted([pair["chosen_logp_sum"], pair["rejected_logp_sum"]] for pair in pairs)
    found = sorted(json.loads(line)[1:] for line in kept.read_text().splitlines())
    assert len(found) == 4 and all(one == pytest.approx(other, abs=1e-3) for one, other in zip(found, sampled, strict=True))
    train_dpo(load_policy, tokenizer, pairs, tmp_path / "again", **settings(epochs=3))
    assert "computed" not in capsys.readouterr().out and len(kept.read_text().splitlines()) == 4


@pytest.mark.parametrize(("steps", "batch", "kept"), [(1, 4, False), (2, 2, False), (3, 2, True), (1, 8, True)])
def test_so_many_steps_and_a_reference_kept_where_they_pass_over_pairs_again(load_policy, tokenizer, pairs, tmp_path, steps,
                                                                            batch, kept):
    """Four pairs: `epochs` says 3, which would be another number of steps and would pass over each pair three times."""
    _, _, facts = train_dpo(load_policy, tokenizer, pairs, tmp_path / "checkpoints",
                            **settings(steps=steps, global_batch_size=batch))
    assert facts["steps"] == steps and (tmp_path / "reference_logps.jsonl").exists() == kept


def test_as_many_steps_where_a_pair_is_dropped_as_too_long(tokenizer, pairs, capsys):
    long = pairs[0] | {"chosen": [{"role": "assistant", "content": "SELECT name FROM pet" + " WHERE age > 1" * 60}]}
    many = pairs * 5
    for given in (many, [long, *many]):
        assert len(tokenized_pairs(tokenizer, given, **TOKENIZE | {"epochs": 3, "steps": 7})) == 7 * 4
    assert "pairs: 21 read, 20 kept, 1 dropped" in capsys.readouterr().out


def test_a_policy_without_the_sft_adapter_is_refused(tiny_model, tokenizer, pairs, tmp_path):
    """A fresh adapter does nothing: policy and reference are both the base model, and the loss is ln 2 all the same."""

    def without():
        return lora_model(
            load_base(tiny_model, precision="fp32"), rank=4, alpha=8, dropout=0.0, gradient_checkpointing=False, seed=0
        )

    with pytest.raises(
        ValueError, match=r"the SFT model that sampled them gave -\d+\.\d+ .*does not start from that SFT"
    ):
        train_dpo(without, tokenizer, pairs, tmp_path, **settings())


def test_pairs_sampled_by_another_checkpoint_are_refused(load_policy, tokenizer, pairs, tmp_path):
    for pair in pairs:
        pair["chosen_logp_sum"] += 0.1
    with pytest.raises(ValueError, match=r"the pairs come from another checkpoint.*Delete the round's candidates\.parquet"):
        train_dpo(load_policy, tokenizer, pairs, tmp_path, **settings())


def test_pairs_of_unknown_origin_train_and_say_so(load_policy, tokenizer, pairs, tmp_path, capsys):
    plain = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    _, _, facts = train_dpo(load_policy, tokenizer, plain, tmp_path, **settings(epochs=1))
    assert facts["start"]["sft_logps"] is None and "unknown when sampled" in capsys.readouterr().out


def test_loss_weights_must_be_as_many_as_losses():
    configuration = Path(__file__).parents[2] / "configs" / "dpo.yaml"
    with pytest.raises(ValueError, match=r"loss_weights \[1.0\] must have one number for each of loss_type"):
        read_configuration(DpoConfig, configuration, ["train.loss_weights=[1.0]"])
    with pytest.raises(ValueError, match="load_in_4bit cannot be partitioned by zero_stage 3"):
        read_configuration(DpoConfig, configuration, ["train.load_in_4bit=true", "train.zero_stage=3"])


def test_gathered_adapter_is_a_copy_of_the_trained_adapter_alone(load_policy):
    model = load_policy()
    model.add_adapter("ref", model.peft_config["default"])
    state = gathered_adapter(model)
    assert len(state) == 28 and all(".default." in name for name in state)
    held = dict(model.named_parameters())
    assert all(torch.equal(tensor, held[name]) for name, tensor in state.items())
    next(iter(state.values())).zero_()
    name = next(iter(state))
    assert held[name].abs().max() > 0


# ------------------------------------------------------------------- plain trl


def test_plain_trl_reads_our_prompt_out_of_the_pairs_file(tiny_model, tokenizer, pairs, tmp_path):
    """The same tokens for the prompt, so that both train on the same text; trl ignores the evidence."""
    from datasets import load_dataset

    evidence = {"pair_id": "x", "example_id": "e", "question": "q", "context": CONTEXT, "weight": 1.0, "margin": 0.0}
    write_parquet(tmp_path / "pairs.parquet", [pair | evidence for pair in pairs], PAIRS_SCHEMA)
    file, cache = str(tmp_path / "pairs.parquet"), str(tmp_path / "cache")
    data = load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    trainer = DPOTrainer(
        model=load_base(tiny_model, precision="fp32"),
        args=DPOConfig(output_dir=str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none"),
        train_dataset=data,
        processing_class=tokenizer,
    )
    rows = trainer.train_dataset.to_list()
    assert [row["prompt_ids"] for row in rows] == [prompt_ids(tokenizer, pair["prompt"]) for pair in pairs]
    for row, pair in zip(rows, pairs, strict=True):
        ours = completion_ids(tokenizer, pair["chosen"][0]["content"])
        assert row["chosen_ids"][: len(ours)] == ours


# -------------------------------------------------------------------- DeepSpeed


def test_stage_0_is_without_deepspeed():
    assert deepspeed_configuration(stage=0, offload="cpu", bf16=True, global_batch_size=16, micro_batch_size=4) is None


def test_deepspeed_gets_the_global_batch_and_what_makes_it_up(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = deepspeed_configuration(stage=2, offload="none", bf16=False, global_batch_size=16, micro_batch_size=4)
    batch = (found["train_batch_size"], found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"])
    assert batch == (16, 4, 2) and found["bf16"] == {"enabled": False}
    assert found["zero_optimization"]["stage"] == 2 and "offload_optimizer" not in found["zero_optimization"]
    with pytest.raises(ValueError, match="train.global_batch_size 16 is not a multiple"):
        deepspeed_configuration(stage=2, offload="none", bf16=False, global_batch_size=16, micro_batch_size=5)


@pytest.mark.parametrize(("stage", "parameters"), [(2, False), (3, True)])
def test_offload_takes_the_optimizer_and_with_stage_3_the_weights(stage, parameters):
    zero = deepspeed_configuration(stage=stage, offload="cpu", bf16=True, global_batch_size=4, micro_batch_size=4)
    zero = zero["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu" and ("offload_param" in zero) is parameters


def test_the_launch_configuration_goes_before_the_key(monkeypatch):
    assert zero_settings(2, "none") == (2, "none")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    assert zero_settings(2, "none") == (3, "cpu")
    # trl must not find accelerate's own DeepSpeed configuration beside ours.
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


# --------------------------------------------------------------------- resuming


@pytest.mark.parametrize(("written", "now", "refused"), [
    ({}, (2, 2), False), ({"ranks": 1, "zero_stage": 2}, (1, 2), False), ({"ranks": 1, "zero_stage": 0}, (2, 0), False),
    ({"ranks": 1, "zero_stage": 2}, (2, 2), True), ({"ranks": 1, "zero_stage": 2}, (1, 3), True),
    ({"ranks": 1, "zero_stage": 2}, (1, 0), True), ({"ranks": 1, "zero_stage": 0}, (1, 2), True)])
def test_deepspeed_goes_on_only_with_the_ranks_and_the_stage_that_wrote_a_checkpoint(tmp_path, written, now, refused):
    mark_checkpoint(tmp_path, 3, **written)
    if refused:
        with pytest.raises(ValueError, match=r"checkpoint-3 was written by 1 rank\(s\) under ZeRO stage .*or delete .* from its start"):
            check_resumable(str(tmp_path / "checkpoint-3"), *now)
    else:
        check_resumable(str(tmp_path / "checkpoint-3"), *now)
    check_resumable(None, *now)
