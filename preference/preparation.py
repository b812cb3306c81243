"""What stage two finds in a run's folder, and what it checks before its first step rather than after hours of sampling."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft import ranks
from sft.checkpoint import load_tokenizer, read_provenance
from sft.configuration import validate_trl
from sft.examples import load
from sft.order import accumulation_steps
from sft.prompt import check_prompt_hash, prompt_hash
from sft.records import read_stage_configuration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """A run with a finished stage one. `examples`: the training questions, in the order in which rounds ask them."""

    folder: Path
    sft_config: dict
    tokenizer: PreTrainedTokenizerBase
    schema_style: str
    max_prompt_tokens: int
    prompt_hash: str
    examples: list[dict]


def prepare(folder: Path, sft_command: str, seed: int) -> Prepared:
    """Read what stage one left. Raises ValueError with its command where it is not finished."""
    sft_config = read_stage_configuration(folder, "sft", f"{sft_command} --set run={folder}")
    adapter = folder / "sft"
    if not (adapter / "complete.json").exists():
        raise ValueError(f"{adapter} holds no finished adapter. Make it first (it goes on where it stopped):\n"
                         f"  {sft_command} --set run={folder}")
    provenance = read_provenance(adapter)
    tokenizer = load_tokenizer(adapter)
    schema_style, max_prompt_tokens = provenance["prompt"]["schema_style"], provenance["prompt"]["max_prompt_tokens"]
    prompt = prompt_hash(tokenizer, schema_style, max_prompt_tokens)
    check_prompt_hash(provenance["prompt_hash"], prompt, str(adapter))
    examples = [example for example in load(folder / "data", "train") if example["answerable"]]
    random.Random(f"{seed}:sample").shuffle(examples)
    return Prepared(folder, sft_config, tokenizer, schema_style, max_prompt_tokens, prompt, examples)


def check_training(config, sft_config: dict, labels_file: Path) -> None:
    """Raise ValueError for settings with which the training step could not be run, or not be compared with SFT."""
    from trl import DPOConfig as TrlArguments

    from preference.dpo_training import RESERVED

    validate_trl(config.train.trl, TrlArguments, RESERVED)
    for section, key in (("evaluate", "max_new_tokens"), ("judge", "databases")):
        mine, theirs = getattr(getattr(config, section), key), sft_config[section][key]
        if mine != theirs:
            raise ValueError(f"{section}.{key} is {mine!r} here and was {theirs!r} in stage one: SFT and DPO would be "
                             f"compared by different measures. Set {section}.{key}={theirs}.")
    accumulation_steps(config.train.global_batch_size, config.train.micro_batch_size, ranks.world_size())
    if config.train.label_noise == "from-labels" and not labels_file.exists():
        raise ValueError(f"train.label_noise is from-labels, but there is no {labels_file}. Make the pairs with --only "
                         "sample, judge and pairs, label them with inspect-preferences serve, then train.")
