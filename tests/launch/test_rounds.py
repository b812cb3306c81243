"""A second round on a run that had finished with one: killed in its training and started again, or in one go."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(sys.platform != "linux", reason="finds and kills the processes of a launch through /proc"),
]


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def second_round(start, finished_run, copy_run, dpo_settings, tmp_path_factory) -> dict:
    """Copies of a run with one round that get a second: `killed` in its training; and `at once`, after the first's training."""
    settings = [*dpo_settings, "rounds=2"]

    def killed() -> dict:
        run = tmp_path_factory.mktemp("second_round") / "run"
        shutil.copytree(finished_run, run)
        first = contents(run / "round-1")
        begun = start("preference/dpo.py", run, settings)
        begun.wait_for(run / "round-2" / "dpo" / "checkpoints" / "checkpoint-1" / "complete.json")
        begun.kill()
        left = not (run / "round-2" / "dpo" / "complete.json").exists()
        output = start("preference/dpo.py", run, settings).finish()
        return {"run": run, "first": first, "left": left, "output": output}

    def at_once() -> dict:
        run = copy_run("train")
        return {"run": run, "output": start("preference/dpo.py", run, settings).finish()}

    with ThreadPoolExecutor(2) as two:
        futures = {"killed": two.submit(killed), "at once": two.submit(at_once)}
        return {name: future.result() for name, future in futures.items()}


def test_a_finished_run_takes_on_a_round_and_resumes_in_it_to_the_same_files(second_round):
    killed, plain = second_round["killed"], second_round["at once"]["run"]
    run = killed["run"]
    assert killed["left"], "the kill came too late"
    assert contents(run / "round-1") == killed["first"], "round 1 was made again"
    for number in (1, 2):
        for name in ("candidates", "verdicts", "pairs", "dropped"):
            file = f"round-{number}/{name}.parquet"
            assert pq.read_table(run / file).equals(pq.read_table(plain / file)), file
        for name in ("adapter_model.safetensors", "complete.json", "provenance.json"):
            file = f"round-{number}/dpo/{name}"
            assert (run / file).read_bytes() == (plain / file).read_bytes(), file
    assert json.loads((run / "round-2" / "dpo" / "training.json").read_text())["start"] is None, "training began anew"
    assert killed["output"].count("is complete for these settings") == 7
    assert "-- round 2 of 2" in killed["output"]


def test_the_second_round_is_on_policy_from_the_first(second_round):
    from sft.checkpoint import checkpoint_hash

    run = second_round["at once"]["run"]
    first, second = (pq.read_table(run / f"round-{number}" / "candidates.parquet").to_pylist() for number in (1, 2))
    assert {row["checkpoint_hash"] for row in first} == {checkpoint_hash(run / "sft")}
    assert {row["checkpoint_hash"] for row in second} == {checkpoint_hash(run / "round-1" / "dpo")}
    assert ({row["round"] for row in first}, {row["round"] for row in second}) == ({1}, {2})
    # All questions again, those aside that were right in all samples; and not with the same random numbers.
    verdicts = pq.read_table(run / "round-1" / "verdicts.parquet").to_pylist()
    unsure = {row["example_id"] for row in verdicts if row["verdict"] != "correct"}
    assert {row["example_id"] for row in second} == unsure and len({row["example_id"] for row in first}) == 48
    assert len(unsure) == 48 or f"{48 - len(unsure)} of 48 left out" in second_round["at once"]["output"]
    facts = json.loads((run / "round-2" / "dpo" / "training.json").read_text())
    before = json.loads((run / "round-1" / "dpo" / "training.json").read_text())
    assert facts["dev_before"] == before["dev_after"] and facts["round"] == 2
    assert facts["start"]["policy_logps"] == pytest.approx(facts["start"]["sft_logps"], abs=1e-3), "not its own samples"
    provenance = json.loads((run / "round-2" / "dpo" / "provenance.json").read_text())
    assert provenance["start_checkpoint"] == checkpoint_hash(run / "round-1" / "dpo")
    assert provenance["sft_checkpoint"] == checkpoint_hash(run / "sft")


def test_the_best_of_all_rounds_is_published(second_round):
    from preference.rounds import best_of, standings
    from sft.checkpoint import checkpoint_hash

    for found in second_round.values():
        best = best_of(standings(found["run"], 2))
        assert checkpoint_hash(found["run"] / "best") == checkpoint_hash(best.adapter)
        assert f"published in {found['run'] / 'best'}: {best.name}" in found["output"]
        assert all(f"\n  {name} " in found["output"] for name in ("sft    ", "round 1", "round 2"))


def test_a_step_alone_names_its_round_and_what_is_missing(start, second_round, dpo_settings):
    run = second_round["killed"]["run"]
    settings = [*dpo_settings, "rounds=3"]
    output = start("preference/dpo.py", run, settings, arguments=["--only", "judge"]).finish(expected=1)
    assert "-- round 3 of 3" in output
    assert f"{run / 'round-3' / 'candidates.parquet'} is missing or unfinished" in output and "--only sample" in output


def test_stage_two_asks_what_stage_one_left_to_it(start, sft_settings, dpo_settings, tmp_path):
    start("sft/run.py", tmp_path, [*sft_settings, "train.epochs=1", "train.evaluations=1", "data.preference_share=0.4"]).finish()
    start("preference/dpo.py", tmp_path, dpo_settings, arguments=["--only", "sample"]).finish()
    train, held = ({row["example_id"] for row in pq.read_table(tmp_path / "data" / f"{split}.parquet").to_pylist()}
                   for split in ("train", "preference"))
    asked = {row["example_id"] for row in pq.read_table(tmp_path / "round-1" / "candidates.parquet").to_pylist()}
    assert asked and asked <= held and not asked & train
    trained = json.loads((tmp_path / "sft" / "complete.json").read_text())["rows"]["train"]
    assert trained == len(train) == 48 - len(held)


def test_what_earlier_settings_left_is_not_asked(copy_run):
    from preference.preparation import prepare

    run = copy_run("sample")
    pq.write_table(pq.read_table(run / "data" / "train.parquet").slice(0, 5), run / "data" / "preference.parquet")
    stage = prepare(run, 0, "sft", "dpo")
    assert (stage.split, len(stage.examples)) == ("train", 48)
