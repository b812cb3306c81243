"""What stage two finds in a run's folder, and what it checks before its first step rather than after hours of sampling."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preference.inspection.training import refused_questions
from preference.rounds import always_right, questions_of_round
from sft import ranks
from sft.checkpoint import load_tokenizer, read_provenance
from sft.examples import load
from sft.order import accumulation_steps
from sft.prompt import check_prompt_hash, prompt_hash
from sft.records import read_stage_configuration
from sft.splits import PREFERENCE
from sft.trl_arguments import validate_trl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """A run with a finished stage one. `examples`: the questions of RUN/data/SPLIT.parquet, in the order in which rounds ask
    them: those that stage one left to stage two, or, where it left none, those that it trained on."""

    folder: Path
    sft_config: dict
    tokenizer: PreTrainedTokenizerBase
    schema_style: str
    max_prompt_tokens: int
    prompt_hash: str
    split: str
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
    split = PREFERENCE if sft_config["data"].get("preference_share") else "train"
    examples = [example for example in load(folder / "data", split) if example["answerable"]]
    random.Random(f"{seed}:sample").shuffle(examples)
    return Prepared(folder, sft_config, tokenizer, schema_style, max_prompt_tokens, prompt, split, examples)


def asked_questions(stage: Prepared, number: int, count: int | None, begun: dict | None) -> tuple[list[dict], list[str]]:
    """(the examples that a round asks, ids of those that people refuse), the same on every rank; says what is left out.

    `begun`: the inputs that the round's samples were begun for, None where they were not. What people say after that counts
    from the next round on: it does not undo what is sampled.
    """
    examples = chosen = questions_of_round(stage.examples, number, count)
    refused = None
    if ranks.is_main():
        refused = refused_questions(stage.folder, number) if begun is None else begun.get("refused", ())
    refused = sorted(ranks.gather(refused)[0])
    for gone, reason in ((always_right(stage.folder, number), "all their samples were correct in an earlier round"),
                         (refused, "people call their gold wrong, or them unanswerable")):
        left = [example for example in examples if example["example_id"] not in gone]
        if ranks.is_main() and len(left) < len(examples):
            print(f"questions: {len(examples) - len(left)} of {len(chosen)} left out: {reason}")
        examples = left
    # Questions on one schema stand together: the sampler computes the schema once.
    return sorted(examples, key=lambda example: example["context"]), refused


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
