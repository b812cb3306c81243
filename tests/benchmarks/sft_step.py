"""An SFT step, ours and trl's SFTTrainer in turn on the same rows of mixed lengths: rows a second, memory, differences.

    python tests/benchmarks/sft_step.py [--quick] [--shape NAME] [--json FILE] [--profile] [--scaling]

trl's way is taken with its public options set as well as they can be here: bf16, no checkpointing, batches of like length,
both attentions. Beside it, marked as private, trl with its LM head on completion positions only, which no option of trl's
switches on for a CPU. Rows are random tokens: schemas of 40 to 600 tokens, questions of 15 to 35, answers of 10 to 60.
"""

from __future__ import annotations

import random
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from training_steps import (
    VOCABULARY,
    Clock,
    arguments_of,
    differences,
    in_turn,
    lm_head,
    loss_and_gradients,
    memory_of_each,
    peak_memory_mib,
    policy,
    profile,
    rate,
    report,
)

# Questions on each schema; rows in a micro-batch and micro-batches in a step (full and quick).
SHAPES = {"mixed lengths, 8 on a schema": (8, 16, 2, 1), "mixed lengths, 1 on a schema": (1, 16, 2, 1)}
WAYS = {"trl eager": ("plain", "eager", False), "trl sdpa": ("plain", "sdpa", False),
        "trl compact head": ("compact", "eager", True), "ours": ("ours", "auto", False)}


def rows_of(on_a_schema: int, count: int) -> list[dict]:
    """Rows {input_ids, labels, schema} in no order of length; schemas' lengths are log-uniform."""
    chance, rows = random.Random(0), []

    def tokens(count: int) -> list[int]:
        return [chance.randrange(10, VOCABULARY) for _ in range(count)]

    for number in range(count):
        if number % on_a_schema == 0:
            schema = [1, *tokens(round(40 * 15 ** chance.random()))]
        prompt, answer = schema + tokens(chance.randint(15, 35)), [*tokens(chance.randint(10, 60)), 2]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "schema": str(number // on_a_schema)})
    return rows


def trainer_of(way: str, rows: list[dict], micro: int, accumulation: int, steps: int, precision: str = "bf16"):
    """A trainer of one way; `ours` as stage one makes it."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from sft.checkpoint import load_tokenizer, resolve_model
    from sft.fused_lora import fuse_lora
    from sft.packed_attention import packs_accepted
    from sft.training import completion_collator, in_training_order

    model, tokenizer = policy(WAYS[way][1], precision), load_tokenizer(resolve_model("embedded"))
    data = in_training_order(rows, epochs=1, global_batch_size=micro * accumulation, questions_per_pack=8, seed=0)
    more = {}
    if way == "ours":
        fuse_lora(model)
        more = {"data_collator": completion_collator(tokenizer, True)}
    else:
        # The same rows in every step, its micro-batches by length: less padding than trl's group_by_length leaves.
        size, rows = micro * accumulation, data.to_list()
        ordered = [row for start in range(0, len(rows), size)
                   for row in sorted(rows[start : start + size], key=lambda row: -len(row["input_ids"]))]
        data = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in ordered])
    arguments = SFTConfig(output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=micro,
                          gradient_accumulation_steps=accumulation, gradient_checkpointing=False, bf16=precision == "bf16",
                          use_cpu=not torch.cuda.is_available(), max_length=None, train_sampling_strategy="sequential",
                          save_strategy="no", report_to="none", learning_rate=1e-6, logging_steps=10, disable_tqdm=True,
                          dataloader_pin_memory=False, remove_unused_columns=way != "ours",
                          dataset_kwargs={"skip_prepare_dataset": True} if way == "ours" else None)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()], **more)
    if way == "ours":
        trainer.packs = packs_accepted(model.get_base_model())
        assert trainer.packs.__enter__()
    return trainer


def checked(rows: list[dict], micro: int, precision: str) -> dict:
    """Differences of loss and gradients of every way from the first, on one micro-batch."""
    found = {}
    for way, (head, _, _) in WAYS.items():
        with lm_head(head):
            found[way] = loss_and_gradients(trainer_of(way, rows, micro, 1, 1, precision), rows[:micro], precision == "bf16")
    return {way: differences(found["trl eager"], found[way]) for way in WAYS if way != "trl eager"}


def main() -> None:
    arguments = arguments_of(__doc__)
    if arguments.memory:
        shape, way = arguments.memory.split(":")
        on_a_schema, micro, full, few = SHAPES[shape]
        accumulation = few if arguments.quick else full
        print(peak_memory_mib(trainer_of(way, rows_of(on_a_schema, 2 * micro * accumulation), micro, accumulation, 2), WAYS[way][0]))
        return
    results: dict = {}
    for shape in arguments.shape or list(SHAPES):
        on_a_schema, micro, full, few = SHAPES[shape]
        accumulation = few if arguments.quick else full
        timed, rounds = (1, arguments.rounds or 1) if arguments.quick else (2, arguments.rounds or 3)
        rows = rows_of(on_a_schema, micro * accumulation * (timed + 1))
        if arguments.profile:
            for way in ("trl eager", "ours"):
                print(f"\n{shape}, {way}: two steps\n{profile(trainer_of(way, rows, micro, accumulation, 2), WAYS[way][0])}")
            continue
        ways = [way for way in WAYS if not (arguments.quick and way == "trl sdpa")]
        makers = {way: (WAYS[way][0], partial(trainer_of, way, rows, micro, accumulation, timed + 1)) for way in ways}
        seconds = in_turn(makers, rounds)
        memory = {} if arguments.no_memory else memory_of_each(
            ["trl eager", "ours"] if arguments.quick else ways, shape, ["--quick"] if arguments.quick else [])
        results[shape] = {way: {"rate": rate(seconds[way], micro * accumulation), "seconds": seconds[way], "private": WAYS[way][2],
                                **({"peak_mib": memory[way]} if way in memory else {})} for way in ways}
        for way, off in checked(rows, 4, "bf16").items():
            if way in results[shape]:
                results[shape][way]["differences"] = off
        exact = checked(rows, 2, "fp32")["ours"]
        print(f"{shape}, fp32: relative difference of ours from trl: loss {exact['loss']:.1e}, gradients "
              f"{exact['gradients']:.1e}, worst tensor {exact['worst_tensor']:.1e}")
        results[shape]["ours"]["differences_fp32"] = exact
    if results:
        report(results, "rows", arguments.json)


if __name__ == "__main__":
    main()
