"""Guards: limits and the best step by hand, what stops, what is kept, what is logged, and that training is not touched."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from preference.dpo_stage import check_saved
from preference.dpo_training import gathered_adapter, tokenized_pairs, train_dpo
from preference.guards import best_step, drawn, limit_passed
from sft.artefacts import content_hash
from sft.checkpoint import fingerprint, load_adapter, load_base, load_tokenizer, save_adapter
from sft.configuration import DpoConfig, read_configuration
from sft.prompt import render
from sft.training import lora_model

CONFIGURATION = Path(__file__).parents[2] / "configs" / "dpo.yaml"
CONTEXT = "CREATE TABLE pet (name TEXT, age INTEGER)"
SIDES = {
    "How many pets?": ("SELECT COUNT(*) FROM pet", "SELECT name FROM pet"),
    "Name every pet.": ("SELECT name FROM pet", "SELECT age FROM pet LIMIT 5"),
    "Who is five?": ("SELECT name FROM pet WHERE age = 5", "SELECT name FROM pet WHERE age = '5'"),
    "How old is Ada?": ("SELECT age FROM pet WHERE name = 'Ada'", "SELECT age FROM pet"),
}
GUARDS = {"every_steps": 1, "questions": 4, "pairs": 3, "stop": True, "keep": "best", "max_accuracy_drop": 0.1,
          "max_valid_drop": 0.1, "max_eos_drop": 0.05, "max_logp_fall": 100.0}


# ------------------------------------------------------------------- by hand


def row(step, accuracy=0.5, valid=0.9, eos=1.0, logp=-0.2, passed=None):
    return {"step": step, "execution_accuracy": accuracy, "valid_sql": valid, "ended_with_eos": eos, "chosen_logp": logp,
            "limit_passed": passed}


def test_a_limit_is_passed_only_by_a_larger_fall():
    limits = {"execution_accuracy": 0.1, "valid_sql": 0.1, "ended_with_eos": 0.05, "chosen_logp": 0.3}
    start = row(0)
    for kept in (row(10, accuracy=0.4), row(10, valid=0.8), row(10, eos=0.95), row(10, logp=-0.5), row(10, 1.0, 1.0, 1.0, 0.0)):
        assert limit_passed(start, kept, limits) is None
    assert limit_passed(start, row(10, accuracy=0.37), limits) == (
        "at step 10 execution accuracy had fallen from 50.0% to 37.0%, by 13.0 points (allowed 10.0)")
    for no_number in (float("nan"), None):  # None: as it is kept in guards.json
        assert "from -0.200 to nan nats a token" in limit_passed(start, row(20, logp=no_number), limits)
    assert "the share of valid SQL had fallen from 90.0% to 79.0%" in limit_passed(start, row(10, valid=0.79), limits)
    assert "the EOS rate had fallen from 100.0% to 94.0%" in limit_passed(start, row(10, eos=0.94), limits)
    assert limit_passed(start, row(20, logp=-0.65), limits) == (
        "at step 20 the log-probability of the chosen queries had fallen from -0.200 to -0.650 nats a token, by 0.450 "
        "(allowed 0.300)")


def test_small_falls_of_several_rounds_do_not_add_up_unseen():
    limits = {"execution_accuracy": 0.1, "valid_sql": 0.1, "ended_with_eos": 0.05, "chosen_logp": 0.3}
    start, now = row(0, eos=0.96), row(30, eos=0.93)  # a later round: SFT had 1.0
    assert limit_passed(start, now, limits) is None
    assert "the EOS rate had fallen from SFT's 100.0% to 93.0%, by 7.0 points" in limit_passed(start, now, limits, sft=row(0))
    assert limit_passed(row(0, eos=0.8), row(30, eos=0.85), limits, sft=row(0)) is None, "it does not fall, whatever it began with"
    better = row(0, accuracy=0.7)  # what the rounds before gained is not to be lost either
    assert "from 70.0% to 55.0%" in limit_passed(better, row(30, accuracy=0.55), limits, sft=row(0))
    assert limit_passed(row(0), row(30, logp=-0.4), limits, sft=row(0, logp=-0.05)) is None, "its pairs are others"


@pytest.mark.parametrize("file", sorted(CONFIGURATION.parent.glob("dpo*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_limits_stop_the_fall_measured_at_a_harmful_learning_rate(file):
    """Few rows in RESULTS.md: at 5e-4 from 38 to 28 of 100 questions after 15 steps; at harmless rates to 34 at worst."""
    guards = read_configuration(DpoConfig, file, []).guards
    limits = {"execution_accuracy": guards.max_accuracy_drop, "valid_sql": 1.0, "ended_with_eos": 1.0, "chosen_logp": 10.0}
    assert limit_passed(row(0, accuracy=0.38), row(15, accuracy=0.34), limits) is None
    assert "from 38.0% to 28.0%" in limit_passed(row(0, accuracy=0.38), row(15, accuracy=0.28), limits)


def test_questions_are_drawn_from_the_whole_development_split_and_the_same_every_time():
    rows = ["hard"] * 300 + ["easy"] * 700  # as a source may sort them
    assert drawn(rows, 200) == drawn(rows, 200) and len(drawn(rows, 200)) == 200
    assert 45 <= drawn(rows, 200).count("hard") <= 75  # 60 are expected
    assert drawn(list(range(5)), 200) == [0, 1, 2, 3, 4]


def test_the_best_step_is_within_the_limits_and_the_later_of_equal_ones():
    assert best_step([row(0, 0.5), row(10, 0.6), row(20, 0.6), row(30, 0.55)]) == 20
    assert best_step([row(0, 0.5), row(10, 0.5), row(20, 0.49)]) == 10
    assert best_step([row(0, 0.5), row(10, 0.4), row(20, 0.3)]) == 0
    assert best_step([row(0, 0.5), row(10, 0.9, passed="the EOS rate had fallen")]) == 0


# ------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def load_policy(tiny_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "sft"
    base = load_base(tiny_model, precision="fp32")
    model = lora_model(base, rank=4, alpha=8, dropout=0.0, gradient_checkpointing=False, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    save_adapter(model, tokenizer, folder, {"model": str(tiny_model), "base_fingerprint": fingerprint(tiny_model)})
    return lambda: load_adapter(load_base(tiny_model, precision="fp32"), folder, base_fingerprint=fingerprint(tiny_model),
                                trainable=True)


@pytest.fixture
def pairs():
    return [{"prompt": render({"question": question, "context": CONTEXT}, "compact"),
             "chosen": [{"role": "assistant", "content": chosen}], "rejected": [{"role": "assistant", "content": rejected}]}
            for question, (chosen, rejected) in SIDES.items()]


class Answers:
    """Stands in for the evaluation: accuracies by step; keeps which steps it was asked for, and the adapter at each."""

    def __init__(self, accuracies=(), fail_at=None):
        self.accuracies, self.fail_at = dict(enumerate(accuracies)), fail_at
        self.asked, self.adapters = [], {}

    def __call__(self, model, step):
        if step == self.fail_at:
            raise KeyboardInterrupt
        assert not model.training and model.config._attn_implementation in ("eager", "sdpa"), "ready to generate"
        self.asked.append(step)
        self.adapters[step] = gathered_adapter(model)
        return {"n": 4, "execution_accuracy": self.accuracies.get(step, 0.5), "valid_sql": 1.0, "ended_with_eos": 1.0,
                "mean_tokens": 9.0, "duplicates": 0.25}


def train(load_policy, tokenizer, pairs, folder, answers=None, guards=None, **changes):
    settings = {"epochs": 4, "learning_rate": 1e-2, "warmup_share": 0.0, "beta": 0.1, "loss_type": ["sigmoid"],
                "loss_weights": [1.0], "label_smoothing": 0.0, "global_batch_size": 4, "micro_batch_size": 2,
                "share_prompts": True, "checkpoint": "sft", "gradient_checkpointing": False, "max_length": 256,
                "save_steps": 1, "zero_stage": 0, "offload": "none", "bf16": False, "seed": 0, "trl": {}} | changes
    guards = None if guards is None else GUARDS | guards
    return train_dpo(load_policy, tokenizer, pairs, folder / "checkpoints", evaluate=answers, guards=guards, **settings)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(facts):
    """The log without what depends on the clock, and without the guards' own rows."""
    return [{name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
            for entry in facts["log"] if not any(name.startswith("guards/") for name in entry)]


def test_the_best_step_is_kept_and_training_goes_its_way_as_without_guards(load_policy, tokenizer, pairs, tmp_path, capsys):
    _, plain, plain_facts = train(load_policy, tokenizer, pairs, tmp_path / "plain")
    assert not {"guards", "stopped", "kept_step"} & plain_facts.keys()
    answers = Answers([0.5, 0.6, 0.6, 0.55, 0.5])
    _, state, facts = train(load_policy, tokenizer, pairs, tmp_path / "best", answers, {})
    assert answers.asked == [row["step"] for row in facts["guards"]] == [0, 1, 2, 3, 4]
    assert facts["kept_step"] == 2 and facts["stopped"] is None and facts["steps"] == 4
    assert same(state, answers.adapters[2]) and not same(state, plain)
    assert [file.name for file in (tmp_path / "best" / "checkpoints").glob("guard-*")] == ["guard-step-2.safetensors"]
    # The same losses at the same steps, and the same weights at the end: measuring changes nothing.
    assert logged(facts) == logged(plain_facts) and same(answers.adapters[4], plain)
    assert len([entry for entry in facts["log"] if "guards/execution_accuracy" in entry]) == 5
    _, last, facts = train(load_policy, tokenizer, pairs, tmp_path / "last", Answers([0.5, 0.9]), {"keep": "last"})
    assert same(last, plain) and facts["kept_step"] == 4
    capsys.readouterr()
    _, _, facts = train(load_policy, tokenizer, pairs, tmp_path / "stopped", Answers([0.5, 0.1]), {"keep": "last"})
    assert facts["kept_step"] == 1 and "; it is kept all the same, since guards.keep is last" in capsys.readouterr().out


def test_rows_hold_the_log_probabilities_of_fixed_pairs(load_policy, tokenizer, pairs, tmp_path):
    """Against plain logits, at the start: three of the four pairs, chosen by the hash of their tokens."""
    _, _, facts = train(load_policy, tokenizer, pairs, tmp_path, Answers(), {"every_steps": 3})
    assert [row["step"] for row in facts["guards"]] == [0, 3, 4], "every third step, and the last"
    rows = tokenized_pairs(tokenizer, pairs, max_length=256, epochs=1, global_batch_size=1, seed=0).to_list()
    rows.sort(key=lambda row: content_hash([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]))
    model, sums, tokens = load_policy().eval(), {"chosen": 0.0, "rejected": 0.0}, {"chosen": 0, "rejected": 0}
    for pair in rows[:3]:
        for side in sums:
            ids, start = pair["prompt_ids"] + pair[f"{side}_ids"], len(pair["prompt_ids"])
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            sums[side] += sum(logp[place - 1, ids[place]].item() for place in range(start, len(ids)))
            tokens[side] += len(ids) - start
    first, last = facts["guards"][0], facts["guards"][-1]
    for side in sums:
        assert first[f"{side}_logp"] == pytest.approx(sums[side] / tokens[side], abs=1e-5)
        assert first[f"{side}_logp_sum"] == pytest.approx(sums[side] / 3, abs=1e-4)
    assert first["margin"] == 0.0 and last["margin"] == pytest.approx(0.1 * (
        last["chosen_logp_sum"] - last["rejected_logp_sum"] - first["chosen_logp_sum"] + first["rejected_logp_sum"]))
    assert last["margin"] > 0.01 and (first["duplicates"], first["mean_tokens"]) == (0.25, 9.0)


def test_log_probabilities_are_those_of_right_queries(load_policy, tokenizer, pairs, tmp_path):
    """The chosen query of a graded pair is wrong too; where there are no other pairs, it is better than nothing."""
    graded = [pair | {"strategy": "hardest-graded"} for pair in pairs]
    first = {}
    for name, mixed in {"right": pairs[:2], "mixed": pairs[:2] + graded[2:], "graded": graded[2:]}.items():
        _, _, facts = train(load_policy, tokenizer, mixed, tmp_path / name, Answers(), {}, epochs=1, global_batch_size=2)
        first[name] = {key: facts["guards"][0][key] for key in ("chosen_logp", "rejected_logp")}
    assert first["mixed"] == pytest.approx(first["right"], abs=1e-6) and first["graded"] != pytest.approx(first["right"], abs=1e-3)


def test_a_training_that_diverged_says_so_unless_the_guards_keep_an_earlier_step(load_policy, tokenizer, pairs, tmp_path):
    with pytest.raises(ValueError, match=r"weights of the adapter are no numbers: training diverged. Lower train.learning_rate \(found"):
        train(load_policy, tokenizer, pairs, tmp_path / "plain", learning_rate=1e30)
    model, state, facts = train(load_policy, tokenizer, pairs, tmp_path / "guarded", Answers(), {"stop": False}, learning_rate=1e30)
    assert facts["guards"][-1]["limit_passed"] and facts["kept_step"] == 0 and same(state, gathered_adapter(load_policy()))
    last = gathered_adapter(model)
    assert not all(tensor.isfinite().all() for tensor in last.values())
    for name, weights in {"kept": state, "last": last}.items():
        save_adapter(model, tokenizer, tmp_path / name, {}, weights)
        check_saved(tmp_path / name, weights)
    with pytest.raises(ValueError, match="the files are damaged"):
        check_saved(tmp_path / "last", state)


def test_a_start_that_did_not_sample_the_pairs_is_refused_before_any_question_is_asked(load_policy, tokenizer, pairs, tmp_path):
    sampled = {"chosen_logp_sum": -1.0, "rejected_logp_sum": -1.0, "chosen_tokens_round_trip": True,
               "rejected_tokens_round_trip": True}
    answers = Answers()
    with pytest.raises(ValueError, match=r"the SFT model that sampled them gave -1.00 .*does not start from that SFT adapter"):
        train(load_policy, tokenizer, [pair | sampled for pair in pairs], tmp_path, answers, {})
    assert answers.asked == []


def test_a_start_without_numbers_is_told_before_any_question_is_asked(load_policy, tokenizer, pairs, tmp_path):
    def damaged():
        model = load_policy()
        with torch.no_grad():
            next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).fill_(float("nan"))
        return model

    answers = Answers()
    with pytest.raises(ValueError, match="at its start the policy gives the chosen queries nan and the rejected ones nan nats"):
        train(damaged, tokenizer, pairs, tmp_path, answers, {})
    assert answers.asked == []


def test_a_harmful_run_is_stopped_says_why_and_gives_back_its_start(load_policy, tokenizer, pairs, tmp_path, capsys):
    answers = Answers([0.5, 0.45, 0.2, 0.0, 0.0])
    _, state, facts = train(load_policy, tokenizer, pairs, tmp_path, answers, {})
    sentence = "training stopped: at step 2 execution accuracy had fallen from 50.0% to 20.0%, by 30.0 points (allowed 10.0)"
    assert facts["stopped"] == sentence and answers.asked == [0, 1, 2] and facts["steps"] == 2
    assert f"guards: {sentence}; the adapter of step 0 is kept" in capsys.readouterr().out
    assert facts["kept_step"] == 0 and same(state, answers.adapters[0]) and not same(state, answers.adapters[2])
    assert same(state, gathered_adapter(load_policy()))
    assert not (tmp_path / "checkpoints" / "checkpoint-2").exists(), "nothing goes on from a step that stops"


def test_falling_log_probabilities_stop_though_the_answers_look_fine(pet_models, tokenizer, pairs, tmp_path, capsys):
    """A learning rate far too large, on a model that knew the answers: they become unlikely, chosen and rejected together."""
    def knowing():
        return load_adapter(load_base(pet_models["base"], precision="fp32"), pet_models["sft"],
                            base_fingerprint=fingerprint(pet_models["base"]), trainable=True)

    pairs, harmful = pairs[:2], {"learning_rate": 0.3, "global_batch_size": 2, "guards": {"max_logp_fall": 0.3}}
    _, _, facts = train(knowing, tokenizer, pairs, tmp_path / "stopped", Answers(), **harmful)
    assert "the log-probability of the chosen queries had fallen from" in facts["stopped"] and facts["kept_step"] == 0
    start, last = facts["guards"][0], facts["guards"][-1]
    assert start["chosen_logp"] > -0.1 and last["rejected_logp"] < start["rejected_logp"]
    harmful["guards"]["stop"] = False
    _, _, facts = train(knowing, tokenizer, pairs, tmp_path / "measured", Answers(), **harmful)
    assert facts["stopped"] is None and facts["steps"] == 4 and len(facts["guards"]) == 5 and facts["kept_step"] == 0
    assert facts["guards"][-1]["limit_passed"] and "guards: at step 4 the log-probability" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "stops"), [(4, True), (3, False)])
def test_a_later_round_is_measured_against_sft_on_the_same_questions(load_policy, tokenizer, pairs, tmp_path, n, stops):
    sft = {"n": n, "execution_accuracy": 0.5, "valid_sql": 1.0, "ended_with_eos": 1.0}
    _, _, facts = train(load_policy, tokenizer, pairs, tmp_path, Answers([0.44, 0.45, 0.38, 0.37, 0.37]), {}, sft=sft)
    assert facts["guards"][0]["limit_passed"] is None, "the start is always there to be kept"
    if stops:
        assert "at step 2 execution accuracy had fallen from SFT's 50.0% to 38.0%" in facts["stopped"]
    else:
        assert facts["stopped"] is None
    assert facts["kept_step"] == 1


@pytest.mark.parametrize("accuracies", [(0.5, 0.6, 0.4, 0.45, 0.45), (0.5, 0.6, 0.55, 0.2, 0.2)])
def test_an_interrupted_run_goes_on_and_ends_as_the_uninterrupted_one(load_policy, tokenizer, pairs, tmp_path, accuracies):
    """Cut in the measurement of step 3, when step 2 has its checkpoint and its row; or in the stop itself, just after its row."""
    _, wanted, wanted_facts = train(load_policy, tokenizer, pairs, tmp_path / "whole", Answers(accuracies), {})
    with pytest.raises(KeyboardInterrupt):
        train(load_policy, tokenizer, pairs, tmp_path / "cut", Answers(accuracies, fail_at=3), {})
    assert [row["step"] for row in json.loads((tmp_path / "cut" / "checkpoints" / "guards.json").read_text())] == [0, 1, 2]
    answers = Answers(accuracies)
    _, state, facts = train(load_policy, tokenizer, pairs, tmp_path / "cut", answers, {})
    assert answers.asked == ([3, 4] if wanted_facts["stopped"] is None else [3])
    assert facts["guards"] == wanted_facts["guards"] and facts["stopped"] == wanted_facts["stopped"]
    assert facts["kept_step"] == wanted_facts["kept_step"] == 1 and same(state, wanted)
    # Cut after it all was measured, before the adapter was saved: nothing is measured again.
    answers = Answers(accuracies)
    _, state, facts = train(load_policy, tokenizer, pairs, tmp_path / "cut", answers, {})
    assert answers.asked == [] and same(state, wanted) and facts["stopped"] == wanted_facts["stopped"]


def test_trackers_get_the_rows(load_policy, tokenizer, pairs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(load_policy, tokenizer, pairs, tmp_path, Answers([0.5, 0.6]), {}, epochs=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["train/guards/execution_accuracy"] == [(0, 0.5), (1, pytest.approx(0.6))]
    for name in ("valid_sql", "ended_with_eos", "mean_tokens", "duplicates", "chosen_logp", "rejected_logp", "margin"):
        assert len(found[f"train/guards/{name}"]) == 2, name


def test_guards_are_off_with_0_or_null(load_policy, tokenizer, pairs, tmp_path):
    for value in ("0", "null"):
        guards = read_configuration(DpoConfig, CONFIGURATION, [f"guards.every_steps={value}"]).guards.model_dump()
        _, _, facts = train(load_policy, tokenizer, pairs, tmp_path / value, None, guards, epochs=1)
        assert "guards" not in facts and not (tmp_path / value / "checkpoints" / "guards.json").exists()
    with pytest.raises(ValueError, match="guards.keep: found 'first'"):
        read_configuration(DpoConfig, CONFIGURATION, ["guards.keep=first"])


def test_the_adapter_that_is_kept_is_small_and_whole(load_policy, tokenizer, pairs, tmp_path):
    train(load_policy, tokenizer, pairs, tmp_path, Answers(), {}, epochs=1)
    held = load_file(tmp_path / "checkpoints" / "guard-step-1.safetensors")
    assert len(held) == 28 and all(".default." in name for name in held)


# --------------------------------------------------------------- configuration


@pytest.mark.parametrize(("settings", "message"), [
    (["train.margin_scale=1.0", "train.loss_type=[ipo]", "train.loss_weights=[1.0]"], "is for the losses sigmoid"),
    (["train.margin_scale=1.0", "train.loss_type=[sft]", "train.loss_weights=[1.0]"], "set margin_scale 0.0, or loss_type"),
    (["train.margin_scale=1.0", "train.loss_type=[sigmoid, robust]"], "found loss_type"),
    (["train.margin_scale=1.0", "train.trl={f_divergence_type: js_divergence}"], "f_divergence_type js_divergence"),
    (["train.reference_weight=0.5", "train.loss_type=[ipo]", "train.loss_weights=[1.0]"], "reference_weight 0.5 is for the losses"),
    (["train.reference_weight=1.5"], "train.reference_weight: found 1.5"),
    (["train.reference_weight=0"], None),
    (["train.label_smoothing=0.1"], "is used by the loss robust only and changes nothing"),
    (["train.shared_token_weight=1.5"], "train.shared_token_weight: found 1.5"),
    (["train.shared_token_weight=0.5", "train.loss_weights=[0.0, 1.0]"], "changes nothing for sft alone"),
    (["train.trl={f_divergence_type: js}"], "f_divergence_type is 'js'; allowed are reverse_kl, "),
    (["train.loss_type=[apo_zero]", "train.loss_weights=[1.0]", "train.trl={f_divergence_type: js_divergence}"], "go with loss"),
    (["train.label_smoothing=0.1", "train.loss_type=[robust, sft]", "train.loss_weights=[0.0, 1.0]"], "used by the loss robust"),
    (["train.trl={f_divergence_type: js_divergence}"], None),
    (["train.loss_weights=[0.0, 0.0]"], r"loss_weights \[0.0, 0.0\] are all 0"),
    (["train.loss_weights=[-1.0, 1.0]"], "train.loss_weights.0: found -1.0; input should be greater than or equal to 0"),
    (["train.loss_type=[sigmoid, sigmoid]"], "names a loss twice"),
    (["train.loss_type=[hinge]", "train.loss_weights=[1.0]", "train.trl={use_weighting: true}"], "hinge does not allow"),
    (["train.loss_type=[hinge]", "train.loss_weights=[1.0]", "pairs.weights=kill_score"], "  pairs.weights kill_score gives"),
    (["train.loss_type=[sft]", "train.loss_weights=[1.0]", "pairs.graded=true"], "  pairs.graded true adds pairs of two wrong"),
    (["train.loss_weights=[0.0, 1.0]", "pairs.graded=true"], "set pairs.graded=false, or give a preference loss"),
    (["pairs.graded=true"], None),
    (["train.trl={ld_alpha: 1.5}"], r"\n  train: trl.ld_alpha is 1.5; allowed are numbers from 0"),
    (["train.trl={f_alpha_divergence_coef: 0.3}"], "is for f_divergence_type alpha_divergence and changes nothing with reverse_kl"),
    (["train.trl={f_alpha_divergence_coef: 0.3, f_divergence_type: alpha_divergence}", "train.loss_weights=[1.0, 0.0]"], None),
    (["train.trl={sync_ref_model: true}"], "here it is the frozen SFT adapter"),
    (["train.label_noise=0.5"], r"\n  train.label_noise: found 0.5; allowed are a number from 0 to below 0.5, from-"),
    (["train.label_noise=true"], "train.label_noise: found True; allowed"),
    (["train.label_noise=from-labels", "train.loss_type=[robust]", "train.loss_weights=[1.0]", "pairs.control=flipped"],
     "nobody labels the pairs of pairs.control flipped"),
    (["train.label_noise=from-labels", "train.loss_type=[robust]", "train.loss_weights=[1.0]"], None),
    (["train.loss_weights=[1.0, 0.0]", "train.trl={ld_alpha: 0}"], None),
    (["train.margin_scale=1.0", "train.shared_token_weight=0.1"], None),
    (["train.margin_scale=1.0", "train.loss_type=[hinge]", "train.loss_weights=[1.0]"], None),
    (["train.label_smoothing=0.1", "train.loss_type=[robust, sft]"], None),
])
def test_keys_that_would_do_nothing_or_something_else_are_refused(settings, message):
    if message is None:
        read_configuration(DpoConfig, CONFIGURATION, settings)
    else:
        with pytest.raises(ValueError, match=message):
            read_configuration(DpoConfig, CONFIGURATION, settings)
