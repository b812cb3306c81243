"""However many ranks and machines, and under every ZeRO stage: the same candidates, losses and adapter."""

from __future__ import annotations

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def runs(start, copy_run, dpo_settings) -> dict[str, tuple[Path, str]]:
    """Stage two again in copies of the run, two launches at a time: {name: (run folder, output)}."""
    settings = [*dpo_settings, "train.save_steps=100"]

    def one_rank() -> tuple[Path, str]:
        run = copy_run("train")
        zero = [setting.replace("zero_stage=0", "zero_stage=2") for setting in settings]
        return run, start("preference/dpo.py", run, zero, launcher=["--config_file", "launch/cpu.yaml"]).finish()

    def two_ranks(configuration: str, first: str) -> tuple[Path, str]:
        run = copy_run(first)
        launcher = ["--config_file", f"launch/{configuration}", "--num_processes", "2"]
        return run, start("preference/dpo.py", run, settings, launcher=launcher, cores=2).finish()

    def two_machines() -> tuple[Path, str]:
        run = copy_run("train")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        machines = [
            start("preference/dpo.py", run, settings,
                  launcher=["--config_file", "launch/machines-2.yaml", "--machine_rank", str(rank), "--num_processes", "2",
                            "--main_process_ip", "127.0.0.1", "--main_process_port", port])
            for rank in range(2)
        ]
        return run, "".join(machine.finish() for machine in machines)

    with ThreadPoolExecutor(2) as two:
        futures = {
            "ZeRO-2, 2 ranks": two.submit(two_ranks, "gpus-zero2.yaml", "sample"),
            "ZeRO-3, 2 ranks": two.submit(two_ranks, "gpus-zero3.yaml", "train"),
            "ZeRO-2, 2 machines": two.submit(two_machines),
            "ZeRO-2, 1 rank": two.submit(one_rank),
            "ZeRO-3 with offload, 1 rank": two.submit(offload_one_rank, start, copy_run, settings),
            "no DeepSpeed, 2 ranks": two.submit(two_ranks, "cpu-2-ranks.yaml", "train"),
        }
        return {name: future.result() for name, future in futures.items()}


def offload_one_rank(start, copy_run, settings: list[str]) -> tuple[Path, str]:
    run = copy_run("train")
    launcher = ["--config_file", "launch/gpus-zero3-offload.yaml", "--num_processes", "1"]
    return run, start("preference/dpo.py", run, settings, launcher=launcher).finish()


WAYS = {
    "ZeRO-2, 1 rank": (1, 2, "none"),
    "ZeRO-2, 2 ranks": (2, 2, "none"),
    "ZeRO-3, 2 ranks": (2, 3, "none"),
    "ZeRO-2, 2 machines": (2, 2, "none"),
    "ZeRO-3 with offload, 1 rank": (1, 3, "cpu"),
    "no DeepSpeed, 2 ranks": (2, 0, "none"),
}


def training(run: Path) -> dict:
    return json.loads((run / "round-1" / "dpo" / "training.json").read_text(encoding="utf-8"))


def losses(run: Path) -> list[float]:
    return [float(entry["loss"]) for entry in training(run)["log"] if "loss" in entry]


@pytest.mark.parametrize("way", WAYS)
def test_ranks_and_zero_stages_give_the_losses_and_the_adapter_of_the_plain_run(way, runs, finished_run, adapter_logits):
    run, output = runs[way]
    count, stage, offload = WAYS[way]
    facts = training(run)
    assert {int(found) for found in re.findall(r"(\d+) rank\(s\)", output)} == {count}
    assert (facts["zero_stage"], facts["offload"]) == (stage, offload)
    plain = losses(finished_run)
    assert len(plain) == 4 and max(plain) - min(plain) > 0.01
    assert losses(run) == pytest.approx(plain, abs=1e-3)
    assert facts["start"]["policy_logps"] == pytest.approx(facts["start"]["sft_logps"], abs=1e-3)

    wanted = adapter_logits(finished_run / "round-1" / "dpo")
    found = adapter_logits(run / "round-1" / "dpo")
    assert (found - wanted).abs().max() < 1e-4
    assert (found - adapter_logits(run / "sft")).abs().max() > 1e-2, "stage two trained nothing"


def test_two_ranks_sample_judge_and_pair_as_one_does(runs, finished_run):
    run, _ = runs["ZeRO-2, 2 ranks"]
    for name in ("candidates", "verdicts", "pairs", "dropped"):
        plain = pq.read_table(finished_run / "round-1" / f"{name}.parquet")
        assert plain.num_rows > 0
        assert pq.read_table(run / "round-1" / f"{name}.parquet").equals(plain), name
    assert not (run / "round-1" / "candidates").exists(), "shards are joined and deleted"


def test_pairs_are_real(finished_run):
    pairs = pq.read_table(finished_run / "round-1" / "pairs.parquet").to_pylist()
    assert len(pairs) >= 16
    for pair in pairs:
        assert (pair["chosen_verdict"], pair["rejected_verdict"]) == ("correct", "wrong")
        assert pair["chosen"] != pair["rejected"]


def test_accelerate_that_starts_one_process_for_two_is_an_error(start, finished_run, dpo_settings):
    output = start("preference/dpo.py", finished_run, dpo_settings, launcher=["--num_processes", "2"]).finish(expected=1)
    assert "asked for several processes and started one" in output
    assert "launch/cpu-2-ranks.yaml" in output
