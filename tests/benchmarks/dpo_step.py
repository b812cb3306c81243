"""A DPO step, ours and trl's DPOTrainer in turn on the same pairs: pairs a second, memory, difference of loss and gradients.

    python tests/benchmarks/dpo_step.py [--quick] [--shape NAME] [--json FILE] [--profile] [--scaling]

trl's way is taken with its public options set as well as they can be here: bf16, no checkpointing, both attentions. Beside
it, marked as private, trl with its LM head on completion positions only, which no option of trl's switches on for a CPU.
Pairs are random tokens, so chosen and rejected share the prompt and nothing else. Every step computes the reference.
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

# Mean tokens of prompt and completion, pairs of one question, pairs in a step (full and quick).
SHAPES = {
    "prompt 90, completion 25": (90, 25, 1, 8, 4),
    "prompt 800, completion 40": (800, 40, 1, 4, 2),
    "prompt 800, completion 40, 4 pairs": (800, 40, 4, 4, 4),
}
# LM head, attention, whether it takes what is no option of trl's.
WAYS = {"trl eager": ("plain", "eager", False), "trl sdpa": ("plain", "sdpa", False),
        "trl compact head": ("compact", "eager", True), "ours": ("ours", "auto", False)}


def pairs(prompt: int, completion: int, a_question: int, count: int) -> list[dict]:
    """Pairs of random tokens, prompts within a fifth and completions within two fifths of their mean length."""
    chance, rows = random.Random(0), []

    def tokens(mean: int, spread: float) -> list[int]:
        return [chance.randrange(10, VOCABULARY) for _ in range(round(mean * chance.uniform(1 - spread, 1 + spread)))]

    for number in range(count):
        if number % a_question == 0:
            question = [1, *tokens(prompt - 1, 0.2)]
        rows.append({"prompt_ids": question, "chosen_ids": [*tokens(completion - 1, 0.4), 2],
                     "rejected_ids": [*tokens(completion - 1, 0.4), 2], "sft_chosen_logps": None, "sft_rejected_logps": None})
    return rows


def trainer_of(way: str, rows: list[dict], micro: int, steps: int, precision: str = "bf16"):
    """A trainer of one way; `ours` as stage two makes it."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from preference.dpo_trainer import ExecutionDPOTrainer, preference_collator
    from sft.checkpoint import load_tokenizer, resolve_model
    from sft.fused_lora import fuse_lora
    from sft.packed_attention import packs_accepted

    model, tokenizer = policy(WAYS[way][1], precision), load_tokenizer(resolve_model("embedded"))
    arguments = DPOConfig(output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=micro,
                          gradient_checkpointing=False, bf16=precision == "bf16", use_cpu=not torch.cuda.is_available(),
                          max_length=None, train_sampling_strategy="sequential", save_strategy="no", report_to="none",
                          learning_rate=1e-6, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0], logging_steps=10,
                          disable_tqdm=True, dataloader_pin_memory=False)
    ids = ("prompt_ids", "chosen_ids", "rejected_ids")
    if way != "ours":
        data = Dataset.from_list([{name: row[name] for name in ids} for row in rows])

        class PlainTrainer(DPOTrainer):
            def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
                return dataset  # token ids already

        return PlainTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer = ExecutionDPOTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
                                  processing_class=tokenizer, data_collator=preference_collator(tokenizer, True))
    trainer.start = {}  # the proof of the first step is no part of the others
    fuse_lora(trainer.model)
    trainer.packs = packs_accepted(trainer.model.get_base_model())
    assert trainer.packs.__enter__()
    return trainer


def checked(rows: list[dict], micro: int, precision: str) -> dict:
    """Differences of loss and gradients of every way from the first, on one micro-batch."""
    found = {}
    for way, (head, _, _) in WAYS.items():
        with lm_head(head):
            found[way] = loss_and_gradients(trainer_of(way, rows, micro, 1, precision), rows[:micro], precision == "bf16")
    return {way: differences(found["trl eager"], found[way]) for way in WAYS if way != "trl eager"}


def main() -> None:
    arguments = arguments_of(__doc__)
    if arguments.memory:
        shape, way = arguments.memory.split(":")
        rows, micro = sized(shape, 2, arguments.quick)
        print(peak_memory_mib(trainer_of(way, rows, micro, 2), WAYS[way][0]))
        return
    results: dict = {}
    for shape in arguments.shape or list(SHAPES):
        # One step to warm up, then the timed ones, in every round.
        timed, rounds = (1, arguments.rounds or 1) if arguments.quick else (2, arguments.rounds or 3)
        rows, micro = sized(shape, timed + 1, arguments.quick)
        if arguments.profile:
            for way in ("trl eager", "ours"):
                print(f"\n{shape}, {way}: two steps\n{profile(trainer_of(way, rows, micro, 2), WAYS[way][0])}")
            continue
        if arguments.scaling:
            print(f"{shape}: {scaling(shape, micro)}")
            continue
        ways = [way for way in WAYS if not (arguments.quick and way == "trl sdpa")]
        seconds = in_turn({way: (WAYS[way][0], partial(trainer_of, way, rows, micro, timed + 1)) for way in ways}, rounds)
        memory = {} if arguments.no_memory else memory_of_each(
            ["trl eager", "ours"] if arguments.quick else ways, shape, ["--quick"] if arguments.quick else [])
        results[shape] = {way: {"rate": rate(seconds[way], micro), "seconds": seconds[way], "private": WAYS[way][2],
                                **({"peak_mib": memory[way]} if way in memory else {})} for way in ways}
        for way, off in checked(rows, min(micro, 2 * SHAPES[shape][2]), "bf16").items():
            if way in results[shape]:
                results[shape][way]["differences"] = off
        if "800" not in shape:
            exact = checked(rows, 2, "fp32")["ours"]
            print(f"{shape}, fp32: relative difference of ours from trl: loss {exact['loss']:.1e}, gradients "
                  f"{exact['gradients']:.1e}, worst tensor {exact['worst_tensor']:.1e}")
            results[shape]["ours"]["differences_fp32"] = exact
    if results:
        report(results, "pairs", arguments.json)


def sized(shape: str, steps: int, quick: bool) -> tuple[list[dict], int]:
    """(pairs for so many steps, pairs in a step) of a shape."""
    prompt, completion, a_question, full, few = SHAPES[shape]
    micro = few if quick else full
    return pairs(prompt, completion, a_question, micro * steps), micro


def scaling(shape: str, micro: int) -> str:
    """Ours on ten times the questions: seconds, and memory."""
    few, many = ([sum(step) for step in [in_turn({"ours": ("ours", partial(trainer_of, "ours", sized(shape, steps + 1, False)[0],
                                                                            micro, steps + 1))}, 1)["ours"]]][0]
                 for steps in (3, 30))
    return f"30 steps take {many / few:.2f} times as long as 3 steps ({many:.1f} s, {few:.1f} s)"


if __name__ == "__main__":
    main()
