"""The steps of a round: what each is made for, and what is made anew."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from preference.dpo import run_round
from preference.dpo_stage import train_round
from preference.inspection.contents import hash_of
from preference.inspection.labels import LabelFile
from preference.inspection.training import refused_questions
from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA
from preference.preparation import Prepared, as_made, asked_hash
from preference.rounds import adapter_of, inputs_hash
from preference.sampling import CANDIDATES_SCHEMA, VERDICTS_SCHEMA
from sft.artefacts import file_hash, mark_complete, write_json, write_parquet
from sft.configuration import DpoConfig, read_configuration
from sft.records import recorded_configurations

CONFIGURATION = Path(__file__).parents[2] / "configs" / "dpo.yaml"


class Asked(Exception):
    """Raised in the place of a step's work, with the inputs that it is made for."""


@pytest.fixture
def stage(tmp_path):
    """A finished stage one with four questions, whose weights nobody loads."""
    adapter = tmp_path / "sft"
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_text("{}")
    write_json(adapter / "provenance.json", {"base_fingerprint": "f"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    examples = [{"example_id": name, "context": "CREATE TABLE pet (name TEXT)"} for name in "abcd"]
    return Prepared(tmp_path, {"trust_remote_code": False}, None, "compact", 256, "p", "train", examples)


@pytest.fixture
def inputs_of_samples(stage, monkeypatch):
    """A function that gives the inputs with which a round's sample step is begun, under --set values."""
    monkeypatch.setattr("sft.checkpoint.load_for_inference", lambda *_, **__: (None, None, None))

    def sample(target, inputs, *_, **__):
        raise Asked(inputs)

    monkeypatch.setattr("preference.sampling.sample", sample)

    def inputs(*settings, number=1, split="train"):
        config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}", *settings])
        with pytest.raises(Asked) as asked:
            run_round(config, replace(stage, split=split), number, ("sample",), False)
        return asked.value.args[0]

    return inputs


def test_samples_depend_on_the_precision_they_are_drawn_in(inputs_of_samples):
    found = {precision: inputs_of_samples(f"train.precision={precision}") for precision in ("fp32", "bf16")}
    assert found["fp32"] != found["bf16"]
    assert found["bf16"] == found["fp32"] | {"precision": "bf16"}


def test_samples_depend_on_the_file_that_their_questions_come_from(stage, inputs_of_samples):
    (stage.folder / "data" / "preference.parquet").write_bytes(b"other questions")
    found = {split: inputs_of_samples(split=split) for split in ("train", "preference")}
    assert found["preference"] == found["train"] | {"data": file_hash(stage.folder / "data" / "preference.parquet")}
    assert found["preference"]["data"] != found["train"]["data"]


def test_overwrite_keeps_what_is_equal_and_says_how_to_make_it_anew(stage, capsys):
    place = stage.folder / "round-1"
    for name, schema in (("candidates", CANDIDATES_SCHEMA), ("verdicts", VERDICTS_SCHEMA)):
        write_parquet(place / f"{name}.parquet", [], schema)
        mark_complete(place / f"{name}.parquet", {}, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}"])
    pairs = place / "pairs.parquet"

    def made(steps, overwrite) -> bool:
        before = pairs.stat().st_mtime_ns if pairs.exists() else None
        run_round(config, stage, 1, steps, overwrite)
        return pairs.stat().st_mtime_ns != before

    assert made(("pairs",), False) and not made(("pairs",), False)
    assert f"pairs: {pairs} is complete for these settings\n" in capsys.readouterr().out
    assert not made(("pairs",), True)
    assert f"pairs: {pairs} is complete for these settings; to make it anew all the same, delete it\n" in capsys.readouterr().out
    pairs.unlink()
    assert made(("pairs",), False) and pairs.with_suffix(".complete.json").exists()


def test_a_step_alone_takes_no_files_that_were_made_of_other_samples(stage):
    place, config = stage.folder / "round-1", read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}"])
    candidates, verdicts, pairs = (place / f"{name}.parquet" for name in ("candidates", "verdicts", "pairs"))
    for path, schema in ((candidates, CANDIDATES_SCHEMA), (verdicts, VERDICTS_SCHEMA), (pairs, PAIRS_SCHEMA)):
        write_parquet(path, [], schema)
    for step, target, made_of in (("pairs", verdicts, {"candidates": "others"}),
                                  ("train", pairs, {"candidates": file_hash(candidates), "verdicts": "others"})):
        for path in (candidates, verdicts, pairs):
            mark_complete(path, made_of if path == target else {}, {})
        name = list(made_of)[-1]
        with pytest.raises(ValueError, match=f"{target} was made of other {name} than .* Make it anew first: .* --overwrite"):
            run_round(config, stage, 1, (step,), False)


def test_verdicts_are_made_in_the_shards_of_the_samples(stage, monkeypatch):
    asked = []
    monkeypatch.setattr("preference.sampling.judge", lambda *arguments, **options: asked.append(options["shard_size"]))
    write_parquet(stage.folder / "round-1" / "candidates.parquet", [], CANDIDATES_SCHEMA)
    mark_complete(stage.folder / "round-1" / "candidates.parquet", {"shard_size": 8}, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}", "sample.shard_size=16"])
    run_round(config, stage, 1, ("judge",), False)
    assert asked == [8]


def test_a_step_alone_takes_the_questions_that_were_sampled(stage, monkeypatch, capsys):
    """Two of the four were sampled; the settings now are of another seed and number, as when --set is not repeated."""
    asked, file = [], stage.folder / "round-1" / "candidates.parquet"
    monkeypatch.setattr("preference.sampling.judge", lambda target, inputs, examples, *_, **__: asked.append(
        [example["example_id"] for example in examples]))
    write_parquet(file, [{"example_id": name} for name in "bbd"], CANDIDATES_SCHEMA)
    mark_complete(file, {"asked": asked_hash([{"example_id": name} for name in "bd"]), "questions": 2, "shard_size": 8, "samples": 3,
                         "seed": 5}, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}", "seed=1", "sample.questions=1"])
    run_round(config, stage, 1, ("judge",), False)
    assert asked == [["b", "d"]]
    said = capsys.readouterr().out
    assert f"{file} was made with sample.samples=3, seed=5, and is taken as it is" in said and f"{stage.command} --only sample --overwrite" in said
    recorded = recorded_configurations(stage.folder)["dpo"]
    assert recorded["sample"]["samples"] == 3 and recorded["seed"] == 1, "what made the files is what the run says of itself"


def test_a_step_alone_asks_in_the_order_of_the_samples_and_measures_as_it_is_asked_to(stage, monkeypatch):
    file, asked = stage.folder / "round-1" / "candidates.parquet", []
    monkeypatch.setattr("preference.sampling.judge", lambda target, inputs, examples, *_, databases, **__: asked.append(
        ([example["example_id"] for example in examples], databases)))
    write_parquet(file, [{"example_id": name} for name in "dac"], CANDIDATES_SCHEMA)
    mark_complete(file, {"asked": "of other settings", "shard_size": 8}, {})
    verdicts = stage.folder / "round-1" / "verdicts.parquet"
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}"])
    run_round(config, stage, 1, ("judge",), False)
    assert asked == [(["d", "a", "c"], "both")]
    write_parquet(verdicts, [], VERDICTS_SCHEMA)
    mark_complete(verdicts, {"databases": "given"}, {})
    assert as_made(config, stage, 1, ("train",), "f").judge.databases == "both", "training measures SFT and DPO alike"


def test_samples_of_another_adapter_are_not_trained_on(stage):
    place = stage.folder / "round-1"
    for name, schema, inputs in (("candidates", CANDIDATES_SCHEMA, {"checkpoint": "another"}), ("pairs", PAIRS_SCHEMA, {})):
        write_parquet(place / f"{name}.parquet", [], schema)
        mark_complete(place / f"{name}.parquet", inputs, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}"])
    for step in ("judge", "pairs", "train"):
        with pytest.raises(ValueError, match="sampled from another adapter than round 1 starts from now.*: .*--only sample --overwrite"):
            run_round(config, stage, 1, (step,), False)


def test_pairs_that_do_not_go_with_the_training_alone_are_refused(stage):
    pairs = stage.folder / "round-1" / "pairs.parquet"
    write_parquet(pairs, [], PAIRS_SCHEMA)
    mark_complete(pairs, {"graded": True}, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [
        f"run={stage.folder}", "pairs.graded=false", "train.loss_type=[sft]", "train.loss_weights=[1.0]"])
    with pytest.raises(ValueError, match="round-1 holds does not go with these settings: pairs.graded true adds pairs of two wrong"):
        run_round(config, stage, 1, ("train",), False)


def test_a_round_that_has_no_pairs_any_more_keeps_no_adapter_of_other_pairs(stage):
    config, place = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}"]), stage.folder / "round-1"
    write_parquet(place / "verdicts.parquet", [], VERDICTS_SCHEMA)
    write_parquet(place / "pairs.parquet", [], PAIRS_SCHEMA)
    mark_complete(place / "pairs.parquet", {}, {})
    assert not run_round(config, stage, 1, ("train",), False) and not (place / "dpo").exists()
    shutil.copytree(stage.folder / "sft", place / "dpo")
    mark_complete(place / "dpo", {"pairs": "others"}, {})
    with pytest.raises(ValueError, match="dpo was made with other settings or inputs .*pairs: 'others' there"):
        run_round(config, stage, 1, ("train",), False)
    assert (place / "dpo" / "adapter_model.safetensors").exists()
    assert not run_round(config, stage, 1, ("train",), True) and not (place / "dpo").exists()


def test_training_is_made_for_the_inputs_of_the_round_before(stage, monkeypatch):
    begun = []
    monkeypatch.setattr("preference.dpo_stage.train_round", lambda *arguments: begun.append(arguments[-1]))
    monkeypatch.setattr("preference.publication.publish_best", lambda *_, **__: None)
    for number in (1, 2):
        place = stage.folder / f"round-{number}"
        write_parquet(place / "verdicts.parquet", [], VERDICTS_SCHEMA)
        write_parquet(place / "dropped.parquet", [], DROPPED_SCHEMA)
        write_parquet(place / "pairs.parquet", [{"example_id": "a"}], PAIRS_SCHEMA)
        mark_complete(place / "pairs.parquet", {}, {})
    shutil.copytree(stage.folder / "sft", stage.folder / "round-1" / "dpo")
    mark_complete(stage.folder / "round-1" / "dpo", {"seed": 0}, {})
    config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}", "rounds=2"])
    run_round(config, stage, 2, ("train",), False)
    [inputs] = begun
    assert inputs["before"] == inputs_hash(stage.folder, 1) and inputs["train"]["micro_batch_size"] == 4
    target = stage.folder / "round-2" / "dpo"
    shutil.copytree(stage.folder / "sft", target, dirs_exist_ok=True)
    mark_complete(target, inputs, {})
    run_round(config, stage, 2, ("train",), False)
    assert len(begun) == 1
    mark_complete(stage.folder / "round-1" / "dpo", {"seed": 1}, {})
    with pytest.raises(ValueError, match="was made with other settings or inputs .before: "):
        run_round(config, stage, 2, ("train",), False)


def test_questions_that_people_refuse_are_not_asked_again(stage, inputs_of_samples, capsys):
    """Round 1 asked four questions: people refused one in the pairs already (b), and one on a pair that stands there (c)."""
    place = stage.folder / "round-1"
    pairs = [{"pair_id": None, "prompt": [{"role": "user", "content": name}], "chosen": [{"role": "assistant", "content": "1"}],
              "rejected": [{"role": "assistant", "content": "2"}], "example_id": name} for name in "acd"]
    pairs = [pair | {"pair_id": hash_of(pair)} for pair in pairs]
    write_parquet(place / "pairs.parquet", pairs, PAIRS_SCHEMA)
    write_parquet(place / "dropped.parquet", [{"example_id": "b", "reason": "person_gold_wrong"},
                                              {"example_id": "d", "reason": "person_tie"}], DROPPED_SCHEMA)
    write_parquet(place / "verdicts.parquet", [], VERDICTS_SCHEMA)
    shutil.copytree(stage.folder / "sft", place / "dpo")
    assert "refused" not in inputs_of_samples() and "refused" not in inputs_of_samples("rounds=2")
    labels = LabelFile(stage.folder / "labels.sqlite")
    labels.add(pairs[0]["pair_id"], "ada", "gold_wrong", content_hash="of another text")
    labels.add(pairs[1]["pair_id"], "ada", "gold_wrong", content_hash=pairs[1]["pair_id"])
    capsys.readouterr()
    found = inputs_of_samples("rounds=2", number=2)
    assert (found["refused"], found["questions"]) == (["b", "c"], 2)
    assert "questions: 2 of 4 left out: people call their gold wrong" in capsys.readouterr().out
    # A word that comes once the round has begun waits for the next: the run goes on as it began.
    (stage.folder / "round-2" / "candidates.parquet").touch()
    labels.add(pairs[2]["pair_id"], "ada", "unanswerable", content_hash=pairs[2]["pair_id"])
    labels.close()
    assert inputs_of_samples("rounds=2", number=2) == found
    assert refused_questions(stage.folder, 2) == {"b", "c", "d"}


@pytest.fixture
def trained(stage, monkeypatch):
    """A function that gives what a round's training is handed, and the questions its guards ask of 1,000, the first 300 hard."""
    rows = [{"example_id": str(place), "kind": "hard" if place < 300 else "easy"} for place in range(1000)]

    def train(*_, evaluate, **handed):
        raise Asked(handed | {"watched": evaluate("policy", 30)})

    monkeypatch.setattr("preference.dpo_stage.load", lambda folder, split: rows if split == "dev" else [])
    for name in ("base_of", "fingerprint"):
        monkeypatch.setattr(f"preference.dpo_stage.{name}", lambda *_: "base")
    monkeypatch.setattr("preference.dpo_stage.read_provenance", lambda _: {"prompt": {"schema_style": "compact"}})
    monkeypatch.setattr("preference.dpo_training.train_dpo", train)
    monkeypatch.setattr("preference.dpo_stage.evaluate", lambda policy, tokenizer, examples, **_: examples)

    def handed(number: int, guards_of_rounds: list[list[dict]]) -> dict:
        for round_number, found in enumerate([[], *guards_of_rounds[: number - 1]]):
            adapter = adapter_of(stage.folder, round_number)
            adapter.mkdir(parents=True, exist_ok=True)
            write_json(adapter / "training.json", {"dev_after": {}} | ({"guards": found} if found else {}))
        config = read_configuration(DpoConfig, CONFIGURATION, [f"run={stage.folder}", "guards.questions=200"])
        with pytest.raises(Asked) as asked:
            train_round(config, {"model": "m", "trust_remote_code": False, "seed": 0}, stage.folder, number, None, [],
                        {"checkpoint": "c"})
        return asked.value.args[0]

    return handed


def test_guards_ask_questions_drawn_from_all_of_the_development_split(trained):
    found = trained(1, [])["watched"]
    assert len(found) == 200 and 45 <= sum(row["kind"] == "hard" for row in found) <= 75  # 60 are expected; the first 200 are all hard


def test_guards_of_later_rounds_know_what_sft_reached(trained):
    rounds = [[{"step": 0, "execution_accuracy": 0.25 * number}, {"step": 9, "execution_accuracy": 1.0}] for number in (1, 2)]
    assert [trained(number, rounds)["sft"] for number in (1, 2, 3)] == [None, rounds[0][0], rounds[0][0]]
    assert trained(2, [[]])["sft"] is None, "round 1 had no guards"
