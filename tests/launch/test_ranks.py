"""However many ranks and machines, and under every ZeRO stage: the same candidates, losses and adapters."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(start, copy_run, dpo_settings) -> dict[str, tuple[Path, str]]:
    """Stage two again in copies of the run, two launches at a time: {name: (run folder, output)}."""
    settings = [*dpo_settings, "train.save_steps=100"]

    def launch(configuration: str, ranks: int, first: str = "train", zero_stage: int = 0, rounds: int = 1) -> tuple[Path, str]:
        run = copy_run(first)
        launcher = ["--config_file", f"launch/{configuration}", "--num_processes", str(ranks)]
        return run, start("preference/dpo.py", run, [*settings, f"train.zero_stage={zero_stage}", f"rounds={rounds}"],
                          launcher=launcher, cores=ranks).finish()

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
            "ZeRO-2, 2 ranks": two.submit(launch, "gpus-zero2.yaml", 2, "sample"),
            "ZeRO-3, 2 ranks": two.submit(launch, "gpus-zero3.yaml", 2, rounds=2),
            "ZeRO-2, 2 machines": two.submit(two_machines),
            "ZeRO-2, 1 rank": two.submit(launch, "cpu.yaml", 1, zero_stage=2),
            "ZeRO-3 with offload, 1 rank": two.submit(launch, "gpus-zero3-offload.yaml", 1),
            "no DeepSpeed, 2 ranks": two.submit(launch, "cpu-2-ranks.yaml", 2),
        }
        return {name: future.result() for name, future in futures.items()}


# Of each way: ranks, ZeRO stage and offload that the run must report. Only "1 rank" takes its stage from --set; where the
# launch configuration names one, that goes before the 0 of the settings.
WAYS = {
    "ZeRO-2, 1 rank": (1, 2, "none"),
    "ZeRO-2, 2 ranks": (2, 2, "none"),
    "ZeRO-3, 2 ranks": (2, 3, "none"),
    "ZeRO-2, 2 machines": (2, 2, "none"),
    "ZeRO-3 with offload, 1 rank": (1, 3, "cpu"),
    "no DeepSpeed, 2 ranks": (2, 0, "none"),
}


def training(run: Path, stage: str = "round-1/dpo") -> dict:
    return json.loads((run / stage / "training.json").read_text(encoding="utf-8"))


def losses(run: Path, stage: str = "round-1/dpo") -> list[float]:
    return [float(entry["loss"]) for entry in training(run, stage)["log"] if "loss" in entry]


@pytest.mark.launch
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


@pytest.mark.launch
def test_a_second_round_begins_with_the_first_under_zero_3(runs, adapter_logits):
    from sft.checkpoint import checkpoint_hash

    run, output = runs["ZeRO-3, 2 ranks"]
    facts, first = training(run, "round-2/dpo"), run / "round-1" / "dpo"
    assert (facts["zero_stage"], facts["round"]) == (3, 2) and "round 2 done in" in output
    assert json.loads((run / "round-2" / "dpo" / "provenance.json").read_text())["start_checkpoint"] == checkpoint_hash(first)
    assert facts["start"]["policy_logps"] == pytest.approx(facts["start"]["sft_logps"], abs=1e-3)
    assert (adapter_logits(run / "round-2" / "dpo") - adapter_logits(first)).abs().max() > 1e-2, "the second round trained nothing"


@pytest.mark.launch
def test_stage_one_on_two_ranks_gives_losses_and_adapter_of_one(start, sft_settings, finished_run, adapter_logits, tmp_path):
    run = tmp_path / "run"
    output = start("sft/run.py", run, sft_settings, launcher=["--config_file", "launch/cpu-2-ranks.yaml"], cores=2).finish()
    assert {int(found) for found in re.findall(r"(\d+) rank\(s\)", output)} == {2}
    plain = losses(finished_run, "sft")
    assert len(plain) > 20 and plain[0] - plain[-1] > 1
    assert losses(run, "sft") == pytest.approx(plain, abs=1e-3)
    assert training(run, "sft")["best_step"] == training(finished_run, "sft")["best_step"]
    assert (adapter_logits(run / "sft") - adapter_logits(finished_run / "sft")).abs().max() < 1e-3


@pytest.mark.launch
def test_ranks_stay_together_after_an_evaluation_in_bf16(start, sft_settings, tmp_path):
    """Training ends with an error where they do not (`check_ranks_agree`), at the second evaluation."""
    run = tmp_path / "run"
    settings = [*sft_settings, "train.precision=bf16", "train.epochs=1", "train.evaluations=2"]
    start("sft/run.py", run, settings, launcher=["--config_file", "launch/cpu-2-ranks.yaml"], cores=2).finish()
    assert len(training(run, "sft")["evaluations"]) == 2


@pytest.mark.launch
def test_two_ranks_sample_judge_and_pair_as_one_does(runs, finished_run):
    run, _ = runs["ZeRO-2, 2 ranks"]
    for name in ("candidates", "verdicts", "pairs", "dropped"):
        plain = pq.read_table(finished_run / "round-1" / f"{name}.parquet")
        assert plain.num_rows > 0
        assert pq.read_table(run / "round-1" / f"{name}.parquet").equals(plain), name
    assert not (run / "round-1" / "candidates").exists(), "shards are joined and deleted"


@pytest.mark.launch
def test_pairs_are_real(finished_run):
    pairs = pq.read_table(finished_run / "round-1" / "pairs.parquet").to_pylist()
    assert len(pairs) >= 16
    for pair in pairs:
        assert (pair["chosen_verdict"], pair["rejected_verdict"]) == ("correct", "wrong")
        assert pair["chosen"] != pair["rejected"]


@pytest.mark.launch
def test_accelerate_that_starts_one_process_for_two_is_an_error(start, finished_run, dpo_settings):
    output = start("preference/dpo.py", finished_run, dpo_settings, launcher=["--num_processes", "2"]).finish(expected=1)
    assert "asked for several processes and started one" in output
    assert "launch/cpu-2-ranks.yaml" in output


@pytest.mark.parametrize("file", sorted((PROJECT / "launch").glob("*.yaml")), ids=lambda file: file.name)
def test_every_launch_configuration_is_accelerates_and_says_how_it_is_started(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_machines == (2 if file.name == "machines-2.yaml" else 1)
    assert config.use_cpu is False, "accelerate would go round DeepSpeed"
    comment = "".join(line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#"))
    assert f"accelerate launch --config_file launch/{file.name} " in comment
    assert "sft/run.py" in comment and "preference/dpo.py" in comment


def test_the_slurm_script_starts_both_stages_on_every_machine(tmp_path):
    tools = tmp_path / "tools"
    programs = {
        "scontrol": 'printf "node7\\nnode9\\n"',
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'echo "$@"',
    }
    tools.mkdir()
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[7,9]",
        "SLURM_JOB_ID": "41", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4",
    }
    script = ["bash", str(PROJECT / "launch" / "slurm.sh"), "runs/a b", "s.yaml", "d.yaml", "seed=3"]
    lines = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [
        f"launch --config_file launch/machines-2.yaml --num_machines 2 --num_processes 8 --machine_rank {rank} "
        f"--main_process_ip node7 --main_process_port 20041 --zero_stage 2 {stage} --set run=runs/a b seed=3"
        for stage in ("sft/run.py --config s.yaml", "preference/dpo.py --config d.yaml") for rank in (0, 1)
    ]
