"""An SFT step, ours and trl's SFTTrainer in turn on the same rows of mixed lengths: rows a second, memory, gradients.

    python tests/benchmarks/sft_step.py [--quick] [--shape NAME] [--json FILE] [--profile] [--scaling]

trl's way is taken with its public options set as well as they can be here: bf16, no checkpointing, micro-batches of rows
of like length, both attentions. Beside it, marked as private, trl with its LM head on completion positions only, which no
option of trl's switches on for a CPU. Rows are random tokens: schemas of 40 to 600 tokens (log-uniform), questions of 15
to 35, answers of 10 to 60.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from training_steps import VOCABULARY, WAYS, Clock, Work, benchmark, policy

# Questions on each schema.
SHAPES = {"mixed lengths, 8 on a schema": 8, "mixed lengths, 1 on a schema": 1}
# Rows in a step (half as many with --quick), in a micro-batch of trl's, and of ours.
STEP, PLAIN_MICRO, OUR_MICRO = 32, 4, 16


def work_of(on_a_schema: int, steps: int, quick: bool) -> Work:
    """Rows {input_ids, labels, schema} in the order in which stage one trains on them."""
    from sft.training import in_training_order

    chance, rows, size = random.Random(0), [], STEP // 2 if quick else STEP

    def tokens(count: int) -> list[int]:
        return [chance.randrange(10, VOCABULARY) for _ in range(count)]

    for number in range(size * steps):
        if number % on_a_schema == 0:
            schema = [1, *tokens(round(40 * 15 ** chance.random()))]
        prompt, answer = schema + tokens(chance.randint(15, 35)), [*tokens(chance.randint(10, 60)), 2]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer,
                     "schema": str(number // on_a_schema)})
    order = in_training_order(rows, epochs=1, global_batch_size=size, questions_per_pack=8, seed=0)
    return Work(order.to_list(), size, size, PLAIN_MICRO, min(size, OUR_MICRO))


def trainer_of(way: str, work: Work, steps: int, precision: str):
    """A trainer of one way; `ours` as stage one makes it."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from sft.checkpoint import load_tokenizer, resolve_model
    from sft.fused_lora import fuse_lora
    from sft.packed_attention import packs_accepted
    from sft.training import completion_collator

    ours = way == "ours"
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=work.micro(way),
        gradient_accumulation_steps=work.step(way) // work.micro(way), gradient_checkpointing=False, bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(), max_length=None, train_sampling_strategy="sequential", save_strategy="no",
        report_to="none", learning_rate=1e-6, logging_steps=10, disable_tqdm=True, dataloader_pin_memory=False,
        remove_unused_columns=not ours, dataset_kwargs={"skip_prepare_dataset": True} if ours else None)
    given = {"model": policy(WAYS[way].attention, precision), "args": arguments, "callbacks": [Clock()],
             "processing_class": load_tokenizer(resolve_model("embedded"))}
    if not ours:
        # The same rows in every step, by length alone: less padding than trl's group_by_length leaves.
        rows = [row for start in range(0, len(work.rows), work.plain_step)
                for row in sorted(work.rows[start : start + work.plain_step], key=lambda row: -len(row["input_ids"]))]
        return SFTTrainer(train_dataset=Dataset.from_list(rows).select_columns(["input_ids", "labels"]), **given)
    fuse_lora(given["model"])
    trainer = SFTTrainer(train_dataset=Dataset.from_list(work.rows), **given,
                         data_collator=completion_collator(given["processing_class"], share_prompts=True))
    # For as long as the trainer lives.
    trainer.packs = packs_accepted(given["model"].get_base_model())
    assert trainer.packs.__enter__()
    return trainer


if __name__ == "__main__":
    benchmark(__doc__, "rows", SHAPES, work_of, trainer_of)
