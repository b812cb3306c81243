"""Killed in the middle of any step and started again, a run ends as the uninterrupted one does."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(sys.platform != "linux", reason="finds and kills the processes of a launch through /proc"),
]
# Longest time for the kernel to end ranks whose launcher is gone.
ORPHAN_LIMIT_S = 3


def contents(run: Path) -> dict[str, str]:
    """The hash of every file in a run folder."""
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.rglob("*")) if path.is_file()}


def names(run: Path) -> set[str]:
    """The files in a run folder; what trackers wrote aside has the time in its name."""
    return {name for name in contents(run) if "/runs/" not in name and "/tensorboard/" not in name}


def kill_launcher(started) -> list[int]:
    """SIGKILL to the launcher alone; gives the processes below it that go on without it."""
    started.process.kill()
    started.process.wait()
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    while (orphans := started.alive()) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.kill()
    return orphans


@pytest.fixture(scope="module")
def resumed(start, copy_run, dpo_settings, sft_settings, finished_run, tmp_path_factory) -> dict:
    """Both stages, killed at their steps and started again, side by side; what was seen on the way."""

    def stage_one() -> dict:
        run = tmp_path_factory.mktemp("killed_sft") / "run"
        launcher = ["--config_file", "launch/cpu-2-ranks.yaml"]
        first = start("sft/run.py", run, sft_settings, launcher=launcher, cores=2)
        first.wait_for(run / "sft" / "checkpoints" / "checkpoint-30" / "complete.json")
        ranks = len(first.alive()) - 1
        orphans = kill_launcher(first)
        finished_then = (run / "sft" / "complete.json").exists()
        output = start("sft/run.py", run, sft_settings, launcher=launcher, cores=2).finish()
        return {"run": run, "ranks": ranks, "orphans": orphans, "finished_then": finished_then, "output": output}

    def stage_two() -> dict:
        run = copy_run("sample")
        place = run / "round-1"
        left = {}
        for step, sign in {"sample": place / "candidates" / "shard-00000.parquet",
                           "judge": place / "verdicts" / "shard-00000.parquet",
                           "train": place / "dpo" / "checkpoints" / "checkpoint-1" / "complete.json"}.items():
            killed = start("preference/dpo.py", run, dpo_settings)
            killed.wait_for(sign)
            if step == "judge":
                judges = len(killed.alive()) - 2
                orphans = kill_launcher(killed)
            else:
                killed.kill()
            left[step] = names(run)
        start("preference/dpo.py", run, dpo_settings).finish()
        before = contents(run)
        again = start("preference/dpo.py", run, dpo_settings).finish()
        return {"run": run, "left": left, "judges": judges, "orphans": orphans, "again": again,
                "unchanged": before == contents(run)}

    with ThreadPoolExecutor(2) as two:
        one, second = two.submit(stage_one), two.submit(stage_two)
        return {"stage one": one.result(), "stage two": second.result()}


def test_each_kill_came_in_the_middle_of_its_step(resumed):
    left = resumed["stage two"]["left"]
    assert "round-1/candidates.complete.json" not in left["sample"]
    assert "round-1/candidates.complete.json" in left["judge"] and "round-1/verdicts.complete.json" not in left["judge"]
    assert "round-1/pairs.complete.json" in left["train"] and "round-1/dpo/complete.json" not in left["train"]
    assert not resumed["stage one"]["finished_then"]


def test_ranks_and_judges_end_with_a_launcher_that_is_killed(resumed):
    assert resumed["stage one"]["ranks"] >= 2 and resumed["stage two"]["judges"] >= 1
    assert resumed["stage one"]["orphans"] == []
    assert resumed["stage two"]["orphans"] == []


def test_stage_one_resumes_to_the_uninterrupted_adapter(resumed, finished_run, adapter_logits):
    run = resumed["stage one"]["run"]
    found, plain = (json.loads((folder / "sft" / "training.json").read_text()) for folder in (run, finished_run))
    assert found["best_step"] == plain["best_step"] and found["evaluations"] == plain["evaluations"]
    # Step 1 was trained before the kill; its loss comes out of the checkpoint.
    assert [entry["loss"] for entry in found["log"] if "loss" in entry] == pytest.approx(
        [entry["loss"] for entry in plain["log"] if "loss" in entry], abs=1e-4)
    assert (adapter_logits(run / "sft") - adapter_logits(finished_run / "sft")).abs().max() < 1e-4
    assert "base model: " in resumed["stage one"]["output"]


def test_stage_two_resumes_to_the_uninterrupted_files(resumed, finished_run):
    run = resumed["stage two"]["run"]
    for name in ("candidates", "verdicts", "pairs", "dropped"):
        plain = pq.read_table(finished_run / "round-1" / f"{name}.parquet")
        assert pq.read_table(run / "round-1" / f"{name}.parquet").equals(plain), name
    for name in ("adapter_model.safetensors", "complete.json", "provenance.json"):
        found, plain = (folder / "round-1" / "dpo" / name for folder in (run, finished_run))
        assert found.read_bytes() == plain.read_bytes(), name
    assert names(run) == names(finished_run)
    facts = json.loads((run / "round-1" / "dpo" / "training.json").read_text())
    assert facts["start"] is None, "training began anew instead of at its checkpoint"


def test_a_second_start_of_a_finished_run_does_nothing_and_says_so(resumed):
    found = resumed["stage two"]
    for step in ("sample", "judge", "pairs", "train"):
        assert f"{step}: " in found["again"] and "is complete for these settings" in found["again"]
    assert found["again"].count("is complete for these settings") == 4
    assert found["unchanged"]


def test_shards_that_are_there_are_not_made_again(tmp_path):
    import pyarrow as pa

    from sft.artefacts import join_shards, make_in_shards

    schema = pa.schema([("number", pa.int64())])
    target, made = tmp_path / "numbers.parquet", []

    def make(items: list[int]) -> list[dict]:
        made.append(items)
        if items == [4, 5]:
            raise KeyboardInterrupt
        return [{"number": item} for item in items]

    with pytest.raises(KeyboardInterrupt):
        make_in_shards(target, [0, 1, 2, 3, 4, 5, 6], 2, schema, make, part=0, parts=1)
    made.clear()
    make_in_shards(target, [0, 1, 2, 3, 4, 5, 6], 2, schema,
                   lambda items: [{"number": item} for item in items], part=1, parts=2)
    assert sorted(path.name for path in target.with_suffix("").iterdir()) == [
        "shard-00000.parquet", "shard-00001.parquet", "shard-00003.parquet"]
    make_in_shards(target, [0, 1, 2, 3, 4, 5, 6], 2, schema,
                   lambda items: made.append(items) or [{"number": item} for item in items], part=0, parts=2)
    assert made == [[4, 5]]
    assert join_shards(target, schema) == 7
    assert pq.read_table(target).column("number").to_pylist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    from sft.training import last_whole_checkpoint, mark_checkpoint

    assert last_whole_checkpoint(tmp_path) is None
    for step in (1, 9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    for step in (9, 10):
        mark_checkpoint(tmp_path, step)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
