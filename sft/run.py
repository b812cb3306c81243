"""Stage one: LoRA supervised fine-tuning on question / schema / SQL.

    accelerate launch sft/run.py [--config FILE] [--set key=value ...]

Reads the configuration (default configs/sft.yaml), audits the data, measures the base model's execution accuracy on
the development rows, trains, and leaves the best adapter in RUN/sft. Finished steps are skipped; a run that was
interrupted goes on where it stopped.
"""

import sys
from pathlib import Path


# Keys that change how a result is computed, not which result: a run may go on with others.
HOW_NOT_WHAT = {"micro_batch_size", "share_prompts", "gradient_checkpointing", "attention"}


def main() -> None:
    from sft.command_line import sister, stage_arguments, stage_command
    from sft.configuration import SftConfig, read_configuration

    arguments = stage_arguments(__doc__, "sft.yaml").parse_args()
    from sft import ranks

    try:
        config = read_configuration(SftConfig, arguments.config, arguments.settings)
        ranks.prepare_environment(distributed=False)
        run(config, arguments.overwrite, stage_command("dpo", sister(arguments.config, "sft", "dpo"), [f"run={config.run}"]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def run(config, overwrite: bool, next_command: str) -> None:
    """The stage, from top to bottom; `next_command` is told at the end."""
    import os
    import shutil
    import time

    from sft import ranks
    from sft.artefacts import content_hash, file_hash, is_complete, mark_complete, write_json
    from sft.checkpoint import fingerprint, load_base, load_tokenizer, precision_dtype, resolve_model, save_adapter
    from sft.examples import load, prepare
    from sft.order import accumulation_steps
    from sft.prompt import prompt_hash
    from sft.records import peak_memory_bytes, save_configuration, write_card
    from sft.trl_arguments import validate_trl

    # ------------------------------------------------------------------ what is asked for
    started = time.time()
    # LoRA needs no ZeRO here: stage one is plain data parallelism under every launch configuration.
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    from trl import SFTConfig

    from sft.training import RESERVED

    validate_trl(config.train.trl, SFTConfig, RESERVED)
    ranks.start(zero=False)
    accumulation_steps(config.train.global_batch_size, config.train.micro_batch_size, ranks.world_size())
    folder = Path(config.run)
    output = folder / "sft"
    if ranks.is_main():
        print(f"stage one -> {output}: {ranks.world_size()} rank(s) with {ranks.threads_per_rank()} thread(s) each")

    # ------------------------------------------------------------------ data
    if ranks.is_main():
        data = config.data
        prepare(folder / "data", source=data.source, dev=data.dev, test=data.test, columns=dict(data.columns),
                limits={"train": data.train_limit, "dev": data.dev_limit, "test": data.test_limit}, seed=config.seed,
                workers=config.judge.workers or ranks.cores(), preference_share=data.preference_share, databases=config.judge.databases,
                distractors=data.distractors, overwrite=overwrite)
        resolve_model(config.model, config.trust_remote_code)
    ranks.barrier()
    base_path = resolve_model(config.model, config.trust_remote_code)
    train_rows, dev_rows = load(folder / "data", "train"), load(folder / "data", "dev")

    # ------------------------------------------------------------------ model
    tokenizer = load_tokenizer(base_path, config.trust_remote_code)
    prompt = prompt_hash(tokenizer, config.prompt.schema_style, config.prompt.max_prompt_tokens)
    inputs = {
        "model": config.model, "base": fingerprint(base_path), "prompt_hash": prompt, "seed": config.seed,
        "data": content_hash([file_hash(folder / "data" / f"{split}.parquet") for split in ("train", "dev")]),
        "train": config.train.model_dump(exclude=HOW_NOT_WHAT), "databases": config.judge.databases,
        "max_new_tokens": config.evaluate.max_new_tokens,
    }
    complete = ranks.gather(is_complete(output, inputs, overwrite) if ranks.is_main() else None)[0]
    if complete:
        if ranks.is_main():
            print(f"{output} is complete for these settings; nothing to do")
            save_configuration(folder, "sft", config.model_dump())  # its data may be others, e.g. another test file
        ranks.finish()
        return
    if ranks.is_main():
        save_configuration(folder, "sft", config.model_dump())
    base = load_base(base_path, precision=config.train.precision, attention=config.train.attention,
                     load_in_4bit=config.train.load_in_4bit, trust_remote_code=config.trust_remote_code,
                     place=ranks.device())

    # ------------------------------------------------------------------ base model, training, best adapter
    from sft.evaluation import evaluate
    from sft.training import general_text_loss, lora_model, tokenized_rows, train

    def measure(model, description: str) -> dict:
        found = evaluate(model, tokenizer, dev_rows, schema_style=config.prompt.schema_style, description=description,
                         **config.evaluate.model_dump(), **config.judge.model_dump(), seed=config.seed)
        if ranks.is_main():
            print(f"{description}: execution accuracy {found['execution_accuracy']:.1%} of {found['n']} development "
                  f"questions, valid SQL {found['valid_sql']:.1%}")
        return found

    rows = tokenized_rows(tokenizer, train_rows, schema_style=config.prompt.schema_style,
                          max_prompt_tokens=config.prompt.max_prompt_tokens,
                          max_completion_tokens=config.evaluate.max_new_tokens, keep=folder / "data")
    before = measure(base, "base model")
    general_before = general_text_loss(base, tokenizer)
    model = lora_model(base, rank=config.train.lora_rank, alpha=config.train.lora_alpha,
                       dropout=config.train.lora_dropout, gradient_checkpointing=config.train.gradient_checkpointing,
                       seed=config.seed)
    trainable, total = model.get_nb_trainable_parameters()
    if ranks.is_main():
        print(f"LoRA: {trainable:,} of {total:,} parameters are trained ({trainable / total:.2%})")
    keys = ("epochs", "learning_rate", "warmup_share", "global_batch_size", "micro_batch_size",
            "share_prompts", "questions_per_pack", "gradient_checkpointing", "evaluations", "trl")
    result = train(model, tokenizer, rows, output / "checkpoints", seed=config.seed,
                   evaluate=lambda step: measure(model, f"SFT step {step}"),
                   bf16="bfloat16" in str(precision_dtype(config.train.precision)),
                   **{key: getattr(config.train, key) for key in keys})

    # ------------------------------------------------------------------ save, reload, compare
    if ranks.is_main():
        provenance = {"stage": "sft", "model": config.model, "base_fingerprint": inputs["base"], "prompt_hash": prompt,
                      "prompt": config.prompt.model_dump(), "seed": config.seed,
                      "load_in_4bit": config.train.load_in_4bit}
        if Path(config.model).is_dir() and config.model != "embedded":
            provenance["model_folder"] = str(Path(config.model).resolve())
        save_adapter(model, tokenizer, output, provenance)
        difference = reload_difference(model, tokenizer, output, dev_rows[:4], config.prompt.schema_style)
        if not difference <= 1e-3:
            raise ValueError(f"the adapter saved in {output} gives other logits when it is loaded again (difference "
                             f"{difference:.4f}, allowed 0.001): the files are damaged. Free disk space and run again.")
        after = result["evaluations"][str(result["best_step"])]
        facts = {
            "trainable_parameters": trainable, "trainable_share": trainable / total,
            "adapter_bytes": (output / "adapter_model.safetensors").stat().st_size,
            "peak_memory_bytes": peak_memory_bytes(), "duration_s": round(time.time() - started, 1),
            "forgetting": {"before": general_before, "after": general_text_loss(model, tokenizer)},
            "dev_before": before, "dev_after": after, "reload_difference": difference, **result,
        }
        write_json(output / "training.json", facts)
        write_card(output, "sft", config.model_dump(), facts)
        mark_complete(output, inputs, {"train": len(rows), "dev": before["n"]})
        shutil.rmtree(output / "checkpoints")
        print(f"stage one done in {facts['duration_s']:.0f} s: development accuracy {before['execution_accuracy']:.1%} "
              f"-> {after['execution_accuracy']:.1%}; adapter in {output}\n"
              f"next: {next_command}")
    ranks.barrier()
    ranks.finish()


def reload_difference(model, tokenizer, folder: Path, examples: list[dict], schema_style: str) -> float:
    """Largest difference of the logits between the model in memory and the adapter read back from `folder`."""
    import torch

    from sft.prompt import prompt_ids, render

    ids = [torch.tensor([prompt_ids(tokenizer, render(example, schema_style))], device=model.device)
           for example in examples]
    model.eval()
    with torch.inference_mode():
        mine = [model(input_ids=row).logits.float() for row in ids]
        model.load_adapter(str(folder), "reloaded", is_trainable=False)
        model.set_adapter("reloaded", inference_mode=True)
        again = [model(input_ids=row).logits.float() for row in ids]
    model.set_adapter("default")
    model.delete_adapter("reloaded")
    return max((a - b).abs().max().item() for a, b in zip(mine, again, strict=True))


if __name__ == "__main__":
    main()
