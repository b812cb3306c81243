"""What one run of a control arm does, by the stages' own commands: share samples, pair, train, measure, leave its result."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from preference.arm_results import measured, training_facts
from preference.arms import (
    SAMPLED,
    AblationConfig,
    ArmRun,
    check_labels,
    copy_steps,
    has_step,
    identity,
    labels_of,
    measured_identity,
    prepare_folder,
    sampler_of,
    settings_of,
)
from preference.launcher import Launcher
from preference.rounds import adapter_of, best_of, standings
from sft.artefacts import content_hash, mark_path, write_json
from sft.checkpoint import checkpoint_hash
from sft.configuration import DpoConfig, read_configuration

STAGE, COMPARISON = "preference/dpo.py", "preference/compare_models.py"


@dataclass(frozen=True)
class Ablation:
    """A set of arms (`runs`, all of them) on the SFT adapter of one finished run. A `cores` below is a share of the cores."""

    config: AblationConfig
    runs: list[ArmRun]
    sft_config: dict
    launcher: Launcher
    overwrite: bool

    def sampler(self, run: ArmRun) -> ArmRun:
        return sampler_of(run, self.runs)

    def identity(self, run: ArmRun) -> dict:
        return identity(run, self.config)

    def stage(self, run: ArmRun, folder: Path, cores: list[int], *options: str, **settings) -> str:
        """Stage two with the run's settings, in `folder`; gives the command."""
        words = [STAGE, "--config", self.config.config, *options, "--set", *run.overrides(run=str(folder), **settings)]
        self.launcher.call(folder, cores, *words, *["--overwrite"] * self.overwrite)
        return shlex.join(["accelerate", "launch", *words])

    def sample(self, run: ArmRun, cores: list[int]) -> None:
        """The first round's candidates and verdicts, which other runs share."""
        prepare_folder(run.folder, self.config, self.sft_config)
        for step in ("sample", "judge"):
            self.stage(run, run.folder, cores, "--only", step, rounds=1)

    def share_samples(self, run: ArmRun, folder: Path) -> None:
        """Make a run folder, with a copy of the samples and verdicts that belong to the run, and no pairs of other labels."""
        prepare_folder(folder, self.config, self.sft_config, labels_of(run, self.config))
        source = self.sampler(run).folder
        if source != folder:
            copy_steps(source / "round-1", folder / "round-1", SAMPLED, self.overwrite)
        check_labels(folder, run.config.rounds, self.overwrite)

    def run_arm(self, run: ArmRun, cores: list[int]) -> None:
        """Train one arm with one seed, measure it and write its result.

        `published` is what the stage publishes after these rounds, with the guards as they are set (RUN/best can be of a later
        round, of an earlier setting of `rounds`). `last` is the adapter of the last step. Where
        the guards gave back an earlier step, the stage leaves it in dpo/last; where they stopped training, or a later round
        started from what they gave back, the same training is done once more without them, in RUN/last. The figures of training
        are those of `last`; `kept_steps`, `stopped` and `kept_chosen_logp` those of the training with guards.
        """
        folder, rounds = run.folder, run.config.rounds
        self.share_samples(run, folder)
        command = self.stage(run, folder, cores)
        kept = there = training_facts(folder, rounds)
        last, trained_s = adapter_of(folder, kept["rounds"]), kept["train_s"]
        if guards_intervened(kept):
            if rounds == 1 and kept["stopped"] == [None]:
                last = last / "last"
            else:
                self.share_samples(run, folder / "last")
                self.stage(run, folder / "last", cores, **{"guards.stop": False, "guards.keep": "last"})
                there = training_facts(folder / "last", rounds)
                last, trained_s = adapter_of(folder / "last", there["rounds"]), trained_s + there["train_s"]
        started, published = time.monotonic(), best_of(standings(folder, kept["rounds"])).adapter
        report, names = self.measure(folder, cores, {"last": last, "published": published})
        write_json(run.result, {
            "arm": run.arm, "seed": run.seed, "settings": run.settings, "command": command, "commit": commit_of(folder),
            "data": self.config.measure.data, "n": report["n"], "questions": report["questions"],
            "models": {state: measured(report, name) for state, name in names.items()}, "published_is": names["published"],
            **{key: there[key] for key in ("rounds", "pairs", "steps", "start", "guards", "chosen_logp")},
            "kept_steps": kept["kept_steps"], "stopped": kept["stopped"], "kept_chosen_logp": kept["chosen_logp"],
            "cost": {**sampling_cost(self.sampler(run).folder), "samples_of": self.sampler(run).name, "train_s": trained_s,
                     "measure_s": round(time.monotonic() - started, 1), "peak_memory_bytes": there["peak_memory_bytes"]},
            "identity": self.identity(run),
        })

    # ------------------------------------------------------------------ measuring
    def measure(self, folder: Path, cores: list[int], adapters: dict[str, Path]) -> tuple[dict, dict[str, str]]:
        """(report.json of SFT and these adapters of a run folder, {adapter's name: name in the report}).

        Equal weights are asked once, under the first name. The answers of SFT are those that `measure_sft` kept.
        """
        weights, models, names = {checkpoint_hash(folder / "sft"): "sft"}, {"sft": folder / "sft"}, {}
        for name, path in adapters.items():
            names[name] = weights.setdefault(checkpoint_hash(path), name)
            models.setdefault(names[name], path)
        output, shared = self.measured_folder(folder), self.measured_folder(self.sft_folder)
        if output != shared:
            copy_steps(shared / "answers", output / "answers", ["sft.parquet"], self.overwrite)
            if (shared / "data-questions").exists() and not (output / "data-questions").exists():
                os.symlink((shared / "data-questions").resolve(), output / "data-questions")
        base, asked = self.base, self.config.measure
        words = [COMPARISON, "--output", str(output), "--run", str(folder), "--data", asked.data,
                 "--max-new-tokens", str(base.evaluate.max_new_tokens), "--batch-size", str(base.evaluate.batch_size),
                 "--precision", base.train.precision, "--databases", base.judge.databases, "--workers", str(base.judge.workers)]
        words += ["--trust-remote-code"] * self.sft_config["trust_remote_code"]
        words += ["--limit", str(asked.limit)] if asked.limit else []
        words += ["--columns", *(f"{ours}={theirs}" for ours, theirs in asked.columns.items())] if asked.columns else []
        self.launcher.call(folder, cores, *words, *["--overwrite"] * self.overwrite, "--models",
                           *(f"{name}={path}" for name, path in models.items()))
        return json.loads((output / "report.json").read_text(encoding="utf-8")), names

    def sft_answered(self) -> bool:
        """Whether the answers of SFT are there, which all arms are compared with."""
        return has_step(self.measured_folder(self.sft_folder) / "answers" / "sft.parquet")

    def answer_sft(self, cores: list[int]) -> dict:
        """The report of the adapter that all arms start from; its answers are kept for them."""
        prepare_folder(self.sft_folder, self.config, self.sft_config)
        return self.measure(self.sft_folder, cores, {})[0]

    def measure_sft(self, cores: list[int]) -> None:
        """The result of the adapter that all arms start from."""
        started = time.monotonic()
        report = self.answer_sft(cores)
        write_json(self.sft_result, {
            "arm": "sft", "seed": None, "data": self.config.measure.data, "n": report["n"], "questions": report["questions"],
            "models": {"sft": measured(report, "sft")}, "cost": {"measure_s": round(time.monotonic() - started, 1)},
            "identity": self.sft_identity,
        })

    @cached_property
    def base(self) -> DpoConfig:
        """Stage two before any arm changes it: it says how every arm is measured."""
        return read_configuration(DpoConfig, Path(self.config.config), settings_of(self.config.settings))

    @property
    def sft_folder(self) -> Path:
        return Path(self.config.runs) / "sft"

    @property
    def sft_result(self) -> Path:
        return Path(self.config.results) / "sft.json"

    @cached_property
    def sft_identity(self) -> dict:
        return measured_identity(self.config, self.base)

    def measured_folder(self, folder: Path) -> Path:
        """Where a run's answers stand: those to other questions, or measured otherwise, stand beside them."""
        return folder / "measured" / f"{Path(self.config.results).name}-{content_hash(self.sft_identity)[:8]}"


def guards_intervened(facts: dict) -> bool:
    """Whether in some round of `training_facts` the guards stopped training, or kept an adapter that is not the last step's."""
    rounds = zip(facts["stopped"], facts["kept_steps"], facts["round_steps"], strict=True)
    return any(stopped is not None or kept not in (None, steps) for stopped, kept, steps in rounds)


def sampling_cost(folder: Path) -> dict[str, float | None]:
    """Seconds that the first round's samples and verdicts took, from their marks; None where those do not tell."""
    marks = {name: json.loads(mark_path(folder / "round-1" / f"{name}.parquet").read_text(encoding="utf-8"))
             for name in ("candidates", "verdicts")}
    return {"sample_s": marks["candidates"]["rows"].get("seconds"), "judge_s": marks["verdicts"]["rows"].get("seconds")}


def commit_of(folder: Path) -> str | None:
    """The git commit that a run folder's stage was last run on."""
    return json.loads((folder / "versions.json").read_text(encoding="utf-8"))["git_commit"]
