"""DPO with LoRA under DeepSpeed ZeRO: trl's trainer, our token ids, and proof that it starts where SFT ended."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trl import DPOConfig

from preference.dpo_trainer import ExecutionDPOTrainer, preference_collator
from preference.guards import Guards, gathered_adapter
from preference.loss_terms import check_terms
from preference.pairs import is_graded
from preference.reference import ReferenceLogps
from sft import ranks
from sft.artefacts import content_hash, library_writes
from sft.fused_lora import fuse_lora
from sft.order import accumulation_steps, global_batches
from sft.packed_attention import packs_accepted
from sft.prompt import completion_ids, prompt_ids
from sft.scoring import score_completion_only
from sft.training import MAX_DROPPED_SHARE, check_ranks_agree, finite, last_whole_checkpoint, mark_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# The names of trl's arguments that keys of ours already set, or that would change nothing: rows are tokenised and padded here.
RESERVED = {"output_dir", "max_steps", "num_train_epochs", "learning_rate", "warmup_steps", "beta", "loss_type",
            "loss_weights", "label_smoothing", "per_device_train_batch_size", "gradient_accumulation_steps",
            "gradient_checkpointing", "seed", "bf16", "fp16", "use_cpu", "max_length", "save_strategy", "save_steps",
            "deepspeed", "train_sampling_strategy", "save_total_limit", "save_only_model", "load_best_model_at_end",
            "eval_strategy", "precompute_ref_log_probs", "remove_unused_columns", "truncation_mode", "pad_to_multiple_of",
            "padding_free", "label_smoothing_factor", "resume_from_checkpoint", "eval_on_start", "discopop_tau",
            "ref_model_mixup_alpha", "ref_model_sync_steps", "precompute_ref_batch_size"}


def zero_settings(stage: int, offload: str) -> tuple[int, str]:
    """The ZeRO stage and offload device to use: those of accelerate's launch configuration where it names a stage."""
    # accelerate would refuse our DeepSpeed configuration beside fields of its own, although it has just been handed over.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    if file := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        raise ValueError(f"the launch configuration names the DeepSpeed file {file}, which is not read. Allowed are "
                         "zero_stage and the offload devices under deepspeed_config, as in launch/gpus-zero3.yaml.")
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", "false") == "true" and "ACCELERATE_DEEPSPEED_ZERO_STAGE" in os.environ:
        stage = int(os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"])
        devices = {os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"),
                   os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE")}
        offload = "cpu" if "cpu" in devices else "none"
        if ranks.is_main():
            print(f"ZeRO stage {stage}, offload {offload}: as the launch configuration says")
    return stage, offload


def deepspeed_configuration(*, stage: int, offload: str, bf16: bool, global_batch_size: int,
                            micro_batch_size: int) -> dict | None:
    """DeepSpeed's configuration; None for stage 0, which is plain data parallelism without DeepSpeed."""
    if stage == 0:
        return None
    zero: dict = {"stage": stage, "overlap_comm": False}
    if offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    if stage == 3:
        # Checkpoints hold the partitions; the adapter is gathered once, at the end (`gathered_adapter`).
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    return {
        "train_batch_size": global_batch_size, "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(global_batch_size, micro_batch_size, ranks.world_size()),
        "gradient_clipping": "auto", "zero_optimization": zero, "bf16": {"enabled": bf16},
        # trl's AdamW is torch's own, on the CPU as on GPUs: nothing is compiled at the first start.
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }


def tokenized_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[dict], *, max_length: int, epochs: float,
                    global_batch_size: int, seed: int, steps: int | None = None) -> Dataset:
    """Pairs as token ids, all epochs (or `steps`) in training order: prompt_ids, chosen_ids and rejected_ids (both ended by
    EOS); each with its margin (0 where it has none), weight (1), and whether its chosen side is an answer (not in graded pairs).

    Pairs of one question stand together, and inside a global batch questions about one schema do, so that micro-batches can
    share prompts. Pairs whose longer side passes `max_length` tokens are left out and counted, never cut: trl would cut
    off the EOS.
    """
    from datasets import Dataset

    rows, questions, schemas = [], [], []
    for pair in pairs:
        prompt = prompt_ids(tokenizer, pair["prompt"])
        sides = {f"{side}_ids": completion_ids(tokenizer, pair[side][-1]["content"]) for side in ("chosen", "rejected")}
        if len(prompt) + max(map(len, sides.values())) <= max_length:
            # A text that encodes to other tokens than were sampled has another log-probability than theirs.
            logps = {f"sft_{side}_logps": pair.get(f"{side}_logp_sum") if pair.get(f"{side}_tokens_round_trip") else None
                     for side in ("chosen", "rejected")}
            terms = {"margin": pair.get("margin") or 0.0, "weight": 1.0 if pair.get("weight") is None else pair["weight"],
                     "answer": not is_graded(pair)}
            rows.append({"prompt_ids": prompt, **sides, **logps, **terms})
            questions.append(content_hash(prompt))
            schemas.append(content_hash(pair.get("context", prompt)))
    dropped = len(pairs) - len(rows)
    if ranks.is_main():
        print(f"pairs: {len(pairs)} read, {len(rows)} kept, {dropped} dropped as longer than {max_length} tokens")
    if dropped > MAX_DROPPED_SHARE * len(pairs):
        raise ValueError(
            f"{dropped} of {len(pairs)} pairs are longer than train.max_length {max_length} tokens; at most "
            f"{MAX_DROPPED_SHARE:.0%} may be lost. Raise train.max_length."
        )
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    order = global_batches(lengths, epochs=epochs, steps=steps, global_batch_size=global_batch_size, seed=seed,
                           groups=questions, group_size=global_batch_size, families=schemas)
    return Dataset.from_list([rows[index] for index in order])


def allow_bf16_on_cpu() -> None:
    """Let transformers accept bf16 on a CPU without `use_cpu`, which would silently go round DeepSpeed.

    Its check knows bf16 on GPUs only (transformers 5.23, `TrainingArguments._validate_args`); whether the CPU computes
    bf16 was found out before (`sft.checkpoint.precision_dtype`).
    """
    import transformers.training_args

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True


def join_ranks_on_cpu() -> None:
    """Let accelerate see the ranks of a DeepSpeed run on the CPU.

    Where there is no accelerator it finds no backend, and takes each rank for a run of its own: with the same rows, and a
    smaller global batch (accelerate 1.15, `PartialState`). The ranks are joined over gloo (`sft.ranks.start`).
    """
    from accelerate import PartialState

    find = PartialState._prepare_backend

    def prepare_backend(self, *arguments, **keywords):
        backend, distributed_type = find(self, *arguments, **keywords)
        return backend or "gloo", distributed_type

    PartialState._prepare_backend = prepare_backend


def check_resumable(checkpoint: str | None, world_size: int, stage: int) -> None:
    """ValueError for a checkpoint that DeepSpeed cannot go on from: it reads back only what as many ranks wrote under the same stage.
    """
    if checkpoint is None:
        return
    there = json.loads((Path(checkpoint) / "complete.json").read_text(encoding="utf-8"))
    written, now = (there.get("ranks", world_size), there.get("zero_stage", stage)), (world_size, stage)
    if written != now and (stage or written[1]):
        raise ValueError(f"{checkpoint} was written by {written[0]} rank(s) under ZeRO stage {written[1]}; this run has {now[0]} "
                         f"under stage {now[1]}. DeepSpeed goes on only with as many ranks and the same stage. Start it as it was "
                         f"begun, or delete {Path(checkpoint).parent} to train this round from its start.")


def train_dpo(load_policy, tokenizer: PreTrainedTokenizerBase, pairs: list[dict], folder: Path, *, epochs: float,
              learning_rate: float, warmup_share: float, beta: float, loss_type: list[str], loss_weights: list[float],
              label_smoothing: float, global_batch_size: int, micro_batch_size: int, share_prompts: bool,
              gradient_checkpointing: bool, max_length: int, save_steps: int, zero_stage: int, offload: str, bf16: bool,
              seed: int, trl: dict, checkpoint: str, steps: int | None = None, margin_scale: float = 0.0,
              shared_token_weight: float = 1.0, reference_weight: float = 1.0, guards: dict | None = None,
              evaluate: Callable | None = None, sft: dict | None = None) -> tuple[object, dict, dict]:
    """Train; gives (model, the whole weights of the adapter to keep, facts: {steps, start, log, and with guards theirs}).

    `load_policy()` gives the base model with the SFT adapter, trainable; it is called once ZeRO is set up, so that
    stage 3 partitions the weights while they load. `folder` keeps the checkpoints, from which an interrupted run goes
    on; the frozen reference is always copied from the SFT adapter, never read from a checkpoint. Where pairs come more than
    once, the reference's log-probabilities are computed once and kept in the folder above, under `checkpoint`, the hash of
    the SFT adapter. The columns `margin` and `weight` of the pairs enter the loss as `preference.loss_terms` says.

    `guards`: the keys of that section; `evaluate(model, step)` gives what they watch, {execution_accuracy, valid_sql,
    ended_with_eos, ...}; in a later round `sft` is what they gave for the SFT adapter. With guards.keep: best the adapter to
    keep is that of the best guard step, not the model's own. Raises ValueError where its weights are no numbers any more.
    """
    from transformers import TrainerCallback

    class Mark(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            mark_checkpoint(folder, state.global_step, ranks=ranks.world_size(), zero_stage=stage)

    check_terms(pairs, loss_type=loss_type, margin_scale=margin_scale)
    score_completion_only()
    stage, offload = zero_settings(zero_stage, offload)
    if ranks.device() == "cpu":
        if stage:
            join_ranks_on_cpu()
        if bf16:
            allow_bf16_on_cpu()
    dataset = tokenized_pairs(tokenizer, pairs, max_length=max_length, epochs=epochs, steps=steps,
                              global_batch_size=global_batch_size, seed=seed)
    steps = len(dataset) // global_batch_size
    arguments = DPOConfig(**{
        "output_dir": str(folder), "max_steps": steps, "learning_rate": learning_rate, "lr_scheduler_type": "cosine",
        # A number, since transformers would read a share of 1.0 as one step.
        "warmup_steps": math.ceil(warmup_share * steps), "beta": beta, "loss_type": loss_type, "loss_weights": loss_weights,
        "label_smoothing": label_smoothing, "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(global_batch_size, micro_batch_size, ranks.world_size()),
        "gradient_checkpointing": gradient_checkpointing, "bf16": bf16, "seed": seed, "max_length": None,
        "train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": save_steps,
        # Without DeepSpeed, ranks on the CPU would each train a model of their own; with it, use_cpu goes round it.
        "use_cpu": stage == 0 and ranks.device() == "cpu",
        # Two, since the newest may be cut short.
        "save_total_limit": 2, "logging_steps": max(1, steps // 25), "report_to": "tensorboard", "dataloader_pin_memory": False,
        "deepspeed": deepspeed_configuration(stage=stage, offload=offload, bf16=bf16,
                                             global_batch_size=global_batch_size, micro_batch_size=micro_batch_size),
        **trl,
    })
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent / "tensorboard")
    model = load_policy()
    fuse_lora(model)
    own_attention, guard = model.config._attn_implementation, None
    with packs_accepted(model.get_base_model(), wanted=share_prompts) as packs:
        trainer = ExecutionDPOTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer,
                                      data_collator=preference_collator(tokenizer, packs, margin_scale,
                                                                        shared_token_weight != 1.0),
                                      callbacks=[Mark()])
        trainer.shared_token_weight, trainer.reference_weight = shared_token_weight, reference_weight
        if guards and guards["every_steps"]:
            guard = Guards(trainer, folder, evaluate=evaluate, own_attention=own_attention, sft=sft, **guards)
            trainer.add_callback(guard)
        reference = ReferenceLogps(folder.parent / "reference_logps.jsonl",
                                   [checkpoint, bf16, trainer.ld_alpha,
                                    *([shared_token_weight] if shared_token_weight != 1.0 else [])])
        if len({reference.key(row) for row in dataset}) < len(dataset):
            folder.mkdir(parents=True, exist_ok=True)
            trainer.reference = reference
        checkpoint_folder = last_whole_checkpoint(folder)
        check_resumable(checkpoint_folder, ranks.world_size(), stage)
        with library_writes(folder):
            trainer.train(resume_from_checkpoint=checkpoint_folder)
    facts = {"steps": trainer.state.global_step, "zero_stage": stage, "offload": offload, "start": trainer.start,
             "log": finite(trainer.state.log_history)}
    state = gathered_adapter(trainer.model)
    check_ranks_agree(state.values(), facts["steps"])
    if guard:
        state = guard.kept_weights(state)
        facts |= guard.facts()
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ValueError(f"after {facts['steps']} steps weights of the adapter are no numbers: training diverged. Lower "
                         f"train.learning_rate (found {learning_rate}), or let the guards keep an earlier step "
                         f"(guards.every_steps, guards.keep=best). What was trained stands in {folder}: delete it, and run again.")
    # DeepSpeed's hooks on gradients would keep the engine, with model and optimiser, as long as this process lives.
    trainer.accelerator.free_memory()
    return trainer.model, state, facts
