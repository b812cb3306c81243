"""Stage two: preference learning from execution, on top of a finished stage one.

    accelerate launch preference/dpo.py [--config FILE] [--set key=value ...] [--only sample|judge|pairs|train]

Samples candidates from the SFT adapter in RUN/sft, executes them against SQLite, builds pairs of a correct and a wrong
query, and trains DPO with LoRA under DeepSpeed ZeRO, with the frozen SFT adapter as reference. Every step leaves a file
in RUN/round-1, is skipped when that is complete for the same inputs, and goes on where it was interrupted.
"""

import sys
from pathlib import Path

STEPS = ("sample", "judge", "pairs", "train")
# Keys that change how a result is computed, not which result: a run may go on with others.
HOW_NOT_WHAT = {"micro_batch_size", "share_prompts", "save_steps", "gradient_checkpointing", "attention"}


def main() -> None:
    from sft.configuration import DpoConfig, read_configuration, stage_arguments

    parser = stage_arguments(__doc__, "dpo.yaml")
    parser.add_argument("--only", choices=STEPS, help="run this step alone; those before it must be complete")
    arguments = parser.parse_args()
    from sft import ranks

    try:
        config = read_configuration(DpoConfig, arguments.config, arguments.settings)
        ranks.prepare_environment(distributed=True)
        run(config, (arguments.only,) if arguments.only else STEPS, arguments.overwrite, stage_one(arguments.config))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def stage_one(config: Path) -> str:
    """The command of stage one that belongs to a configuration of stage two: that of its sister file."""
    sister = config.with_name(config.name.replace("dpo", "sft", 1))
    default = sister.name == "sft.yaml" or not sister.exists()
    return "accelerate launch sft/run.py" + ("" if default else f" --config {sister}")


def run(config, steps: tuple[str, ...], overwrite: bool, sft_command: str) -> None:
    """The stage, from top to bottom; every step is a function of files."""
    import random

    from preference.controls import as_control
    from preference.inspection.training import label_smoothing, preferred_by_people, with_peoples_words
    from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA, build_pairs
    from preference.sampling import judge, print_yield, sample
    from sft import ranks
    from sft.artefacts import file_hash, is_complete, mark_complete, read_parquet, write_parquet
    from sft.checkpoint import (
        checkpoint_hash,
        load_for_inference,
        load_tokenizer,
        precision_dtype,
        read_provenance,
        release_memory,
    )
    from sft.configuration import validate_trl
    from sft.examples import load
    from sft.order import accumulation_steps
    from sft.prompt import check_prompt_hash, prompt_hash
    from sft.records import read_stage_configuration, save_configuration

    # ------------------------------------------------------------------ what is there
    folder = Path(config.run)
    labels_file = folder / "labels.sqlite"  # people's words on pairs: only read here
    sft_config = read_stage_configuration(folder, "sft", f"{sft_command} --set run={folder}")
    adapter = folder / "sft"
    if not (adapter / "complete.json").exists():
        raise ValueError(f"{adapter} holds no finished adapter. Make it first (it goes on where it stopped):\n"
                         f"  {sft_command} --set run={folder}")
    provenance = read_provenance(adapter)
    tokenizer = load_tokenizer(adapter)
    schema_style = provenance["prompt"]["schema_style"]
    prompt = prompt_hash(tokenizer, schema_style, provenance["prompt"]["max_prompt_tokens"])
    check_prompt_hash(provenance["prompt_hash"], prompt, str(adapter))
    ranks.start(zero=True)
    if "train" in steps:  # said now rather than after hours of sampling
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
    if ranks.is_main():
        print(f"stage two -> {folder}: {ranks.world_size()} rank(s) with {ranks.threads_per_rank()} thread(s) each")
    examples = [example for example in load(folder / "data", "train") if example["answerable"]]
    random.Random(f"{config.seed}:sample").shuffle(examples)
    # Questions on one schema stand together: the sampler computes the schema once.
    examples = sorted(examples[: config.sample.questions], key=lambda example: example["context"])
    place = folder / "round-1"
    candidates, verdicts, pairs_file = (place / f"{name}.parquet" for name in ("candidates", "verdicts", "pairs"))
    weights = checkpoint_hash(adapter)

    def pending(step: str, target: Path, inputs: dict) -> bool:
        """Whether a step is to be run: asked for, and not complete for these inputs. All ranks agree."""
        if step not in steps:
            return False
        found = ranks.gather(is_complete(target, inputs, overwrite) if ranks.is_main() else None)[0]
        if ranks.is_main():
            if found:
                print(f"{step}: {target} is complete for these settings")
            else:  # only now: settings that were refused leave no trace
                save_configuration(folder, "dpo", config.model_dump())
        return not found

    def output_of(path: Path, step: str) -> str:
        """Hash of an earlier step's file; ValueError where that step is not complete."""
        if not path.with_suffix(".complete.json").exists():
            raise ValueError(f"{path} is missing or unfinished. Make it first: accelerate launch preference/dpo.py "
                             f"--set run={folder} --only {step}")
        return file_hash(path)

    # ------------------------------------------------------------------ sample
    sampling = config.sample.model_dump(exclude={"questions", "shard_size", "batch_size"})
    inputs = {"checkpoint": weights, "prompt_hash": prompt, "seed": config.seed, "shard_size": config.sample.shard_size,
              "questions": len(examples), "data": file_hash(folder / "data" / "train.parquet"), **sampling}
    sampler = sampling.pop("sampler")
    if pending("sample", candidates, inputs):
        trusted = sft_config["trust_remote_code"]
        if sampler == "vllm":
            from sft.vllm_sampler import generate, load

            model = load(adapter, dtype=str(precision_dtype(config.train.precision)).removeprefix("torch."),
                         max_tokens=provenance["prompt"]["max_prompt_tokens"] + config.sample.max_new_tokens,
                         trust_remote_code=trusted)
        else:
            from sft.sampler import generate

            model, _, _ = load_for_inference(adapter, precision=config.train.precision, merge=True, place=ranks.device(),
                                             attention=config.train.attention, trust_remote_code=trusted)
        sample(candidates, inputs, examples, generate, model, tokenizer, schema_style=schema_style, seed=config.seed,
               batch_size=config.sample.batch_size, shard_size=config.sample.shard_size, round_number=1,
               checkpoint_hash=weights, prompt_hash=prompt, **sampling)
        del model
        release_memory()

    # ------------------------------------------------------------------ judge
    if "judge" in steps:
        inputs = {"candidates": output_of(candidates, "sample"), "databases": config.judge.databases, "seed": config.seed}
        if pending("judge", verdicts, inputs):
            judge(verdicts, inputs, examples, candidates, shard_size=config.sample.shard_size, seed=config.seed,
                  **config.judge.model_dump())

    # ------------------------------------------------------------------ pairs
    if "pairs" in steps:
        inputs = {"candidates": output_of(candidates, "sample"), "verdicts": output_of(verdicts, "judge"),
                  "seed": config.seed, **config.pairs.model_dump()}
        if pending("pairs", pairs_file, inputs) and ranks.is_main():
            found = examples, read_parquet(candidates), read_parquet(verdicts)
            rows, dropped = build_pairs(*found, seed=config.seed, schema_style=schema_style,
                                        vouched=preferred_by_people(folder), **config.pairs.model_dump(exclude={"control"}))
            rows, dropped = with_peoples_words(rows, dropped, folder, *found, schema_style)
            rows, dropped = as_control(config.pairs.control, rows, dropped, *found[1:], seed=config.seed)
            write_parquet(place / "dropped.parquet", dropped, DROPPED_SCHEMA)
            write_parquet(pairs_file, rows, PAIRS_SCHEMA)
            mark_complete(pairs_file, inputs, {"pairs": len(rows), "dropped": len(dropped)})
        ranks.barrier()
        if ranks.is_main():
            print_yield(place)

    # ------------------------------------------------------------------ train
    if "train" in steps:
        inputs = {"pairs": output_of(pairs_file, "pairs"), "checkpoint": weights, "prompt_hash": prompt,
                  "seed": config.seed, "train": config.train.model_dump(exclude=HOW_NOT_WHAT | {"label_noise"}),
                  "max_new_tokens": config.evaluate.max_new_tokens}
        if config.train.label_noise is not None:
            share = label_smoothing(config.train.label_noise, pairs_file, labels_file) if ranks.is_main() else None
            inputs["label_smoothing"] = ranks.gather(share)[0]
        if pending("train", place / "dpo", inputs):
            from preference.dpo_stage import train_and_publish

            train_and_publish(config, sft_config, folder, tokenizer, read_parquet(pairs_file), inputs)
    ranks.finish()


if __name__ == "__main__":
    main()
