"""Checked configuration: one YAML file a stage, every key known, typed and in range, all mistakes listed at once."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Folder = Annotated[str, AfterValidator(os.path.expanduser)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generator takes
Limit = Annotated[int, Field(ge=1)] | None


class Section(BaseModel):
    """A group of keys. Strict: no conversion of types except int to float, no infinity, no unknown and no missing key."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Data(Section):
    source: str
    dev: str | None
    test: str | None
    columns: dict[Literal["question", "context", "gold", "database", "evidence"], str]
    train_limit: Limit
    dev_limit: Limit
    test_limit: Limit
    preference_share: Annotated[float, Field(ge=0, lt=1)]
    distractors: Share


class Prompt(Section):
    schema_style: Literal["ddl", "compact"]
    max_prompt_tokens: Annotated[int, Field(ge=16)]


class SftTrain(Section):
    epochs: Annotated[float, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup_share: Share
    global_batch_size: Count
    micro_batch_size: Count
    share_prompts: bool
    questions_per_pack: Count
    lora_rank: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["auto", "bf16", "fp32"]
    load_in_4bit: bool
    gradient_checkpointing: bool
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"]
    evaluations: Annotated[int, Field(ge=1)]
    trl: dict[str, Any]


class Evaluate(Section):
    max_new_tokens: Count
    batch_size: Count


class Judging(Section):
    databases: Literal["given", "generated", "both"]
    workers: Annotated[int, Field(ge=0)]


class SftConfig(Section):
    """Keys of stage one (configs/sft.yaml)."""

    run: Folder
    model: str
    trust_remote_code: bool
    seed: Seed
    data: Data
    prompt: Prompt
    train: SftTrain
    evaluate: Evaluate
    judge: Judging


class Sample(Section):
    sampler: Literal["builtin", "vllm"]
    questions: Limit
    samples: Annotated[int, Field(ge=2)]
    most_samples: Limit
    temperature: Annotated[float, Field(gt=0, le=5)]
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count
    batch_size: Count
    shard_size: Count

    @model_validator(mode="after")
    def _agree(self) -> Sample:
        if self.most_samples is not None and self.most_samples < self.samples:
            raise ValueError(f"most_samples {self.most_samples} is less than samples {self.samples}, which every question "
                             "gets; set at least as many, or null for never more than samples")
        return self


class Pairs(Section):
    strategy: Literal["nearest", "farthest", "random", "hardest"]
    per_question: Count
    chosen: Literal["sample", "gold", "sample-or-gold"]
    graded: bool
    balance_lengths: bool
    balance_structure: bool
    weights: Literal["none", "kill_score"]
    min_kill_score: Share
    control: Literal["none", "flipped", "shuffled-rejected", "random-sides"]


# Of trl 1.16.
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def _noise(value: Any) -> Any:
    """The check of train.label_noise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or value == "from-labels" or (number and 0 <= value < 0.5):
        return value
    raise ValueError(f"found {value!r}; allowed are a number from 0 to below 0.5, from-labels and null")


class DpoTrain(Section):
    epochs: Annotated[float, Field(gt=0)]
    steps: Limit
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup_share: Share
    beta: Annotated[float, Field(gt=0)]
    loss_type: list[Literal["sigmoid", "sft", "ipo", "robust", "sigmoid_norm", "apo_zero", "apo_down", "hinge"]]
    loss_weights: list[Annotated[float, Field(ge=0)]]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    label_noise: Annotated[Any, AfterValidator(_noise)]
    margin_scale: Annotated[float, Field(ge=0)]
    reference_weight: Share
    shared_token_weight: Share
    global_batch_size: Count
    micro_batch_size: Count
    share_prompts: bool
    precision: Literal["auto", "bf16", "fp32"]
    load_in_4bit: bool
    gradient_checkpointing: bool
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"]
    zero_stage: Literal[0, 1, 2, 3]
    offload: Literal["none", "cpu"]
    max_length: Annotated[int, Field(ge=16)]
    save_steps: Count
    trl: dict[str, Any]

    @model_validator(mode="after")
    def _agree(self) -> DpoTrain:
        if not self.loss_type or len(self.loss_type) != len(self.loss_weights):
            raise ValueError(f"loss_weights {self.loss_weights} must have one number for each of loss_type {self.loss_type}")
        if len(set(self.loss_type)) < len(self.loss_type):
            raise ValueError(f"loss_type {self.loss_type} names a loss twice; allowed is each once, with its weight in loss_weights")
        if not any(self.loss_weights):
            raise ValueError(f"loss_weights {self.loss_weights} are all 0, so nothing would be trained; set one above 0 at least")
        losses = {name for name, weight in zip(self.loss_type, self.loss_weights, strict=True) if weight}
        robust = "robust" in losses
        if self.label_noise is not None and (self.label_smoothing or not robust):
            raise ValueError(f"label_noise {self.label_noise} stands in for label_smoothing, which only the loss robust uses; "
                             f"with it set label_smoothing 0.0 (now {self.label_smoothing}) and loss_type [robust] (now "
                             f"{self.loss_type})")
        if self.label_smoothing and not robust:
            raise ValueError(f"label_smoothing {self.label_smoothing} is used by the loss robust only and changes nothing with "
                             f"loss_type {self.loss_type}; set it to 0.0, or loss_type [robust]")
        divergence = self.trl.get("f_divergence_type", "reverse_kl")
        if divergence not in DIVERGENCES:
            raise ValueError(f"trl.f_divergence_type is {divergence!r}; allowed are {', '.join(DIVERGENCES)}")
        if "f_alpha_divergence_coef" in self.trl and divergence != "alpha_divergence":
            raise ValueError(f"trl.f_alpha_divergence_coef is for f_divergence_type alpha_divergence and changes nothing with {divergence}; "
                             "take it out, or set trl.f_divergence_type")
        if divergence != "reverse_kl" and any(name.startswith("apo") for name in self.loss_type):
            raise ValueError(f"trl.f_divergence_type {divergence} does not go with loss_type {self.loss_type}; set reverse_kl, or a "
                             "loss other than apo_zero and apo_down")
        if losses <= {"sft"} or losses - {"sigmoid", "hinge", "sft"} or divergence != "reverse_kl":
            for key, plain in (("margin_scale", 0.0), ("reference_weight", 1.0)):
                if (value := getattr(self, key)) != plain:
                    raise ValueError(f"{key} {value} is for the losses sigmoid and hinge (sft may stand beside them) under "
                                     f"reverse_kl; found loss_type {self.loss_type}, f_divergence_type {divergence}; set {key} "
                                     f"{plain}, or loss_type [sigmoid] or [sigmoid, sft]")
        if self.shared_token_weight != 1 and losses <= {"sft"}:
            raise ValueError(f"shared_token_weight {self.shared_token_weight} changes nothing for sft alone; set it to 1.0")
        if "hinge" in self.loss_type and self.trl.get("use_weighting"):
            raise ValueError("trl.use_weighting weighs pairs, which the loss hinge does not allow; take it out, or change loss_type")
        alpha = self.trl.get("ld_alpha")
        if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
            raise ValueError(f"trl.ld_alpha is {alpha}; allowed are numbers from 0 (tokens beyond the shorter side's length count "
                             "nothing) to 1 (plain DPO)")
        if self.trl.get("sync_ref_model"):
            raise ValueError("trl.sync_ref_model needs a reference of its own, and here it is the frozen SFT adapter; take it out. "
                             "For a reference that moves set rounds above 1")
        if self.load_in_4bit and self.zero_stage == 3:
            raise ValueError("load_in_4bit cannot be partitioned by zero_stage 3; use zero_stage 2")
        if self.offload != "none" and not self.zero_stage:
            raise ValueError(f"offload {self.offload} is DeepSpeed's, which zero_stage 0 does without; set offload none, or zero_stage "
                             "1, 2 or 3")
        return self


class GuardSettings(Section):
    every_steps: Annotated[int, Field(ge=0)] | None
    questions: Count
    pairs: Count
    stop: bool
    keep: Literal["best", "last"]
    max_accuracy_drop: Share
    max_valid_drop: Share
    max_eos_drop: Share
    max_logp_fall: Annotated[float, Field(ge=0)]


class DpoConfig(Section):
    """Keys of stage two (configs/dpo.yaml). Model, prompt and data are those of the run's stage one."""

    run: Folder
    seed: Seed
    rounds: Count
    sample: Sample
    judge: Judging
    pairs: Pairs
    train: DpoTrain
    guards: GuardSettings
    evaluate: Evaluate

    @model_validator(mode="after")
    def _agree(self) -> DpoConfig:
        if "hinge" in self.train.loss_type and self.pairs.weights != "none":
            raise ValueError(f"pairs.weights {self.pairs.weights} gives pairs weights, which the loss hinge does not allow; set "
                             "pairs.weights=none, or choose another train.loss_type")
        train = zip(self.train.loss_type, self.train.loss_weights, strict=True)
        if self.pairs.graded and not any(share for name, share in train if name != "sft"):
            raise ValueError("pairs.graded true adds pairs of two wrong queries, which sft, here the only loss of a weight above "
                             "0, leaves out; set pairs.graded=false, or give a preference loss of train.loss_type a weight above 0")
        if self.train.label_noise == "from-labels" and self.pairs.control != "none":
            raise ValueError(f"train.label_noise from-labels needs people's labels, and nobody labels the pairs of pairs.control "
                             f"{self.pairs.control}; set train.label_noise to the number that the run without a control printed")
        return self


def read_yaml(path: Path) -> dict:
    """A YAML 1.2 file as a dictionary (`1e-5` is a number); a missing, malformed or duplicate-key file is a ValueError."""
    if not path.is_file():
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(f"configuration file {path} does not exist. Files there: {', '.join(near) or 'none'}.")
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}. Mend that place and run again.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not `key: value` lines. Start from a file in configs/.")
    return values


def apply_settings(values: dict, settings: list[str]) -> dict:
    """Values with `key=value` settings laid over them; `train.epochs=2` reaches into a section. Values are YAML."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set {setting}: no `key=value`. Write for instance --set train.epochs=2.")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise ValueError(f"--set {setting}: {text!r} is not a YAML value ({error}).") from None
        *sections, last = key.strip().split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {setting}: {section} is a single value, not a section.")
        place[last] = value
    return values


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all keys of a section and the sections below it."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _keys(field.annotation, f"{prefix}{name}.")
    return names


def _message(error: dict, known: list[str]) -> str:
    """One line for one mistake: key, what was found, what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; see the comments in configs/")
    if error["type"] == "missing":
        return f"{key}: missing; every key of the stage must stand in the file"
    if error["type"] == "value_error":  # a check of ours, whose text says what was found
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    return f"{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def read_configuration(model: type[Section], path: Path, settings: list[str]) -> Section:
    """The checked configuration of a stage: `path`, with `key=value` settings over it.

    Raises ValueError that lists every mistake (unknown, missing, mistyped or out-of-range key) on a line of its own.
    """
    values = apply_settings(read_yaml(path), settings)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = sorted({_message(item, _keys(model)) for item in error.errors()})
        raise ValueError(f"{path}" + (" with --set" if settings else "") + f" has {len(lines)} mistake(s):\n  "
                         + "\n  ".join(lines)) from None
