"""Rounds: what each asks, which one a step alone works on, which adapter is published."""

import json
import shutil
from types import SimpleNamespace

import pytest

from preference import dpo
from preference.pairs import DROPPED_SCHEMA
from preference.publication import publish_best, say_without_pairs
from preference.rounds import (
    adapter_of,
    always_right,
    best_of,
    consecutive_rounds,
    inputs_hash,
    questions_of_round,
    round_at_hand,
    standings,
)
from preference.sampling import VERDICTS_SCHEMA
from sft.artefacts import file_hash, mark_complete, mark_path, write_json, write_parquet
from sft.checkpoint import checkpoint_hash


def finish(run, number, accuracy, weights="", inputs=None, **facts):
    """A round's adapter (0: stage one's) as its training leaves it, with these inputs in its mark."""
    folder = adapter_of(run, number)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(weights or f"weights {number}")
    (folder / "adapter_config.json").write_text("{}")
    before = adapter_of(run, number - 1) if number else None
    start = {"start_checkpoint": checkpoint_hash(before)} if before and before.exists() else {}
    write_json(folder / "provenance.json", {"base_fingerprint": "f", **start})
    measures = {"n": 64, "execution_accuracy": accuracy, "valid_sql": 0.75, "ended_with_eos": 1.0}
    write_json(folder / "training.json", {"dev_after": measures, **facts})
    follows = {"before": inputs_hash(run, number - 1)} if number > 1 and before.exists() else {}
    mark_complete(folder, inputs or {"number": number} | follows, {})
    return folder


# -------------------------------------------------------------------- questions


def test_each_round_takes_the_next_questions_and_begins_anew_when_they_run_out():
    assert ["".join(questions_of_round(list("abcde"), number, 2)) for number in (1, 2, 3, 4)] == ["ab", "cd", "ea", "bc"]
    assert [questions_of_round(list("abc"), number, None) for number in (1, 2)] == [list("abc")] * 2
    assert questions_of_round(list("abc"), 2, 9) == list("abc"), "none twice in a round"
    assert questions_of_round([], 2, 4) == []


def test_questions_that_were_right_in_all_samples_of_an_earlier_round(tmp_path):
    verdicts = {1: {"a": ["correct"], "b": ["correct", "wrong"], "c": ["correct", "unclear"]},
                2: {"b": ["correct", "correct"], "d": ["wrong"]}, 3: {"d": ["correct"]}}
    for number, found in verdicts.items():
        rows = [{"example_id": name, "canonical_sql": str(index), "verdict": verdict}
                for name, words in found.items() for index, verdict in enumerate(words)]
        write_parquet(tmp_path / f"round-{number}" / "verdicts.parquet", rows, VERDICTS_SCHEMA)
    assert [always_right(tmp_path, number) for number in (1, 2, 3)] == [set(), {"a"}, {"a", "b"}]


# ----------------------------------------------------------------- one step alone


def test_a_step_alone_works_on_the_first_round_that_is_not_finished(tmp_path):
    assert round_at_hand(tmp_path, 3) == 1
    finish(tmp_path, 1, 0.5)
    assert round_at_hand(tmp_path, 3) == 2 and round_at_hand(tmp_path, 1) == 1
    finish(tmp_path, 2, 0.5)
    finish(tmp_path, 3, 0.5)
    assert round_at_hand(tmp_path, 3) == 3 and round_at_hand(tmp_path, 2) == 2


def test_a_step_alone_begins_with_the_round_that_started_from_another_adapter(tmp_path):
    for number in range(3):
        finish(tmp_path, number, 0.5)
    assert round_at_hand(tmp_path, 3) == 3
    shutil.rmtree(adapter_of(tmp_path, 0))
    finish(tmp_path, 0, 0.5, weights="others")
    assert round_at_hand(tmp_path, 3) == 1, "stage one is another one"


def test_a_step_alone_begins_with_the_round_whose_pairs_people_have_changed(tmp_path):
    pairs = tmp_path / "round-1" / "pairs.parquet"
    pairs.parent.mkdir()
    pairs.write_text("as they were trained on")
    finish(tmp_path, 0, 0.5)
    finish(tmp_path, 1, 0.5, inputs={"pairs": file_hash(pairs)})
    finish(tmp_path, 2, 0.5)
    assert round_at_hand(tmp_path, 2) == 2
    pairs.write_text("as people say")
    assert round_at_hand(tmp_path, 2) == 1


def test_rounds_that_follow_from_each_other(tmp_path):
    for number in range(4):
        finish(tmp_path, number, 0.5)
    assert [consecutive_rounds(tmp_path, last) for last in (0, 2, 3, 9)] == [[], [1, 2], [1, 2, 3], [1, 2, 3]]
    # Round 2 is made anew, with other weights: round 3 started from an adapter that is gone.
    shutil.rmtree(adapter_of(tmp_path, 2))
    assert consecutive_rounds(tmp_path, 3) == [1], "round 2 is not finished"
    finish(tmp_path, 2, 0.5, weights="others")
    assert consecutive_rounds(tmp_path, 3) == [1, 2]
    mark_path(adapter_of(tmp_path, 0)).unlink()
    assert consecutive_rounds(tmp_path, 3) == [], "stage one is being made anew"


def test_equal_weights_of_other_settings_are_another_round(tmp_path):
    """The guards give back SFT's weights, whatever beta is: the round after was trained with other settings all the same."""
    finish(tmp_path, 0, 0.5, weights="same")
    first = {"seed": 0, "train": {"beta": 0.1}, "pairs": "some"}
    finish(tmp_path, 1, 0.5, weights="same", inputs=first)
    finish(tmp_path, 2, 0.5, inputs={"seed": 0, "pairs": "others", "before": inputs_hash(tmp_path, 1)})
    assert consecutive_rounds(tmp_path, None) == [1, 2]
    for beta, found in ((0.3, [1]), (0.1, [1, 2])):
        shutil.rmtree(adapter_of(tmp_path, 1))
        finish(tmp_path, 1, 0.5, weights="same", inputs=first | {"train": {"beta": beta}})
        assert consecutive_rounds(tmp_path, None) == found


# --------------------------------------------------------------------- published


@pytest.mark.parametrize(("accuracies", "best"), [
    ((0.5, 0.25, 0.25), "sft"), ((0.5, 0.5, 0.25), "round 1"), ((0.25, 0.5, 0.5), "round 2"), ((0.5, 0.75, 0.5), "round 1")])
def test_the_best_on_development_questions_and_of_equal_ones_the_later(tmp_path, accuracies, best):
    for number, accuracy in enumerate(accuracies):
        finish(tmp_path, number, accuracy)
    assert best_of(standings(tmp_path, 2)).name == best


def test_what_is_published_follows_the_rounds_and_is_not_copied_twice(tmp_path, capsys):
    finish(tmp_path, 0, 0.25)
    first = finish(tmp_path, 1, 0.5, pairs=136, steps=8)
    for name in ("tensorboard", "last"):
        (first / name).mkdir()
    target = tmp_path / "best"
    publish_best(tmp_path, 1, show=False)
    assert (target / "adapter_model.safetensors").read_text() == "weights 1" and capsys.readouterr().out == ""
    assert not (target / "complete.json").exists() and not any(path.is_dir() for path in target.iterdir())
    (target / "seen").touch()
    finish(tmp_path, 2, 0.375, pairs=90, steps=5)
    publish_best(tmp_path, 2, show=True)
    assert (target / "seen").exists(), "the same adapter was copied again"
    assert capsys.readouterr().out == (
        f"development questions (n = 64), greedy; published in {target}: round 1\n"
        "  sft       25.0% correct, valid SQL 75.0%, ends with EOS 100.0%\n"
        "  round 1   50.0% correct, valid SQL 75.0%, ends with EOS 100.0%, 136 pairs, 8 steps\n"
        "  round 2   37.5% correct, valid SQL 75.0%, ends with EOS 100.0%, 90 pairs, 5 steps\n")
    shutil.rmtree(adapter_of(tmp_path, 1))
    finish(tmp_path, 1, 0.125)
    publish_best(tmp_path, 1, show=False)
    assert (target / "adapter_model.safetensors").read_text() == "weights 0", "round 1 was made anew: it is no longer the best"
    assert not (target / "seen").exists()


@pytest.mark.parametrize(("rounds", "stale", "best"), [(1, False, "weights 2"), (3, False, "weights 2"), (1, True, "weights 1")])
def test_a_run_of_fewer_rounds_leaves_the_best_of_all_published(tmp_path, monkeypatch, rounds, stale, best):
    """Three rounds are there, the second the best; a run of one of them trains nothing. Stale: round 1 is another by now."""
    for number, accuracy in enumerate((0.25, 0.375, 0.75, 0.5)):
        finish(tmp_path, number, accuracy)
    publish_best(tmp_path, 3, show=False)
    if stale:
        write_json(adapter_of(tmp_path, 2) / "provenance.json", {"base_fingerprint": "f", "start_checkpoint": "gone"})
    asked = []
    monkeypatch.setattr("preference.preparation.prepare", lambda *_: SimpleNamespace(sft_config={}))
    monkeypatch.setattr("preference.preparation.check_training", lambda *_: None)
    monkeypatch.setattr("sft.ranks.start", lambda zero: None)
    monkeypatch.setattr(dpo, "run_round", lambda config, stage, number, *_: asked.append(number) or True)
    dpo.run(SimpleNamespace(run=tmp_path, rounds=rounds, seed=0), dpo.STEPS, False, sft_command="", command="")
    assert (tmp_path / "best" / "adapter_model.safetensors").read_text() == best
    assert asked == list(range(1, rounds + 1))


def test_a_round_without_pairs_says_why_and_the_first_is_an_error(tmp_path, capsys):
    for number in (1, 2):
        write_parquet(tmp_path / f"round-{number}" / "dropped.parquet",
                      [{"example_id": name, "reason": reason} for name, reason in
                       (("a", "no_wrong_sample"), ("b", "no_wrong_sample"), ("c", "gold_bad"))], DROPPED_SCHEMA)
    with pytest.raises(ValueError, match=r"round 1 has no pairs: .*2 no_wrong_sample, 1 gold_bad\)\. A pair needs.*with --overwrite"):
        say_without_pairs(tmp_path, 1)
    say_without_pairs(tmp_path, 2)
    said = capsys.readouterr().out
    assert said.startswith("round 2 has no pairs: ") and said.endswith("no later round is begun.\n")


def test_facts_of_several_rounds_stand_beside_each_other_in_the_report(tmp_path):
    from preference.compare_models import run_facts
    from preference.pairs import PAIRS_SCHEMA
    from preference.report import _fact_groups

    finish(tmp_path, 0, 0.25, steps=9, log=[])
    for number, (steps, pairs) in {1: (4, 2), 2: (2, 1)}.items():
        log = [{"step": 2, "loss": 0.5 / number}, {"step": steps, "train_runtime": 3.0}]
        guards = [{"step": step, "execution_accuracy": step / 8} for step in (0, steps)]
        finish(tmp_path, number, 0.25 * number, steps=steps, log=log, guards=guards)
        place = tmp_path / f"round-{number}"
        write_parquet(place / "dropped.parquet", [{"example_id": "a", "reason": "gold_bad"}], DROPPED_SCHEMA)
        write_parquet(place / "pairs.parquet", [{"example_id": "b"}] * pairs, PAIRS_SCHEMA)
        mark_complete(place / "pairs.parquet", {}, {"pairs": pairs})
    (tmp_path / "config.yaml").write_text("sft: {model: embedded}\ndpo: {rounds: 2}\n")
    stale = finish(tmp_path, 3, 0.875, steps=9, log=[{"step": 9, "loss": 9.0}])
    facts = run_facts(tmp_path)
    assert "dpo, round 3" not in facts, "there are two rounds: the third is of other settings"
    (tmp_path / "config.yaml").write_text("sft: {model: embedded}\ndpo: {rounds: 3}\n")
    write_json(stale / "provenance.json", {"base_fingerprint": "f", "start_checkpoint": "gone"})
    assert run_facts(tmp_path) == facts | {"config": {"sft": {"model": "embedded"}, "dpo": {"rounds": 3}}}
    assert [(row["step"], row["loss"]) for row in facts["training"]["dpo"]] == [(2, 0.5), (6, 0.25)]
    shares = [(row["step"], row["execution_accuracy"]) for row in facts["training"]["guards"]]
    assert shares == [(0, 0.0), (4, 0.5), (4, 0.0), (6, 0.25)], "each round begins where the one before ended"
    assert facts["dpo, round 1"] == {"steps": 4, "development_accuracy_share": 0.25}
    assert facts["dpo, round 2"] == {"steps": 2, "development_accuracy_share": 0.5}
    assert facts["pairs"] == {name: {"kept": kept, "dropped": {"gold_bad": 1}} for name, kept in (("round 1", 2), ("round 2", 1))}
    groups = dict(_fact_groups(json.loads(json.dumps(facts))))
    assert groups["pairs"][1] == ("Round 2", "kept 1, dropped gold bad 1")
    assert groups["dpo, round 2"] == [("Steps", "2"), ("Development accuracy share", "50.00 %")]
