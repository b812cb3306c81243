"""A DPO step, ours and trl's DPOTrainer in turn on the same pairs: pairs a second, memory, loss and gradients.

    python tests/benchmarks/dpo_step.py [--quick] [--shape NAME] [--json FILE] [--profile] [--scaling]

trl's way is taken with its public options set as well as they can be here: bf16, no checkpointing, both attentions,
micro-batches that fit. Beside it, marked as private, trl with its LM head on completion positions only, which no option of
trl's switches on for a CPU. Pairs are random tokens, so chosen and rejected share the prompt and nothing else. Every step
computes the reference.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from training_steps import VOCABULARY, WAYS, Clock, Work, benchmark, policy

# Mean tokens of prompt and completion, pairs of a question, pairs in a step and in a micro-batch of trl's and of ours; with
# --quick half the step and micro-batches, but for the questions with several pairs, where only trl's step is cut, to one pair.
SHAPES = {
    "prompt 90, completion 25": (90, 25, 1, 8, 8, 8),
    "prompt 800, completion 40": (800, 40, 1, 2, 1, 1),
    "prompt 800, completion 40, 4 pairs": (800, 40, 4, 4, 1, 4),
}


def work_of(shape: tuple, steps: int, quick: bool) -> Work:
    """Pairs of random tokens, prompts within a fifth and completions within two fifths of their mean length."""
    prompt, completion, a_question, step, plain_micro, our_micro = shape
    if quick and a_question == 1:
        step, plain_micro, our_micro = step // 2, max(1, plain_micro // 2), max(1, our_micro // 2)
    chance, rows = random.Random(0), []

    def tokens(mean: int, spread: float) -> list[int]:
        return [chance.randrange(10, VOCABULARY) for _ in range(round(mean * chance.uniform(1 - spread, 1 + spread)))]

    for number in range(step * steps):
        if number % a_question == 0:
            question = [1, *tokens(prompt - 1, 0.2)]
        sides = {f"{side}_ids": [*tokens(completion - 1, 0.4), 2] for side in ("chosen", "rejected")}
        rows.append({"prompt_ids": question, **sides, "sft_chosen_logps": None, "sft_rejected_logps": None})
    # trl takes each pair by itself, so one of a question's pairs shows its speed as well.
    return Work(rows, plain_micro if quick and a_question > 1 else step, step, plain_micro, our_micro)


def trainer_of(way: str, work: Work, steps: int, precision: str):
    """A trainer of one way; `ours` as stage two makes it."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from preference.dpo_trainer import ExecutionDPOTrainer, preference_collator
    from sft.checkpoint import load_tokenizer, resolve_model
    from sft.fused_lora import fuse_lora
    from sft.packed_attention import packs_accepted

    class PlainTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            return dataset  # token ids already

    micro = work.micro(way)
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=micro,
        gradient_accumulation_steps=work.step(way) // micro, gradient_checkpointing=False, bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(), max_length=None, train_sampling_strategy="sequential", save_strategy="no",
        report_to="none", learning_rate=1e-6, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0], logging_steps=10,
        disable_tqdm=True, dataloader_pin_memory=False)
    given = {"model": policy(WAYS[way].attention, precision), "args": arguments, "callbacks": [Clock()],
             "processing_class": load_tokenizer(resolve_model("embedded"))}
    data = Dataset.from_list(work.rows)
    if way != "ours":
        return PlainTrainer(train_dataset=data.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]), **given)
    trainer = ExecutionDPOTrainer(train_dataset=data, **given,
                                  data_collator=preference_collator(given["processing_class"], share_prompts=True))
    trainer.start = {}  # the proof of the first step is no part of the others
    fuse_lora(trainer.model)
    # For as long as the trainer lives.
    trainer.packs = packs_accepted(trainer.model.get_base_model())
    assert trainer.packs.__enter__()
    return trainer


if __name__ == "__main__":
    benchmark(__doc__, "pairs", SHAPES, work_of, trainer_of)
