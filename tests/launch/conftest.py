"""A run folder in which a tiny model has really learned, and the ways to start stages on it as a user does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ACCELERATE = Path(sys.executable).with_name("accelerate")
# Longest time that one start may take: a failure says more than a hang.
LIMIT_S = 240
# --set values of stage two: six shards to sample and judge, and four steps with a checkpoint after each.
DPO_SETTINGS = (
    "train.precision=fp32", "train.zero_stage=0", "train.global_batch_size=8", "train.micro_batch_size=2",
    "train.epochs=0.5", "train.save_steps=1", "train.learning_rate=1e-3", "sample.samples=8", "sample.shard_size=8",
    "sample.max_new_tokens=40", "evaluate.max_new_tokens=40", "judge.workers=1", "guards.every_steps=0",
)

# Table, a text column with its values, a number column: eight questions are asked of each.
TABLES = [
    ("boat", "harbor", ("Faro", "Bari"), "length"),
    ("singer", "country", ("Peru", "Mali"), "age"),
    ("bakery", "city", ("Oslo", "Graz"), "rating"),
    ("planet", "star", ("Vega", "Rigel"), "mass"),
    ("teacher", "subject", ("Latin", "Music"), "salary"),
    ("bridge", "river", ("Po", "Inn"), "width"),
]


def questions() -> list[dict]:
    """Rows in the shape of sql-create-context: eight simple questions on each of six tables."""
    rows = []
    for table, column, (first, second), number in TABLES:
        context = f"CREATE TABLE {table} (name VARCHAR, {column} VARCHAR, {number} INTEGER)"
        asked = {
            f"Name every {table} of {first}": f"SELECT name FROM {table} WHERE {column} = '{first}'",
            f"Name every {table} of {second}": f"SELECT name FROM {table} WHERE {column} = '{second}'",
            f"Count every {table} of {first}": f"SELECT COUNT(*) FROM {table} WHERE {column} = '{first}'",
            f"Give the {number} of each {table}": f"SELECT {number} FROM {table}",
            f"Name each {table} over 5 {number}": f"SELECT name FROM {table} WHERE {number} > 5",
            f"Name each {table} under 7 {number}": f"SELECT name FROM {table} WHERE {number} < 7",
            f"What is the largest {number} of a {table}": f"SELECT MAX({number}) FROM {table}",
            f"List each {column} of a {table} once": f"SELECT DISTINCT {column} FROM {table}",
        }
        rows += [{"question": question, "context": context, "answer": gold} for question, gold in asked.items()]
    return rows


def write_lines(path: Path, rows: list[dict]) -> Path:
    """A JSONL file of the rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.jsonl (48 rows), dev.jsonl and test.jsonl (6 rows each, asked in other words)."""
    folder = tmp_path_factory.mktemp("data_files")
    rows = questions()
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "dev.jsonl", [row | {"question": row["question"] + "?"} for row in rows[::8]])
    write_lines(folder / "test.jsonl", [row | {"question": row["question"] + "!"} for row in rows[3::8]])
    return folder


@pytest.fixture(scope="session")
def learning_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights: as it is, its frozen LM head can hardly prefer one token to another."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("learning_model") / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    factors = {name: 20 if "embed" in name else 6 if weight.dim() == 2 else 1 for name, weight in weights.items()}
    weights = {name: weight * factors[name] for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def sft_settings(learning_model: Path, data_files: Path) -> list[str]:
    """--set values of stage one that make the tiny model half right in 60 steps, with checkpoints at 30 and 60."""
    return [
        f"model={learning_model}", f"data.source={data_files / 'train.jsonl'}", f"data.dev={data_files / 'dev.jsonl'}",
        f"data.test={data_files / 'test.jsonl'}", "train.precision=fp32", "train.epochs=20", "train.learning_rate=1e-2",
        "train.lora_rank=32", "train.lora_alpha=64", "train.global_batch_size=16", "train.micro_batch_size=8",
        "evaluate.max_new_tokens=40", "judge.workers=1",
    ]


class Started:
    """A command that runs, with what it prints; every process below it carries `marker` in its environment."""

    def __init__(self, command: Sequence[str | Path], log: Path, cores: Sequence[int]):
        self.marker = uuid.uuid4().hex
        self.log = log
        self.cores = cores
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LAUNCH_TEST": self.marker}
        with open(log, "wb") as output:
            self.process = subprocess.Popen([str(part) for part in command], cwd=PROJECT, env=environment, stdout=output,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        if cores:
            os.sched_setaffinity(self.process.pid, cores)

    def output(self) -> str:
        """What was printed so far; progress bars on lines of their own."""
        return self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    def finish(self, expected: int = 0) -> str:
        """Wait for the end and give the output; a failure unless the exit status is 0 (or, with expected=1, is not)."""
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"still running after {LIMIT_S} s:\n{self.output()[-5000:]}")
        if bool(status) != bool(expected):
            pytest.fail(f"exit status {status}:\n{self.output()[-5000:]}")
        return self.output()

    def wait_for(self, path: Path) -> None:
        """Wait until a file is there; a failure if the command ends before."""
        deadline = time.monotonic() + LIMIT_S
        while not path.exists():
            ended = self.process.poll() is not None
            if (ended and not path.exists()) or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"{path} never appeared:\n{self.output()[-5000:]}")
            time.sleep(0.002)

    def alive(self) -> list[int]:
        """Ids of the processes that this command started, itself included, and that still run (Linux)."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.marker.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def kill(self) -> None:
        """SIGKILL to everything that this command started."""
        for _ in range(3):
            for number in [self.process.pid, *self.alive()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Start a stage: start("sft/run.py", run_folder, settings, launcher=[accelerate's options], arguments=[ours])."""
    logs = tmp_path_factory.mktemp("logs")
    started: list[Started] = []
    lock = threading.Lock()

    def begin(script: str, run: Path, settings: Sequence[str], *, launcher: Sequence[str] = (),
              arguments: Sequence[str] = (), cores: int = 1) -> Started:
        options = [*(launcher or ["--quiet"]), script, *arguments, "--set", f"run={run}", *settings]
        log = logs / f"{uuid.uuid4().hex}.log"
        with lock:
            started.append(Started([ACCELERATE, "launch", *options], log, least_used(cores)))
            return started[-1]

    def least_used(count: int) -> list[int]:
        """As many cores as there are ranks: the same number of threads, and so the same rounding, in all runs."""
        if not hasattr(os, "sched_setaffinity"):
            return []
        used = [core for command in started if command.process.poll() is None for core in command.cores]
        return sorted(os.sched_getaffinity(0), key=used.count)[:count]

    yield begin
    for command in started:
        if command.process.poll() is None:
            command.kill()


@pytest.fixture(scope="session")
def dpo_settings() -> list[str]:
    """--set values of stage two: plain training on one rank, four steps."""
    return list(DPO_SETTINGS)


@pytest.fixture(scope="session")
def finished_run(start, sft_settings: list[str], dpo_settings: list[str],
                 tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which both stages have ended, on one rank and without DeepSpeed. Read only: copy it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    start("sft/run.py", run, sft_settings).finish()
    start("preference/dpo.py", run, dpo_settings).finish()
    return run


@pytest.fixture(scope="session")
def copy_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """copy_run("sample"): a copy of the run with all that stage two makes from the named step on taken away."""

    def copy(first_missing: str) -> Path:
        run = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(finished_run, run)
        shutil.rmtree(run / "best")
        if first_missing == "sample":
            shutil.rmtree(run / "round-1")
        else:
            assert first_missing == "train"
            shutil.rmtree(run / "round-1" / "dpo")
        return run

    return copy


@pytest.fixture(scope="session")
def adapter_logits(data_files: Path) -> Callable[[Path], object]:
    """adapter_logits(folder): logits of an adapter, read back from its folder, on the first development question."""

    def logits(folder: Path):
        import torch

        from sft.checkpoint import load_for_inference

        model, tokenizer, _ = load_for_inference(folder, precision="fp32")
        text = (data_files / "dev.jsonl").read_text(encoding="utf-8").splitlines()[0]
        with torch.inference_mode():
            return model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits

    return logits
