"""What stage two finds in a run's folder, and what it checks before its first step rather than after hours of sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from preference.inspection.training import refused_questions
from preference.rounds import always_right, questions_of_round, round_folder
from sft import ranks
from sft.artefacts import content_hash, mark_path, read_parquet, recorded_inputs
from sft.checkpoint import load_tokenizer, read_provenance
from sft.examples import load
from sft.order import accumulation_steps
from sft.prompt import check_prompt_hash, prompt_hash
from sft.records import read_stage_configuration
from sft.splits import PREFERENCE
from sft.trl_arguments import validate_trl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft.configuration import DpoConfig


@dataclass(frozen=True)
class Prepared:
    """A run with a finished stage one. `examples`: the questions of RUN/data/SPLIT.parquet, in the order in which rounds ask
    them: those that stage one left to stage two, or, where it left none, those that it trained on. `command`: the one of stage
    two, with its configuration and settings, as people are told it."""

    folder: Path
    sft_config: dict
    tokenizer: PreTrainedTokenizerBase
    schema_style: str
    max_prompt_tokens: int
    prompt_hash: str
    split: str
    examples: list[dict]
    command: str = "accelerate launch preference/dpo.py"


def prepare(folder: Path, seed: int, sft_command: str, command: str) -> Prepared:
    """Read what stage one left. Raises ValueError with its command where it is not finished."""
    sft_config = read_stage_configuration(folder, "sft", sft_command)
    adapter = folder / "sft"
    if not (adapter / "complete.json").exists():
        raise ValueError(f"{adapter} holds no finished adapter. Make it first (it goes on where it stopped):\n"
                         f"  {sft_command}")
    provenance = read_provenance(adapter)
    tokenizer = load_tokenizer(adapter, sft_config["trust_remote_code"])
    schema_style, max_prompt_tokens = provenance["prompt"]["schema_style"], provenance["prompt"]["max_prompt_tokens"]
    prompt = prompt_hash(tokenizer, schema_style, max_prompt_tokens)
    check_prompt_hash(provenance["prompt_hash"], prompt, str(adapter))
    split = PREFERENCE if sft_config["data"].get("preference_share") else "train"
    examples = [example for example in load(folder / "data", split) if example["answerable"]]
    random.Random(f"{seed}:sample").shuffle(examples)
    return Prepared(folder, sft_config, tokenizer, schema_style, max_prompt_tokens, prompt, split, examples, command)


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


def sampled_questions(stage: Prepared, examples: list[dict], candidates: Path) -> list[dict]:
    """The examples that `candidates` holds samples of, in its order: `examples`, or, where that was sampled for another number
    of them or another seed, those of it. For the steps after sampling, which take what is there.
    """
    if not mark_path(candidates).exists() or recorded_inputs(candidates).get("asked") in (None, asked_hash(examples)):
        return examples
    known = {example["example_id"]: example for example in stage.examples}
    sampled = dict.fromkeys(row["example_id"] for row in read_parquet(candidates, ["example_id"]))
    if ranks.is_main():
        print(f"questions: the {len(sampled)} of {candidates}, not those that these settings would sample ({len(examples)})")
    return [known[name] for name in sampled if name in known]


def asked_hash(examples: list[dict]) -> str:
    """What identifies the questions of a round's samples."""
    return content_hash([example["example_id"] for example in examples])[:16]


def as_made(config: DpoConfig, stage: Prepared, number: int, steps: Sequence[str], checkpoint: str) -> DpoConfig:
    """The configuration, with the keys of samples and pairs as the round's files were made with, where their steps are not run.

    A step alone takes what the steps before it left, whatever these settings would make; the main rank says which are others.
    The keys of the judge stay: training measures by them. Raises ValueError where what is there does not go with the settings
    of the step itself, or was sampled from other weights than `checkpoint`, those that the round starts from.
    """
    values = config.model_dump()
    for step, name in (("sample", "candidates"), ("judge", "verdicts"), ("pairs", "pairs")):
        if step in steps:
            break
        file = round_folder(stage.folder, number) / f"{name}.parquet"
        recorded = recorded_inputs(file) or {}
        made = {key: recorded[key] for key, now in values[step].items()
                if key not in ("questions", "shard_size") and key in recorded and recorded[key] != now}
        told = [f"{step}.{key}={there}" for key, there in made.items()]
        again = f"{stage.command} --only {step} --overwrite"
        if step == "sample" and recorded.get("checkpoint", checkpoint) != checkpoint:
            raise ValueError(f"{file} was sampled from another adapter than round {number} starts from now. Pairs are to be of the model "
                             f"that is trained on them. Sample anew, then judge and pair: {again}")
        if step == "sample" and recorded.get("precision", config.train.precision) != config.train.precision:
            told.append(f"train.precision={recorded['precision']}")
        if recorded.get("seed", config.seed) != config.seed:
            told.append(f"seed={recorded['seed']}")
        if told and ranks.is_main():
            print(f"{step}: {file} was made with {', '.join(told)}, and is taken as it is. To make it anew:\n  {again}")
        if step != "judge":
            values[step] |= made
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        raise ValueError(f"what {round_folder(stage.folder, number)} holds does not go with these settings: "
                         f"{error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


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
