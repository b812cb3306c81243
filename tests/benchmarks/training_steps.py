"""What the benchmarks of training steps share: trainers taken in turn, their memory, their differences, the table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sft import ranks

ranks.prepare_environment(distributed=False)

import torch
import trl.trainer.utils
from peak_memory import with_peak_bytes
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

# trl as it comes, before anything of ours changes its LM head.
OWN_HEAD = (trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction)
VOCABULARY = 49152


class Way(NamedTuple):
    """One way to train: LM head (see `lm_head`), attention, and whether it takes what is no public option of trl's."""

    head: str
    attention: str
    private: bool = False


WAYS = {"trl eager": Way("plain", "eager"), "trl sdpa": Way("plain", "sdpa"),
        "trl compact head": Way("compact", "eager", private=True), "ours": Way("ours", "auto")}


class Work(NamedTuple):
    """Rows of all steps of a run; rows in a step and in a micro-batch of trl's ways, and of ours."""

    rows: list[dict]
    plain_step: int
    our_step: int
    plain_micro: int
    our_micro: int

    def step(self, way: str) -> int:
        return self.our_step if way == "ours" else self.plain_step

    def micro(self, way: str) -> int:
        return self.our_micro if way == "ours" else self.plain_micro


@contextmanager
def lm_head(kind: str) -> Iterator[None]:
    """trl's LM head for a while: `plain` (as it comes), `compact` (its kernel on completion positions), or `ours`."""
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


def policy(attention: str, precision: str):
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
    """When training began and each step ended: the time between two is a step's, its batch and its bookkeeping included."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.ends = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def seconds_a_step(trainer: Trainer, head: str) -> list[float]:
    """Seconds of each step of a training run but the first, which warms up."""
    clock = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Clock))
    with lm_head(head):
        trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    return seconds[1:]


def loss_and_gradients(trainer: Trainer, rows: list[dict], way: Way) -> tuple[float, dict]:
    """Loss and LoRA gradients of one micro-batch, before any step."""
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    with lm_head(way.head):
        with torch.autocast(trainer.args.device.type, torch.bfloat16, trainer.args.bf16):
            loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in trainer.model.named_parameters()
                         if parameter.requires_grad}


def difference(wanted: tuple[float, dict], found: tuple[float, dict]) -> dict[str, float]:
    """Relative difference of two losses, and of LoRA gradients: all together, and the tensor that is furthest off."""
    (loss, gradients), (other_loss, others) = wanted, found
    assert gradients.keys() == others.keys()
    apart = {name: (others[name] - gradient).norm().item() for name, gradient in gradients.items()}
    size = {name: gradient.norm().item() for name, gradient in gradients.items()}
    whole = sum(value**2 for value in apart.values()) ** 0.5 / sum(value**2 for value in size.values()) ** 0.5
    return {"loss": abs(other_loss - loss) / abs(loss), "gradients": whole,
            "worst_tensor": max(apart[name] / size[name] for name in apart)}


def profile(trainer: Trainer, head: str) -> str:
    """torch's profile of a training run after another: the operations that take most time of their own."""
    from torch.profiler import ProfilerActivity

    on_gpu = torch.cuda.is_available()
    seconds_a_step(trainer, head)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        seconds_a_step(trainer, head)
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=45)


def seconds_and_peak_mib(trainer: Trainer, head: str) -> tuple[list[float], float]:
    """Seconds of each step but the first, and what the run adds to the process at its peak."""
    seconds, peak = with_peak_bytes(lambda: seconds_a_step(trainer, head))
    return seconds, peak / 2**20


def benchmark(description: str, unit: str, shapes: dict, work_of: Callable[..., Work], trainer_of: Callable) -> None:
    """The whole of a benchmark, by its command line.

    work_of(shape, steps, quick) gives the work; trainer_of(way, work, steps, precision) a trainer of it, with a `Clock`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one timed step of trl with public options and of ours, gradients of the first shape only: three minutes")
    parser.add_argument("--shape", action="append", choices=shapes, help="only this shape; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--profile", action="store_true", help="print torch's profile of trl's way and ours instead")
    parser.add_argument("--scaling", action="store_true", help="time ours on ten times the rows instead")
    logging.set_verbosity_error()
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    ways = ["trl eager", "ours"] if arguments.quick else list(WAYS)
    # A run's first step warms up; the others are timed. All ways train a run by turns.
    steps, runs = (2, 1) if arguments.quick else (3, 3)
    results: dict[str, dict] = {}
    for shape in arguments.shape or list(shapes):
        work = work_of(shapes[shape], steps, arguments.quick)
        if arguments.profile:
            for way in ("trl eager", "ours"):
                print(f"\n{shape}, {way}: {steps} steps\n"
                      f"{profile(trainer_of(way, work, steps, 'bf16'), WAYS[way].head)}", flush=True)
        elif arguments.scaling:
            print(f"{shape}: {ten_times(shapes[shape], work_of, trainer_of)}", flush=True)
        else:
            compared = 2 if not arguments.quick else int(not results)
            results[shape] = measured(work, ways, steps, runs, trainer_of, compared)
            report({shape: results[shape]}, unit)
    if results and arguments.json:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        figures = {"device": device, "unit": unit, "results": results}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def ten_times(shape: tuple, work_of: Callable[..., Work], trainer_of: Callable) -> str:
    """Time and peak memory of ours on 3 steps and on 30, a step to warm up before both."""
    found = []
    for count in (3, 30):
        trainer = trainer_of("ours", work_of(shape, count + 1, True), count + 1, "bf16")
        seconds, peak = seconds_and_peak_mib(trainer, "ours")
        found.append((sum(seconds), peak))
    (few, small), (many, large) = found
    return (f"30 steps take {many / few:.2f} times as long as 3 ({many:.1f} s, {few:.1f} s), at a peak of {large:.0f} MiB "
            f"({small:.0f} MiB)")


def measured(work: Work, ways: list[str], steps: int, runs: int, trainer_of: Callable, compared: int) -> dict[str, dict]:
    """Speed, ratio, peak memory and differences of each way on one shape; gradients of up to `compared` rows (0: not)."""
    trainers = {way: trainer_of(way, work, steps, "bf16") for way in ways}
    # As many rows for all, few enough for the fp32 model.
    rows = work.rows[: min(work.plain_micro, compared)]
    found = {way: loss_and_gradients(trainers[way], rows, WAYS[way]) for way in ways if rows}
    seconds, peaks = {way: [] for way in ways}, dict.fromkeys(ways, 0.0)
    for _ in range(runs):
        for way in ways:
            taken, peak = seconds_and_peak_mib(trainers[way], WAYS[way].head)
            seconds[way] += taken
            peaks[way] = max(peaks[way], peak)
    del trainers
    exact = {way: loss_and_gradients(trainer_of(way, work, steps, "fp32"), rows, WAYS[way])
             for way in ("trl eager", "ours") if rows}
    rates = {way: work.step(way) / statistics.median(seconds[way]) for way in ways}
    best = max(rate for way, rate in rates.items() if way != "ours" and not WAYS[way].private)
    results = {}
    for way in ways:
        results[way] = {"rate": rates[way], "ratio": rates[way] / best, "seconds": seconds[way],
                        "peak_mib": peaks[way], "private": WAYS[way].private}
        if rows:
            results[way]["bf16_from_fp32"] = difference(exact["trl eager"], found[way])
    if rows:
        results["ours"]["fp32_from_trl"] = difference(exact["trl eager"], exact["ours"])
    return results


def report(results: dict[str, dict], unit: str) -> None:
    """A table of ratios on stdout."""
    for shape, ways in results.items():
        print(f"\n{shape:<36}{unit + '/s':>9}{'ratio':>7}{'MiB':>8}   difference of loss and gradients (worst tensor)")
        for name, way in ways.items():
            off = way.get("bf16_from_fp32")
            print(f"  {name + (' (private)' if way['private'] else ''):<34}{way['rate']:>9.2f}{way['ratio']:>7.2f}"
                  f"{way['peak_mib']:>8.0f}   "
                  + (f"{off['loss']:.1e} and {off['gradients']:.1e} ({off['worst_tensor']:.1e})" if off else "not compared"))
        if exact := ways["ours"].get("fp32_from_trl"):
            print(f"  in fp32, ours from trl{'':<38}   {exact['loss']:.1e} and {exact['gradients']:.1e} "
                  f"({exact['worst_tensor']:.1e})")
    print("ratio: to the faster of trl's ways with public options; MiB: what training adds at its peak to the "
          "process;\ndifferences: relative, on one micro-batch, of bf16 from trl in fp32", flush=True)
