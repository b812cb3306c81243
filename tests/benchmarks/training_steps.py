"""What the benchmarks of training steps share: two trainers taken in turn, their memory, their differences, the table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import trl.trainer.utils
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

# trl as it comes, before anything of ours changes its LM head.
OWN_HEAD = (trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction)
VOCABULARY = 49152


@contextmanager
def lm_head(kind: str) -> Iterator[None]:
    """trl's LM head for a while: `plain` (as it comes), `compact` (its own kernel on completion positions), or `ours`."""
    from sft.scoring import score_completion_only

    trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction = OWN_HEAD
    if kind == "compact":
        trl.trainer.utils._use_triton = lambda device: True
    if kind == "ours":
        score_completion_only()
    try:
        yield
    finally:
        trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction = OWN_HEAD


def policy(attention: str, precision: str = "bf16"):
    """The embedded model with a LoRA adapter that changes its output, always the same one."""
    from sft.checkpoint import load_base, resolve_model
    from sft.training import lora_model

    place = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(resolve_model("embedded"), precision=precision, attention=attention, place=place)
    model = lora_model(base, rank=16, alpha=32, dropout=0.0, gradient_checkpointing=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return model


class Clock(TrainerCallback):
    """When each step ended: the time between two ends is a step's, its batch and its bookkeeping included."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def seconds_a_step(trainer: Trainer) -> list[float]:
    """Seconds of each step of a training run but the first."""
    [clock] = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Clock)]
    clock.ends.clear()
    trainer.train()
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


def loss_and_gradients(trainer: Trainer, rows: list[dict], bf16: bool) -> tuple[float, dict]:
    """Loss and LoRA gradients of one micro-batch, before any step."""
    trainer.model.zero_grad()
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    with torch.autocast(trainer.args.device.type, torch.bfloat16, bf16):
        loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()
             if parameter.requires_grad and parameter.grad is not None}
    trainer.model.zero_grad()
    return loss.item(), found


def differences(one: tuple[float, dict], other: tuple[float, dict]) -> dict:
    """Relative difference of two losses, and of LoRA gradients: all together, and of the tensor that is furthest off."""
    (loss, gradients), (other_loss, others) = one, other
    assert gradients.keys() == others.keys()
    apart = {name: (others[name] - gradient).norm().item() for name, gradient in gradients.items()}
    size = {name: gradient.norm().item() for name, gradient in gradients.items()}
    whole = sum(value**2 for value in apart.values()) ** 0.5 / sum(value**2 for value in size.values()) ** 0.5
    return {"loss": abs(other_loss - loss) / abs(loss), "gradients": whole,
            "worst_tensor": max(apart[name] / size[name] for name in apart)}


def in_turn(makers: dict[str, tuple[str, Callable[[], Trainer]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the steps of each trainer, a training run of each by turns. `makers`: {name: (LM head, make)}."""
    trainers = {}
    for name, (head, make) in makers.items():
        with lm_head(head):
            trainers[name] = make()
    found = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            with lm_head(makers[name][0]):
                found[name] += seconds_a_step(trainer)
    return found


def profile(trainer: Trainer, head: str) -> str:
    """torch's profile of a training run, the operations that take most time of their own."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with lm_head(head):
        trainer.train()
        with torch.profiler.profile(activities=activities) as found:
            trainer.train()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=45)


def peak_memory_mib(trainer: Trainer, head: str) -> float:
    """What training adds to the memory of a process that holds the model: peak of the resident set, or of the GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with lm_head(head):
            trainer.train()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    # The kernel forgets the peak so far (of loading the model) when 5 is written there.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    with lm_head(head):
        trainer.train()
    return (status("VmHWM") - before) / 1024


def memory_of_each(names: list[str], shape: str, arguments: list[str]) -> dict[str, float]:
    """Peak memory of each way, each in a process of its own: this script again with --memory."""
    found = {}
    for name in names:
        command = [sys.executable, sys.argv[0], *arguments, "--memory", f"{shape}:{name}"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[name] = float(output.splitlines()[-1])
    return found


def arguments_of(description: str) -> argparse.Namespace:
    """The command line of both benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs and steps: under three minutes on two cores")
    parser.add_argument("--shape", action="append", help="only this shape; may be repeated")
    parser.add_argument("--rounds", type=int, help="training runs of each way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--profile", action="store_true", help="print torch's profile of each way instead")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of each way")
    parser.add_argument("--scaling", action="store_true", help="time ten times the questions instead")
    parser.add_argument("--memory", metavar="SHAPE:WAY", help=argparse.SUPPRESS)
    logging.set_verbosity_error()
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    return arguments


def report(results: dict[str, dict], unit: str, file: Path | None) -> None:
    """A table of ratios on stdout, all figures as JSON."""
    print(f"\n{'shape':<34}{'way':<18}{unit + '/s':>10}{'ratio':>8}{'MiB':>8}{'loss':>10}{'gradients':>11}{'worst':>9}")
    for shape, ways in results.items():
        fastest = max(way["rate"] for name, way in ways.items() if name != "ours" and not way.get("private"))
        for name, way in ways.items():
            off = way.get("differences") or {}
            cells = [f"{way['rate']:>10.2f}", f"{way['rate'] / fastest:>8.2f}", f"{way.get('peak_mib', float('nan')):>8.0f}",
                     *(f"{off[key]:>{width}.1e}" if key in off else " " * width
                       for key, width in (("loss", 10), ("gradients", 11), ("worst_tensor", 9)))]
            print(f"{shape:<34}{name:<18}" + "".join(cells))
            way["ratio"] = way["rate"] / fastest
    print("ratio: to the fastest plain way with public options alone; loss, gradients, worst: relative difference from the "
          "first way on one micro-batch, all LoRA gradients together and the tensor that is furthest off")
    if file:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        file.write_text(json.dumps({"device": device, "unit": unit, "results": results}, indent=2) + "\n", encoding="utf-8")


def rate(seconds: list[float], items_a_step: float) -> float:
    """Items a second, by the median step."""
    return items_a_step / statistics.median(seconds)
