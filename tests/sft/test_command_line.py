"""The stages' command line, and the commands that people are told."""

import shlex
from pathlib import Path

import pytest

from sft.command_line import CONFIGS, sister, stage_arguments, stage_command


def test_command_line_takes_several_settings_in_any_number_of_options():
    parser = stage_arguments("text", "dpo.yaml")
    arguments = parser.parse_args(["--set", "a=1", "b=2", "--overwrite", "--set", "c=3"])
    assert arguments.settings == ["a=1", "b=2", "c=3"] and arguments.overwrite
    assert arguments.config == CONFIGS / "dpo.yaml" and arguments.config.exists()
    assert parser.parse_args([]).settings == []


def test_a_command_names_its_configuration_and_settings_as_a_shell_reads_them(tmp_path, monkeypatch):
    assert stage_command("dpo", CONFIGS / "dpo.yaml") == "accelerate launch preference/dpo.py"
    monkeypatch.chdir(CONFIGS.parent)
    assert stage_command("sft", Path("configs/sft.yaml"), ["run=a"]) == "accelerate launch sft/run.py --set run=a"
    settings = ["run=runs/my run", "train.loss_type=[robust]"]
    words = shlex.split(stage_command("dpo", tmp_path / "dpo.yaml", settings))
    assert words == ["accelerate", "launch", "preference/dpo.py", "--config", str(tmp_path / "dpo.yaml"), "--set", *settings]


@pytest.mark.parametrize(("mine", "other"), [("dpo-mine.yaml", "sft-mine.yaml"), ("dpo.yaml", "sft.yaml"), ("mine.yaml", None), ("dpo-alone.yaml", None)])
def test_the_configuration_of_the_other_stage_bears_its_name_or_is_the_default(tmp_path, mine, other):
    for name in ("dpo-mine.yaml", "sft-mine.yaml", "dpo.yaml", "sft.yaml", "mine.yaml", "dpo-alone.yaml"):
        (tmp_path / name).touch()
    assert sister(tmp_path / mine, "dpo", "sft") == (CONFIGS / "sft.yaml" if other is None else tmp_path / other)
