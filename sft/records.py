"""What a run says of itself: resolved configuration, versions, peak memory and model card."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from sft import ranks
from sft.artefacts import atomic_path, write_json

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "sqlglot", "accelerate", "deepspeed", "apsw", "pyarrow")


def versions() -> dict:
    """Package versions, Python, machine and (where there is one) the git commit."""
    try:
        commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True,
                                text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git on this machine
        commit = ""
    import torch

    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": ranks.cores(),
                    "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]},
        "git_commit": commit or None,
    }


def save_configuration(folder: Path, stage: str, config: dict) -> None:
    """Write a stage's resolved configuration into RUN/config.yaml, beside the other stage's, and RUN/versions.json."""
    yaml = YAML()
    path = folder / "config.yaml"
    stages = yaml.load(path.read_text(encoding="utf-8")) if path.exists() else {}
    stages[stage] = config
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.dump(dict(stages), file)
    write_json(folder / "versions.json", versions())


def recorded_configurations(folder: Path) -> dict[str, dict]:
    """{stage: its resolved configuration} as RUN/config.yaml has them; {} where there is no such file."""
    path = folder / "config.yaml"
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_stage_configuration(folder: Path, stage: str, command: str) -> dict:
    """A stage's resolved configuration from RUN/config.yaml; ValueError, with its `command`, where it has not run there."""
    stages = recorded_configurations(folder)
    if stage not in stages:
        raise ValueError(
            f"{folder} holds no finished `{stage}` stage (no {folder / 'config.yaml'}, or no {stage} in it). Make it first:\n"
            f"  {command}"
        )
    return stages[stage]


def peak_memory_bytes() -> int:
    """Peak memory of this process: on the GPU where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_card(folder: Path, stage: str, config: dict, facts: dict) -> None:
    """The model card (README.md) of an adapter folder."""
    method = {"sft": "LoRA supervised fine-tuning", "dpo": "DPO on execution-judged preference pairs, from the SFT adapter"}
    before, after = facts["dev_before"], facts["dev_after"]
    base = config.get("model", "")
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct" if base == "embedded" else base
    text = f"""---
base_model: {hub}
library_name: peft
pipeline_tag: text-generation
tags: [text-to-sql, sqlite, lora, {stage}, trl]
---
# Text-to-SQL adapter ({stage})

{method[stage]} of `{base}` for questions over a SQLite schema. The prompt format is fixed by `provenance.json`
(`prompt_hash`); ask with `python -m preference.answer`, or load with `peft.PeftModel.from_pretrained`.

| development questions (n = {after['n']}) | before | after |
|---|---|---|
| execution accuracy (greedy) | {before['execution_accuracy']:.1%} | {after['execution_accuracy']:.1%} |
| valid SQL | {before['valid_sql']:.1%} | {after['valid_sql']:.1%} |
| ends with EOS | {before['ended_with_eos']:.1%} | {after['ended_with_eos']:.1%} |

Trained parameters: {facts['trainable_parameters']:,} ({facts['trainable_share']:.2%}); adapter
{facts['adapter_bytes'] / 2**20:.1f} MiB; peak memory {facts['peak_memory_bytes'] / 2**30:.1f} GiB; {facts['duration_s']:.0f} s.

Limits: it writes SQLite only, was measured on the data named in the run's `config.yaml`, and a query that runs is not
always the right one. Run what it writes on a read-only connection.
"""
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
