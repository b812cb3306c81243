"""Stage one's training: LoRA on the completion's tokens with trl's SFTTrainer, watched by execution accuracy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from tqdm import tqdm

from sft import ranks
from sft.artefacts import content_hash, library_writes, read_parquet, write_json, write_parquet
from sft.order import accumulation_steps, global_batches
from sft.packing import pack
from sft.prompt import completion_ids, prompt_hash, prompt_ids, render, target_text

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

# More rows than this share lost to the length limits would make the training data another than was asked for.
MAX_DROPPED_SHARE = 0.05
GENERAL_TEXT = Path(__file__).with_name("general_text.txt")


TOKENS_SCHEMA = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("completion_ids", pa.list_(pa.int32()))])


def tokenized_rows(tokenizer: PreTrainedTokenizerBase, examples: list[dict], *, schema_style: str,
                   max_prompt_tokens: int, max_completion_tokens: int, keep: Path | None = None) -> list[dict]:
    """Rows {input_ids, labels, schema}: labels are -100 on the prompt, and the ids of query and EOS on the completion.

    Example: prompt ids [5, 6], completion ids [7, 2] -> input_ids [5, 6, 7, 2], labels [-100, -100, 7, 2].
    Rows over the limits are left out and counted; ValueError if they are more than `MAX_DROPPED_SHARE` of all.
    keep: a folder where the token ids stay, under a hash of all that they follow from, for the next start.
    """
    rows, dropped = [], 0
    tokens = _token_ids(tokenizer, examples, schema_style, max_prompt_tokens, keep)
    for example, (prompt, completion) in zip(examples, tokens, strict=True):
        if len(prompt) > max_prompt_tokens or len(completion) > max_completion_tokens:
            dropped += 1
            continue
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion,
                     "schema": content_hash(example["context"])[:16]})
    if ranks.is_main():
        print(f"training rows: {len(examples)} read, {len(rows)} kept, {dropped} dropped as too long "
              f"(prompt over {max_prompt_tokens} or answer over {max_completion_tokens} tokens)")
    if dropped > MAX_DROPPED_SHARE * len(examples):
        raise ValueError(
            f"{dropped} of {len(examples)} training rows are longer than prompt.max_prompt_tokens {max_prompt_tokens} or "
            f"evaluate.max_new_tokens {max_completion_tokens}; at most {MAX_DROPPED_SHARE:.0%} may be lost. Raise the "
            "limits, or use `prompt.schema_style: compact`."
        )
    return rows


def _token_ids(tokenizer, examples: list[dict], schema_style: str, max_prompt_tokens: int,
               keep: Path | None) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of each example."""
    file = None
    if keep:
        texts = [[example.get(name) for name in ("question", "context", "evidence", "answerable", "gold_sql")]
                 for example in examples]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else sorted(tokenizer.get_vocab().items())
        key = content_hash([texts, vocabulary, prompt_hash(tokenizer, schema_style, max_prompt_tokens)])
        file = keep / f"tokens-{key[:16]}.parquet"
    if file and file.exists():
        return [(row["prompt_ids"], row["completion_ids"]) for row in read_parquet(file)]
    bar = tqdm(examples, desc="tokenising", unit="row", disable=not ranks.is_main() or len(examples) < 1000)
    found = [(prompt_ids(tokenizer, render(example, schema_style)), completion_ids(tokenizer, target_text(example)))
             for example in bar]
    if file and ranks.is_main():
        write_parquet(file, [dict(zip(TOKENS_SCHEMA.names, row, strict=True)) for row in found], TOKENS_SCHEMA)
    return found


def finite(log: list[dict]) -> list[dict]:
    """A training log with None for every number that is no number, as JSON needs it."""
    return [{key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
            for row in log]


def in_training_order(rows: list[dict], *, epochs: float, global_batch_size: int, questions_per_pack: int,
                      seed: int) -> Dataset:
    """All rows of all epochs, in the order in which they are trained on (see `sft.order.global_batches`)."""
    from datasets import Dataset

    order = global_batches([len(row["input_ids"]) for row in rows], epochs=epochs, global_batch_size=global_batch_size,
                           groups=[row["schema"] for row in rows], group_size=questions_per_pack, seed=seed)
    return Dataset.from_list([rows[index] for index in order])


def lora_model(base, *, rank: int, alpha: int, dropout: float, gradient_checkpointing: bool, seed: int) -> PeftModel:
    """The base model with a fresh LoRA adapter on every linear layer but the LM head."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    if getattr(base, "is_loaded_in_4bit", False):
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=gradient_checkpointing)
    set_seed(seed)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout,
                                           target_modules="all-linear"))


def completion_collator(tokenizer: PreTrainedTokenizerBase, share_prompts: bool):
    """Rows {input_ids, labels} as a batch padded on the right: input_ids, attention_mask, labels [rows, longest].

    `share_prompts`: and the same rows as `pack` (see `sft.packing`), for a model that accepts packs.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def collator(rows: list[dict]) -> dict:
        ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
        batch = {"input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
                 "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
                 "labels": pad_sequence(labels, batch_first=True, padding_value=-100)}
        if share_prompts:
            batch["pack"] = pack([row["input_ids"] for row in rows], [row["labels"].count(-100) for row in rows])
        return batch

    return collator


def general_text_loss(model, tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean loss (nats a token) on a little general English text: what SFT makes the model forget shows here."""
    import torch

    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, model.dtype == torch.bfloat16):
        for line in GENERAL_TEXT.read_text(encoding="utf-8").splitlines():
            ids = torch.tensor([tokenizer(line, add_special_tokens=False)["input_ids"]], device=model.device)
            logits = model(input_ids=ids).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return total / count


def mark_checkpoint(folder: Path, step: int, **written: int) -> None:
    """Say that the checkpoint of a step is whole: written by all ranks. Call it when the trainer has saved one. `written`: what a
    run that goes on from it must have, too.
    """
    ranks.barrier()
    if ranks.is_main():
        write_json(folder / f"checkpoint-{step}" / "complete.json", {"step": step, **written})


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in a trainer's folder that was not cut short; None where there is none to go on from."""
    whole = {int(mark.parent.name.split("-")[1]): mark.parent for mark in folder.glob("checkpoint-*/complete.json")}
    return str(whole[max(whole)]) if whole else None


def train(model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], folder: Path, *,
          evaluate: Callable[[int], dict], share_prompts: bool, questions_per_pack: int, epochs: float,
          learning_rate: float, warmup_share: float, global_batch_size: int, micro_batch_size: int,
          gradient_checkpointing: bool, evaluations: int, seed: int, bf16: bool, trl: dict) -> dict:
    """Train the adapter; afterwards the model holds the weights of its best evaluation.

    `folder` keeps the checkpoints, from which a run that was interrupted goes on. `evaluate(step)` gives at least
    {"execution_accuracy"}; it runs at `evaluations` evenly spaced steps, the last one included.
    Returns {steps, best_step, evaluations: {step: measures}, log: [...]}.
    """
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sft.fused_lora import fuse_lora
    from sft.packed_attention import attention, packs_accepted
    from sft.scoring import score_completion_only

    score_completion_only()
    fuse_lora(model)
    base, own_attention = model.get_base_model(), model.config._attn_implementation
    dataset = in_training_order(rows, epochs=epochs, global_batch_size=global_batch_size,
                                questions_per_pack=questions_per_pack, seed=seed)
    steps = len(dataset) // global_batch_size
    interval = max(1, -(-steps // evaluations))
    record = folder / "evaluations.json"

    class Watch(TrainerCallback):
        """Evaluates after each checkpoint is saved, so that a checkpoint without its evaluation can be seen to."""

        def __init__(self):
            self.found = json.loads(record.read_text()) if record.exists() else {}

        def measure(self, step: int) -> None:
            check_ranks_agree((parameter for parameter in model.parameters() if parameter.requires_grad), step)
            if str(step) not in self.found:
                with attention(base, own_attention):
                    self.found[str(step)] = evaluate(step)
                if ranks.is_main():
                    write_json(record, self.found)

        def on_train_begin(self, args, state, control, **kwargs):
            if state.global_step:
                self.measure(state.global_step)

        def on_save(self, args, state, control, **kwargs):
            mark_checkpoint(folder, state.global_step)
            self.measure(state.global_step)

    watch = Watch()
    arguments = {
        "output_dir": str(folder), "max_steps": steps, "learning_rate": learning_rate, "lr_scheduler_type": "cosine",
        # A number, since transformers would read a share of 1.0 as one step.
        "warmup_steps": math.ceil(warmup_share * steps), "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(global_batch_size, micro_batch_size, ranks.world_size()),
        "gradient_checkpointing": gradient_checkpointing, "bf16": bf16, "use_cpu": ranks.device() == "cpu", "seed": seed,
        "max_length": None,
        "train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": interval,
        "logging_steps": max(1, steps // 50), "report_to": "tensorboard", "dataloader_pin_memory": False,
        "remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}, **trl,
    }
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent / "tensorboard")
    with packs_accepted(base, wanted=share_prompts) as packs:
        trainer = SFTTrainer(model=model, args=SFTConfig(**arguments), train_dataset=dataset, processing_class=tokenizer,
                             data_collator=completion_collator(tokenizer, packs), callbacks=[watch])
        with library_writes(folder):
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    best = max(watch.found, key=lambda step: (watch.found[step]["execution_accuracy"], -int(step)))
    weights = load_peft_weights(str(folder / f"checkpoint-{best}"), device=str(model.device))
    set_peft_model_state_dict(model, weights)
    return {"steps": steps, "best_step": int(best), "evaluations": watch.found, "log": finite(trainer.state.log_history)}


def check_ranks_agree(trained: Iterable[torch.Tensor], step: int) -> None:
    """Raise ValueError, on all ranks, where they hold different weights (`trained`, whole): each then trains a model of its own,
    on its share of the rows, which no loss shows. Compared are sums of absolute values; machines of different kinds may round
    the last digits differently.
    """
    found = ranks.gather(sum(tensor.detach().double().abs().sum().item() for tensor in trained))
    if max(found) - min(found) > 1e-5 * max(found):
        raise ValueError(f"the ranks hold different adapters at step {step} (sums of their weights: "
                         f"{', '.join(f'{total:.6g}' for total in found)}): their gradients are not added up. Train on one rank, and "
                         "report this.")


# The names of trl's arguments that keys of ours already set, that would change tokens or rows which are made here, or nothing.
RESERVED = {"output_dir", "max_steps", "num_train_epochs", "learning_rate", "warmup_steps", "seed", "bf16", "fp16", "use_cpu",
            "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "save_strategy",
            "save_steps", "train_sampling_strategy", "deepspeed", "max_length", "remove_unused_columns", "dataset_kwargs",
            "save_total_limit", "save_only_model", "load_best_model_at_end", "eval_strategy", "eval_on_start", "resume_from_checkpoint",
            "eos_token", "pad_token", "packing", "packing_strategy", "padding_free", "eval_packing", "shuffle_dataset",
            "chat_template_path", "dataset_text_field", "dataset_num_proc", "completion_only_loss", "assistant_only_loss"}
