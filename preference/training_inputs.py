"""What the training of a round depends on, as its mark records it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preference.inspection.labels import LabelFile
from preference.rounds import inputs_hash
from sft.artefacts import content_hash, discard, file_hash, is_complete, recorded_inputs

if TYPE_CHECKING:
    from preference.preparation import Prepared
    from sft.configuration import DpoConfig, DpoTrain

# Keys of `train` that change how a result is computed, not which result: a run may go on with others.
HOW_NOT_WHAT = {"share_prompts", "save_steps", "gradient_checkpointing", "attention"}


def what_counts(train: DpoTrain) -> dict:
    """The keys of `train` that a result depends on. micro_batch_size is one with the sft loss alone: that is trl's mean over the
    tokens of a micro-batch, so how pairs are put together changes what each token weighs. reference_weight 1 is what results had
    that were made before there was such a key, and stands for no key.
    """
    found = train.model_dump(exclude=HOW_NOT_WHAT if "sft" in train.loss_type else HOW_NOT_WHAT | {"micro_batch_size"})
    if train.reference_weight == 1:
        del found["reference_weight"]
    return found


def training_inputs(config: DpoConfig, stage: Prepared, number: int, pairs: str, checkpoint: str) -> dict:
    """The inputs of a round's training; `pairs` and `checkpoint` are hashes of the pairs and of the adapter it starts from.

    `before` stands for the inputs of the round before, whose weights alone do not tell: guards that keep step 0 give back the
    same ones under all settings.
    """
    train = what_counts(config.train)
    del train["label_noise"]  # what comes of it is an input of its own
    inputs = {"pairs": pairs, "checkpoint": checkpoint, "prompt_hash": stage.prompt_hash, "seed": config.seed, "train": train,
              "max_new_tokens": config.evaluate.max_new_tokens, "guards": config.guards.model_dump()}
    if (dev := stage.folder / "data" / "dev.parquet").exists():  # it chooses the step and the round that are published
        inputs["dev"] = file_hash(dev)
    return inputs | ({"before": inputs_hash(stage.folder, number - 1)} if number > 1 else {})


def words_hash(labels_file: Path) -> str | None:
    """What identifies the labels and rankings of people that hold, whenever they were said; None where there are none."""
    file = LabelFile(labels_file)
    labels, rankings = file.latest(), file.rankings()
    file.close()
    if not (labels or rankings):
        return None
    return content_hash([
        {pair: {who: [label.label, label.content_hash] for who, label in words.items()} for pair, words in labels.items()},
        {question: {who: [order.ranks, order.content_hash] for who, order in orders.items()}
         for question, orders in rankings.items()}])[:16]


def discard_without_pairs(target: Path, inputs: dict, overwrite: bool) -> None:
    """Delete the adapter of a round that has no pairs now: other pairs made it, and it is not one of the run's any more.

    Raises ValueError for it unless `overwrite`, as every step does where its inputs have changed.
    """
    if recorded_inputs(target) is not None:
        is_complete(target, inputs, overwrite)
        discard(target)
