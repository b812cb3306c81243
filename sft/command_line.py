"""The command line that both stages share, and their commands as people are told them. No ML import."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
SCRIPTS = {"sft": "sft/run.py", "dpo": "preference/dpo.py"}


def stage_arguments(description: str, default: str) -> argparse.ArgumentParser:
    """The command line that both stages share: --config, --set and --overwrite."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / default, metavar="FILE",
                        help=f"configuration (default: configs/{default})")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace single keys, for instance --set train.epochs=2 run=runs/mine")
    parser.add_argument("--overwrite", action="store_true",
                        help="make steps anew whose output in the run folder was made with other settings")
    return parser


def stage_command(stage: str, config: Path, settings: Sequence[str] = ()) -> str:
    """The command of a stage, `sft` or `dpo`, quoted for a shell; its default configuration is not named."""
    words = ["accelerate", "launch", SCRIPTS[stage]]
    if config.resolve() != (CONFIGS / f"{stage}.yaml").resolve():
        words += ["--config", str(config)]
    return shlex.join(words + (["--set", *settings] if settings else []))


def sister(config: Path, stage: str, other: str) -> Path:
    """The configuration of the `other` stage that belongs to one of `stage`: configs/sft-create-context.yaml to
    configs/dpo-create-context.yaml; the default one where there is no file of such a name.
    """
    found = config.with_name(config.name.replace(stage, other, 1))
    return found if found != config and found.exists() else CONFIGS / f"{other}.yaml"
