"""Control arms as a plan: which configurations, whose samples, which folders; read from one YAML file and checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from ruamel.yaml import YAML

from preference.preparation import check_training
from preference.rounds import round_folder
from preference.training_inputs import what_counts, words_hash
from sft.artefacts import atomic_path, content_hash, discard, file_hash, is_complete, mark_complete, mark_path
from sft.checkpoint import checkpoint_hash
from sft.command_line import sister, stage_command
from sft.configuration import DpoConfig, Folder, Limit, Section, read_configuration
from sft.records import read_stage_configuration, recorded_configurations
from sft.sources import identify, local_path
from sft.splits import PREFERENCE, SPLITS

SAMPLED = ("candidates.parquet", "verdicts.parquet")
LABELS = "labels.sqlite"


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """A section's keys with the names that --set gives them; a map that is one key's value, train.trl, stays whole.

    Example: {train.steps: 60, train: {beta: 0.3, steps: 100}} -> {train.steps: 100, train.beta: 0.3}. Of a name that stands in
    both forms the nested one counts: it is what --set settings.train.steps=100 lays over the file.
    """
    found = {}
    for key, value in sorted(values.items(), key=lambda item: "." not in str(item[0])):  # nested names after dotted ones
        nested = isinstance(value, dict) and str(key).rpartition(".")[2] != "trl"
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


Settings = Annotated[dict[str, Any], BeforeValidator(lambda values: flat(values) if isinstance(values, dict) else values)]


class Measure(Section):
    data: str
    columns: dict[str, str]
    limit: Limit


class Arm(Section):
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    settings: Settings


class AblationConfig(Section):
    """Keys of a set of control arms (configs/ablation.yaml)."""

    config: str
    run: Folder
    runs: Folder
    results: Folder
    settings: Settings
    measure: Measure
    arms: Annotated[dict[str, Arm], Field(min_length=1)]


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed. `settings` are the keys of stage two that it replaces; `config` is what comes of them."""

    arm: str
    seed: int
    settings: dict[str, Any]
    config: DpoConfig
    folder: Path  # its run folder
    result: Path  # its result file

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"

    @property
    def samples(self) -> str:
        """What its round-1 candidates and verdicts depend on: arms in which this is equal share them."""
        config = self.config
        return content_hash([config.seed, config.sample.model_dump(exclude={"batch_size"}), config.judge.databases,
                             config.train.precision])

    def overrides(self, **more: Any) -> list[str]:
        """--set values for stage two."""
        return settings_of(self.settings | {"run": str(self.folder), "seed": self.seed} | more)


def settings_of(replaced: dict[str, Any]) -> list[str]:
    """Keys and values as --set takes them; words and paths without quotation marks."""
    def written(value: Any) -> str:
        plain = isinstance(value, str) and re.fullmatch(r"[a-z][a-z_-]*|[\w./-]*/[\w./-]*", value)
        return value if plain and value not in ("true", "false", "null") else json.dumps(value, ensure_ascii=False)

    return [f"{key}={written(value)}" for key, value in replaced.items()]


def planned(config: AblationConfig) -> list[ArmRun]:
    """All arms and seeds, every configuration checked before anything runs; the arm `default` comes first.

    Raises ValueError for an arm's unusable name or settings, and repeated seeds.
    """
    runs = []
    for name, arm in sorted(config.arms.items(), key=lambda item: item[0] != "default"):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or re.search(r"-seed\d+$", name) or name == "sft":
            raise ValueError(f"arms.{name}: not a name for files. Allowed are small letters, digits, - and ., not sft, which is "
                             "the model that all arms start from. Rename the arm.")
        if len(set(arm.seeds)) < len(arm.seeds):
            raise ValueError(f"arms.{name}.seeds: {arm.seeds} names a seed twice. Each seed is run once. Take one out.")
        if taken := {"run", "seed"} & (config.settings.keys() | arm.settings.keys()):
            raise ValueError(f"arms.{name}: settings must not hold {' or '.join(sorted(taken))}, which each arm has of its own. "
                             "Take it out; seeds stand under `seeds`.")
        for seed in arm.seeds:
            folder = Path(config.runs) / f"{name}-seed{seed}"
            settings = config.settings | arm.settings
            unchecked = ArmRun(name, seed, settings, None, folder, Path(config.results) / f"{name}-seed{seed}.json")
            try:
                checked = read_configuration(DpoConfig, Path(config.config), unchecked.overrides())
            except ValueError as error:
                raise ValueError(f"arm {name}: {error}") from None
            runs.append(replace(unchecked, config=checked))
    return runs


def chosen(runs: list[ArmRun], names: list[str] | None) -> list[ArmRun]:
    """The runs of the named arms, all of them where none is named.

    Raises ValueError for a name that is no arm, and for two of these arms that are the same.
    """
    known = list(dict.fromkeys(run.arm for run in runs))
    if unknown := sorted(set(names or []) - set(known)):
        raise ValueError(f"--arms {' '.join(unknown)}: no such arm. Arms: {', '.join(known)}. Name some of those, or add yours "
                         "to the configuration.")
    found = [run for run in runs if not names or run.arm in names]
    for number, run in enumerate(found):
        for other in found[:number]:
            if stage_two(other.config) == stage_two(run.config):
                raise ValueError(f"arms {run.arm} and {other.arm} are the same (seed {run.seed}). Each arm must differ from all "
                                 "others in a key that counts, or the table shows a difference of 0 as if it were measured. Change "
                                 "a key, take one out, or name with --arms those to run.")
    return found


def labels_of(run: ArmRun, config: AblationConfig) -> Path:
    """People's labels for a run: its own file, or the shared run's."""
    own = run.folder / LABELS
    return own if own.exists() else Path(config.run) / LABELS


def check_trainings(runs: list[ArmRun], config: AblationConfig, sft_config: dict) -> None:
    """Check of each run what its training will check, before any of them samples; the batch for one rank.

    Raises ValueError that names the arm.
    """
    for run in runs:
        try:
            check_training(run.config, sft_config, labels_of(run, config))
        except ValueError as error:
            raise ValueError(f"arm {run.arm}: {error}") from None


def sampler_of(run: ArmRun, runs: list[ArmRun]) -> ArmRun:
    """The run that samples for this one: the first with equal samples, perhaps itself."""
    return next(other for other in runs if other.samples == run.samples)


def stage_one(config: AblationConfig) -> dict:
    """The shared run's configuration of stage one; ValueError where that run, or its adapter, is not finished."""
    run = Path(config.run)
    command = stage_command("sft", sister(Path(config.config), "dpo", "sft"), [f"run={run}"])
    if not (run / "sft" / "complete.json").exists():
        raise ValueError(f"run: {run} holds no finished SFT adapter (no {run / 'sft' / 'complete.json'}). All arms start from "
                         f"one. Make it first, with the configuration that belongs to {config.config}:\n  {command}")
    return read_stage_configuration(run, "sft", command)


def stage_two(config: DpoConfig) -> dict:
    """The keys of stage two that change its result."""
    stage = config.model_dump(exclude={"run": True, "train": True, "sample": {"batch_size"}, "judge": {"workers"}})
    return stage | {"train": what_counts(config.train)}


def identity(run: ArmRun, config: AblationConfig) -> dict:
    """What a result depends on; a result file that holds the same is not made again. JSON values only."""
    return json.loads(json.dumps({"stage_two": stage_two(run.config), "labels": words_hash(labels_of(run, config))}
                                 | measured_identity(config, run.config)))


def measured_identity(config: AblationConfig, stage: DpoConfig) -> dict:
    """What the figures of the SFT adapter depend on."""
    return {"sft": checkpoint_hash(Path(config.run) / "sft"), "data_hash": questions_hash(config),
            "measure": config.measure.model_dump(), "evaluate": stage.evaluate.model_dump(), "databases": stage.judge.databases,
            "precision": stage.train.precision}


def questions_hash(config: AblationConfig) -> str | None:
    """What identifies the questions to measure on: bytes of a file, names and bytes of a folder's; None for a hub data set."""
    data = config.measure.data
    if data in (*SPLITS, PREFERENCE):
        path = Path(config.run) / "data" / f"{data}.parquet"
        return file_hash(path)[:16] if path.is_file() else None
    path = local_path(data, "measure.data")
    if path is None:
        return None
    return content_hash({split: identify(path, split) for split in SPLITS})[:16] if path.is_dir() else file_hash(path)[:16]


def is_finished(result: Path, wanted: dict, overwrite: bool) -> bool:
    """Whether a result file is there for exactly this identity; ValueError where it is of another, unless `overwrite`."""
    if not result.exists():
        return False
    try:
        found = dict(json.loads(result.read_text(encoding="utf-8"))["identity"])
    except (ValueError, KeyError, TypeError):
        found = {}
    if found == wanted or overwrite:
        return found == wanted
    differing = [f"{section}: {found.get(section)!r} there, {value!r} now" for section, value in wanted.items()
                 if found.get(section) != value and section != "stage_two"]
    there = flat(found.get("stage_two") or {})
    differing += [f"{key}: {there.get(key)!r} there, {value!r} now" for key, value in flat(wanted.get("stage_two") or {}).items()
                  if there.get(key) != value]
    raise ValueError(f"{result} was measured with other settings ({'; '.join(differing)[:1500] or 'not a result of an arm'}). "
                     "Finished results are not overwritten. Go back to those settings, choose other folders (--set "
                     "results=FOLDER runs=FOLDER), or add --overwrite to run this arm anew.")


def prepare_folder(folder: Path, config: AblationConfig, sft_config: dict, labels: Path | None = None) -> None:
    """A run folder whose `sft` and `data` are those of the shared run: links, and people's labels with them (`labels`, or the
    shared run's); config.yaml says how stage one is configured there now.

    `data` is a folder with a link for each file: a file that stage two writes anew there (data/quarantine.jsonl, where people
    call gold wrong) takes the place of its link, and the shared run stays as it is.
    """
    shared, data = Path(config.run), folder / "data"
    if data.is_symlink():  # a link to the whole folder would lead what is written to the shared run
        data.unlink()
    data.mkdir(parents=True, exist_ok=True)
    for name in ("sft", LABELS, *(f"data/{path.name}" for path in (shared / "data").iterdir())):
        link, target = folder / name, (labels if name == LABELS and labels else shared / name).resolve()
        if name == LABELS and link.is_symlink() and link.resolve() != target:
            link.unlink()
        if link.is_symlink() and link.resolve() != target:
            raise ValueError(f"{link} leads to {link.resolve()}, and the shared run is {config.run}. Arms of one folder share "
                             "one SFT adapter. Choose another folder for these runs (--set runs=FOLDER).")
        if target.exists() and not link.exists():
            os.symlink(target, link)
    stages = recorded_configurations(folder)
    if stages.get("sft") != sft_config:
        with atomic_path(folder / "config.yaml") as temporary, open(temporary, "w", encoding="utf-8") as file:
            YAML().dump(stages | {"sft": sft_config}, file)


def copy_steps(source: Path, target: Path, names: Sequence[str], overwrite: bool) -> None:
    """Copy finished steps' files and then their marks from folder to folder, each as a whole; none whose same mark is there.

    Raises ValueError, before anything is copied, where the target holds work of other inputs, unless `overwrite`.
    """
    marks = {name: json.loads(mark_path(source / name).read_text(encoding="utf-8")) for name in names}
    for name, mark in marks.items():
        is_complete(target / name, mark["inputs"], overwrite)
    for name, mark in marks.items():
        place = mark_path(target / name)
        if has_step(target / name) and json.loads(place.read_text(encoding="utf-8")) == mark:
            continue
        place.unlink(missing_ok=True)
        with atomic_path(target / name) as temporary:
            temporary.write_bytes((source / name).read_bytes())
        mark_complete(target / name, mark["inputs"], mark["rows"])


def has_step(file: Path) -> bool:
    """Whether a step's file is there, and complete."""
    return file.exists() and mark_path(file).exists()


def sampled(folder: Path) -> bool:
    """Whether the first round's candidates and verdicts are finished."""
    return all(has_step(folder / "round-1" / name) for name in SAMPLED)


def check_labels(folder: Path, rounds: int, overwrite: bool) -> None:
    """Have the pairs of an arm built anew where people's labels have changed since. The stage itself does not ask for that: there
    people label the pairs that stand there, and apply their labels to them.

    Raises ValueError for such pairs unless `overwrite`.
    """
    words = words_hash(folder / LABELS)
    for number in range(1, rounds + 1):
        pairs = round_folder(folder, number) / "pairs.parquet"
        if not has_step(pairs):
            continue
        there = json.loads(mark_path(pairs).read_text(encoding="utf-8"))["rows"]["labels"]
        if there != words and not overwrite:
            raise ValueError(f"{pairs} was built with other labels of people (hash {there}; None: none) than "
                             f"{folder / LABELS} holds now ({words}). Finished work is not overwritten: choose other folders "
                             "(--set runs=FOLDER results=FOLDER), or add --overwrite to build the pairs anew and train on them.")
        if there != words:
            discard(pairs)
