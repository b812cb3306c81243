"""Configuration files and their mistakes: every key known, commented, typed, in range; all mistakes together."""

import re
from pathlib import Path

import pytest

from sft.configuration import (
    DpoConfig,
    SftConfig,
    apply_settings,
    read_configuration,
    read_yaml,
)
from sft.trl_arguments import validate_trl

CONFIGS = Path(__file__).parents[2] / "configs"
# The list of control arms is no stage's configuration (tests/preference/test_ablate.py).
FILES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "ablation.yaml")
KEY = re.compile(r"( *)(\w+):")


def model_of(path):
    return SftConfig if path.stem.startswith("sft") else DpoConfig


def changed(tmp_path, name, pattern, new):
    """A copy of configs/name in which the one place that matches `pattern` is `new`."""
    text, count = re.subn(pattern, new, (CONFIGS / name).read_text(encoding="utf-8"))
    assert count == 1
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(model, path, settings=()):
    with pytest.raises(ValueError) as error:
        read_configuration(model, path, list(settings))
    return str(error.value)


# ------------------------------------------------------------------- the files


def test_both_stages_have_their_defaults_and_every_recipe_is_a_pair():
    names = {path.stem for path in FILES}
    assert {"sft", "dpo", "sft-create-context", "dpo-create-context"} <= names
    assert {name.removeprefix("sft") for name in names if name.startswith("sft")} == {
        name.removeprefix("dpo") for name in names if name.startswith("dpo")
    }
    assert all(name.startswith(("sft", "dpo")) for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_a_valid_configuration(path):
    config = read_configuration(model_of(path), path, [])
    assert config.train.global_batch_size % config.train.micro_batch_size == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_key_has_a_comment_above_it(path):
    """One comment may serve up to three keys that stand together (lora_rank, lora_alpha, lora_dropout)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    since_comment, keys = 3, 0
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        found = KEY.match(line)
        if line.strip().startswith("#"):
            since_comment = 0
        elif not line.strip() or (found and line.endswith(":") and following.startswith("  ")):
            since_comment = 3
        elif found:
            since_comment, keys = since_comment + 1, keys + 1
            assert since_comment <= 3, f"{found[2]} has no comment above it"
    assert keys > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_two_stages_of_a_recipe_use_the_same_run_folder(path):
    other = path.with_name(
        path.name.replace("sft", "dpo") if path.stem.startswith("sft") else path.name.replace("dpo", "sft")
    )
    assert read_yaml(path)["run"] == read_yaml(other)["run"]


# -------------------------------------------------------------------- mistakes


def test_an_exponent_without_a_dot_is_a_number(tmp_path):
    path = changed(tmp_path, "sft.yaml", r"learning_rate: \S+", "learning_rate: 1e-5")
    assert read_configuration(SftConfig, path, []).train.learning_rate == 1e-5


def test_an_integer_is_a_number_where_a_float_is_asked_for():
    epochs = read_configuration(SftConfig, CONFIGS / "sft.yaml", ["train.epochs=2"]).train.epochs
    assert epochs == 2.0 and isinstance(epochs, float)


def test_yes_and_off_are_words_and_not_booleans(tmp_path):
    """YAML 1.2: `no` is a string, so a key that wants a boolean refuses it instead of guessing."""
    path = changed(tmp_path, "sft.yaml", r"load_in_4bit: \w+", "load_in_4bit: no")
    assert "train.load_in_4bit: found 'no'" in mistakes(SftConfig, path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.learnign_rate=1e-5", "train.learnign_rate: unknown key; did you mean train.learning_rate?"),
        ("learning_rate=1e-5", "learning_rate: unknown key; did you mean train.learning_rate?"),
        ("zzz=1", "zzz: unknown key; see the comments in configs/"),
        ("train.epochs=many", "train.epochs: found 'many'; input should be a valid number"),
        ("train.lora_rank=1.5", "train.lora_rank: found 1.5; input should be a valid integer"),
        ("train.lora_rank='8'", "train.lora_rank: found '8'; input should be a valid integer"),
        ("train.lora_rank=[8]", "train.lora_rank: found [8]; input should be a valid integer"),
        ("train.lora_rank=true", "train.lora_rank: found True; input should be a valid integer"),
        ("train.lora_rank=0", "train.lora_rank: found 0; input should be greater than or equal to 1"),
        ("train.learning_rate=2", "train.learning_rate: found 2; input should be less than or equal to 1"),
        ("train.learning_rate=null", "train.learning_rate: found None; input should be a valid number"),
        ("train.learning_rate=.nan", "train.learning_rate: found nan; input should be a finite number"),
        ("train.epochs=.inf", "train.epochs: found inf; input should be a finite number"),
        ("train.precision=fp16", "train.precision: found 'fp16'; input should be 'auto', 'bf16' or 'fp32'"),
        ("data.preference_share=1.0", "data.preference_share: found 1.0; input should be less than 1"),
        ("data.distractors=1.5", "data.distractors: found 1.5; input should be less than or equal to 1"),
        ("data.train_limit=0", "data.train_limit: found 0; input should be greater than or equal to 1"),
        ("seed=-1", "seed: found -1; input should be greater than or equal to 0"),
        ("model=3", "model: found 3; input should be a valid string"),
        ("train=3", "train: found 3; input should be a valid dictionary"),
    ],
)
def test_each_mistake_names_key_value_and_what_is_allowed(setting, message):
    assert f"\n  {message}" in mistakes(SftConfig, CONFIGS / "sft.yaml", [setting])


def test_most_samples_are_no_fewer_than_samples():
    assert read_configuration(DpoConfig, CONFIGS / "dpo.yaml", ["sample.most_samples=8"]).sample.most_samples == 8
    message = mistakes(DpoConfig, CONFIGS / "dpo.yaml", ["sample.most_samples=7", "rounds=0"])
    assert "most_samples 7 is less than samples 8" in message
    assert "\n  rounds: found 0; input should be greater than or equal to 1" in message


def test_a_wrong_column_name_is_named():
    message = mistakes(SftConfig, CONFIGS / "sft.yaml", ["data.columns={query: gold}"])
    assert "query" in message and "'question', 'context', 'gold', 'database' or 'evidence'" in message


def test_a_missing_key_is_named(tmp_path):
    path = changed(tmp_path, "dpo.yaml", r"  beta: \S+\n", "")
    assert "\n  train.beta: missing; every key of the stage must stand in the file" in mistakes(DpoConfig, path)


def test_a_duplicate_key_is_an_error_with_its_line(tmp_path):
    path = changed(tmp_path, "dpo.yaml", r"  beta: \S+\n", "  beta: 0.1\n  beta: 0.5\n")
    message = mistakes(DpoConfig, path)
    assert (
        "duplicate key" in message and '"beta"' in message and re.search(r"line \d+", message) and str(path) in message
    )


def test_all_mistakes_are_listed_together():
    message = mistakes(
        DpoConfig, CONFIGS / "dpo.yaml", ["train.beta=0", "sample.samples=1", "pairs.strategy=best", "x=1"]
    )
    assert message.startswith(f"{CONFIGS / 'dpo.yaml'} with --set has 4 mistake(s):\n")
    assert len(message.splitlines()) == 5
    for key in ("train.beta: found 0", "sample.samples: found 1", "pairs.strategy: found 'best'", "x: unknown key"):
        assert key in message


def test_a_missing_file_lists_its_neighbours():
    message = mistakes(SftConfig, CONFIGS / "stf.yaml")
    assert f"{CONFIGS / 'stf.yaml'} does not exist" in message and str(CONFIGS / "sft.yaml") in message
    assert "Files there: none." in mistakes(SftConfig, CONFIGS / "nowhere" / "sft.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"run: [1, 2\nmodel: x\n", "is not valid YAML"),
        (b"run: \xff\n", "is not valid YAML"),
        (b"- run\n- model\n", "holds list, not `key: value` lines"),
        (b"", "holds NoneType, not `key: value` lines"),
        (b"run: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert f"{path} {message}" in mistakes(SftConfig, path)


# -------------------------------------------------------------------- settings


def test_settings_are_yaml_and_reach_into_sections():
    values = apply_settings(
        {"run": "a", "train": {"epochs": 1, "beta": 0.1}},
        ["run=runs/x=y", "train.epochs=2", "train.trl={weight_decay: 1e-2}", "data.dev=null", "name=01"],
    )
    assert values == {
        "run": "runs/x=y",
        "train": {"epochs": 2, "beta": 0.1, "trl": {"weight_decay": 0.01}},
        "data": {"dev": None},
        "name": 1,
    }


def test_the_last_setting_of_a_key_holds():
    assert read_configuration(SftConfig, CONFIGS / "sft.yaml", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs", "--set train.epochs: no `key=value`"),
        ("=3", "--set =3: no `key=value`"),
        ("run.name=x", "--set run.name=x: run is a single value, not a section"),
        ("run=[1", "--set run=[1: '[1' is not a YAML value"),
    ],
)
def test_a_malformed_setting_is_named(setting, message):
    assert message in mistakes(SftConfig, CONFIGS / "sft.yaml", [setting])


def test_seeds_are_those_that_every_generator_takes():
    for model, name in ((SftConfig, "sft.yaml"), (DpoConfig, "dpo.yaml")):
        assert read_configuration(model, CONFIGS / name, [f"seed={2**32 - 1}"]).seed == 2**32 - 1
        assert f"seed: found {2**32}; input should be less than {2**32}" in mistakes(model, CONFIGS / name, [f"seed={2**32}"])


def test_a_run_below_home_is_there(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert read_configuration(SftConfig, CONFIGS / "sft.yaml", ["run=~/runs/a"]).run == "/somewhere/runs/a"


def test_offload_needs_a_zero_stage():
    assert "offload cpu is DeepSpeed's, which zero_stage 0 does without" in mistakes(
        DpoConfig, CONFIGS / "dpo.yaml", ["train.offload=cpu", "train.zero_stage=0"])
    assert read_configuration(DpoConfig, CONFIGS / "dpo.yaml", ["train.offload=cpu", "train.zero_stage=2"]).train.offload == "cpu"


# ------------------------------------------------------------- arguments of trl


def test_arguments_for_trl_are_checked_by_name():
    from trl import DPOConfig, SFTConfig

    from preference.dpo_training import RESERVED as DPO_RESERVED
    from sft.training import RESERVED as SFT_RESERVED

    validate_trl({"weight_decay": 0.01, "max_grad_norm": 1.0}, SFTConfig, SFT_RESERVED)
    validate_trl({"ld_alpha": 0.5}, DPOConfig, DPO_RESERVED)
    with pytest.raises(
        ValueError, match=r"train.trl.weigth_decay: SFTConfig has no such argument; did you mean weight_decay\?"
    ):
        validate_trl({"weigth_decay": 0.01}, SFTConfig, SFT_RESERVED)
    with pytest.raises(ValueError, match="train.trl.learning_rate: set by this project's own keys"):
        validate_trl({"learning_rate": 0.01}, SFTConfig, SFT_RESERVED)
    with pytest.raises(ValueError, match="train.trl.label_smoothing_factor: set by this project's own keys, or of no effect"):
        validate_trl({"label_smoothing_factor": 0.1}, DPOConfig, DPO_RESERVED)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"weight_decay": "0.1"}, "train.trl.weight_decay: found '0.1'; input should be a valid number"),
    ({"ld_alpha": "0.5"}, "train.trl.ld_alpha: found '0.5'; input should be a valid number"),
    ({"lr_scheduler_type": "cosin"}, r"train.trl.lr_scheduler_type: found 'cosin'; did you mean cosine\? Allowed: linear, "),
    ({"weight_decay": float("nan")}, "train.trl.weight_decay: found nan; input should be a finite number"),
    ({"optim": "xyz"}, "train.trl.optim: found 'xyz'; Allowed: .*adamw_torch"),
    ({"optim": "adam"}, "train.trl.optim: found 'adam'; did you mean .* Allowed: .*adamw_torch"),
    ({"report_to": ["tensorbord"]}, r"train.trl.report_to: found \['tensorbord'\]; tensorbord is not supported"),
])
def test_values_for_trl_are_checked_before_training(arguments, message):
    from trl import DPOConfig

    with pytest.raises(ValueError, match=message):
        validate_trl(arguments, DPOConfig, set())


@pytest.mark.parametrize("arguments", [
    {"weight_decay": 0, "lr_scheduler_type": "linear", "optim": "adafactor", "lr_scheduler_kwargs": {"a": 1}},
    {"ld_alpha": None, "adam_beta1": 0.9, "disable_tqdm": True, "debug": ["underflow_overflow"], "logging_strategy": "steps"},
    *({"report_to": trackers} for trackers in ("tensorboard", ["tensorboard"], "none", ["none"], "all", ["all"], [], None)),
])
def test_values_that_trl_takes_are_taken(arguments):
    from trl import DPOConfig

    assert validate_trl(arguments, DPOConfig, set()) is None


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    from transformers.integrations import integration_utils
    from trl import DPOConfig

    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    with pytest.raises(ValueError, match="report_to: found .*trackio.*pip install trackio"):
        validate_trl({"report_to": ["tensorboard", "trackio"]}, DPOConfig, set())


def test_reserved_names_are_names_of_trl():
    """A name that trl dropped would protect nothing."""
    from trl import DPOConfig, SFTConfig

    from preference.dpo_training import RESERVED as DPO_RESERVED
    from sft.training import RESERVED as SFT_RESERVED

    assert SFT_RESERVED <= set(SFTConfig.__dataclass_fields__)
    assert DPO_RESERVED <= set(DPOConfig.__dataclass_fields__)
