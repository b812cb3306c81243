"""Stage two: preference learning from execution, on top of a finished stage one.

    accelerate launch preference/dpo.py [--config FILE] [--set key=value ...] [--only sample|judge|pairs|train]

Samples candidates from the SFT adapter in RUN/sft, executes them against SQLite, builds pairs of a correct and a wrong
query, and trains DPO with LoRA under DeepSpeed ZeRO, with the frozen SFT adapter as reference; then as often as `rounds`
says, each time from the adapter of the round before. Every step leaves a file in RUN/round-1 (2, 3, ...), is skipped when
that is complete for the same inputs, and goes on where it was interrupted. RUN/best is the best adapter on dev.
"""

import sys
from pathlib import Path

STEPS = ("sample", "judge", "pairs", "train")


def main() -> None:
    from sft.command_line import sister, stage_arguments, stage_command
    from sft.configuration import DpoConfig, read_configuration

    parser = stage_arguments(__doc__, "dpo.yaml")
    parser.add_argument("--only", choices=STEPS, help="run this step alone, in the first round that is not finished, or whose "
                        "pairs or start have changed (the last where there is none); the steps before it must be complete")
    arguments = parser.parse_args()
    from sft import ranks

    try:
        config = read_configuration(DpoConfig, arguments.config, arguments.settings)
        ranks.prepare_environment(distributed=True)
        run(config, (arguments.only,) if arguments.only else STEPS, arguments.overwrite,
            sft_command=stage_command("sft", sister(arguments.config, "dpo", "sft"), [f"run={config.run}"]),
            command=stage_command("dpo", arguments.config, arguments.settings))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def run(config, steps: tuple[str, ...], overwrite: bool, *, sft_command: str, command: str) -> None:
    """The stage, from top to bottom: rounds, whose every step is a function of files. The commands are those of the stages, to be told."""
    from preference.preparation import check_training, prepare
    from preference.publication import publish_best, say_without_pairs
    from preference.rounds import round_at_hand
    from sft import ranks

    folder = Path(config.run)
    stage = prepare(folder, config.seed, sft_command, command)
    ranks.start(zero=True)
    if "train" in steps:  # said now rather than after hours of sampling
        check_training(config, stage.sft_config, folder / "labels.sqlite")
    if ranks.is_main():
        print(f"stage two -> {folder}: {ranks.world_size()} rank(s) with {ranks.threads_per_rank()} thread(s) each")
    numbers = range(1, config.rounds + 1) if steps == STEPS else [round_at_hand(folder, config.rounds)]
    for number in numbers:
        if ranks.is_main() and config.rounds > 1:
            print(f"-- round {number} of {config.rounds}")
        if not run_round(config, stage, number, steps, overwrite):
            publish_best(folder, number - 1, show=True)
            say_without_pairs(folder, number)
            break
    else:
        if "train" in steps:  # of all rounds that are there: an earlier call may have asked for more
            publish_best(folder, None, show=True)
    ranks.finish()


def run_round(config, stage, number: int, steps: tuple[str, ...], overwrite: bool) -> bool:
    """The steps of one round, from the adapter of the round before (or stage one's); False where training found no pairs."""
    from preference.controls import as_control
    from preference.inspection.training import label_smoothing, preferred_by_people, with_peoples_words
    from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA, build_pairs
    from preference.preparation import as_made, asked_hash, asked_questions, sampled_questions
    from preference.publication import publish_best
    from preference.rounds import adapter_of, round_folder
    from preference.sampling import judge, print_yield, sample
    from preference.training_inputs import discard_without_pairs, training_inputs, words_hash
    from sft import ranks
    from sft.artefacts import file_hash, is_complete, mark_complete, read_parquet, recorded_inputs, write_parquet
    from sft.checkpoint import checkpoint_hash, load_for_inference, precision_dtype, release_memory
    from sft.records import save_configuration

    # ------------------------------------------------------------------ what is there
    folder, sft_config, tokenizer, prompt = stage.folder, stage.sft_config, stage.tokenizer, stage.prompt_hash
    labels_file = folder / "labels.sqlite"  # people's words on pairs: only read here
    adapter, schema_style = adapter_of(folder, number - 1), stage.schema_style
    place = round_folder(folder, number)
    candidates, verdicts, pairs_file = (place / f"{name}.parquet" for name in ("candidates", "verdicts", "pairs"))
    weights = checkpoint_hash(adapter)
    config = as_made(config, stage, number, steps, weights)
    begun = None if overwrite and "sample" in steps else recorded_inputs(candidates)
    examples, refused = asked_questions(stage, number, config.sample.questions, begun)
    if steps in (("judge",), ("pairs",)):
        examples = sampled_questions(stage, examples, candidates)

    def pending(step: str, target: Path, inputs: dict) -> bool:
        """Whether a step is to be run: asked for, and not complete for these inputs. All ranks agree."""
        if step not in steps:
            return False
        found = ranks.gather(is_complete(target, inputs, overwrite) if ranks.is_main() else None)[0]
        if ranks.is_main():
            if found:
                print(f"{step}: {target} is complete for these settings"
                      + ("; to make it anew all the same, delete it" if overwrite and steps == (step,) else ""))
            else:  # only now: settings that were refused leave no trace
                save_configuration(folder, "dpo", config.model_dump())
        return not found

    def output_of(path: Path, step: str, *sources: Path) -> str:
        """Hash of an earlier step's file; ValueError where that step is not complete, or had other `sources` than stand there."""
        command = f"{stage.command} --only {step}"
        if not path.with_suffix(".complete.json").exists():
            raise ValueError(f"{path} is missing or unfinished. Make it first: {command}")
        for source in sources:
            if source.exists() and recorded_inputs(path).get(source.stem) not in (None, file_hash(source)):
                raise ValueError(f"{path} was made of other {source.stem} than {source} holds now. What follows would not belong to "
                                 f"the samples. Make it anew first: {command} --overwrite")
        return file_hash(path)

    # ------------------------------------------------------------------ sample
    sampling = config.sample.model_dump(exclude={"questions", "shard_size", "batch_size"})
    inputs = {"checkpoint": weights, "prompt_hash": prompt, "seed": config.seed, "shard_size": config.sample.shard_size,
              "questions": len(examples), "asked": asked_hash(examples),
              "data": file_hash(folder / "data" / f"{stage.split}.parquet"), "precision": config.train.precision, **sampling}
    if refused:
        inputs["refused"] = refused
    if config.sample.most_samples:  # then verdicts decide how many samples a question gets
        inputs["databases"] = config.judge.databases
    sampler = sampling.pop("sampler")
    if pending("sample", candidates, inputs):
        trusted = sft_config["trust_remote_code"]
        if sampler == "vllm":
            from sft.vllm_sampler import generate, load

            model = load(adapter, dtype=str(precision_dtype(config.train.precision)).removeprefix("torch."),
                         max_tokens=stage.max_prompt_tokens + config.sample.max_new_tokens,
                         trust_remote_code=trusted)
        else:
            from sft.sampler import generate

            model, _, _ = load_for_inference(adapter, precision=config.train.precision, merge=True, place=ranks.device(),
                                             attention=config.train.attention, trust_remote_code=trusted)
        sample(candidates, inputs, examples, generate, model, tokenizer, schema_style=schema_style, seed=config.seed,
               batch_size=config.sample.batch_size, shard_size=config.sample.shard_size, round_number=number,
               checkpoint_hash=weights, prompt_hash=prompt, judging=config.judge.model_dump(), **sampling)
        del model
        release_memory()

    # ------------------------------------------------------------------ judge
    if "judge" in steps:
        inputs = {"candidates": output_of(candidates, "sample"), "databases": config.judge.databases, "seed": config.seed}
        if pending("judge", verdicts, inputs):
            # Shards as the candidates were made in: those of an interrupted step fit no others.
            judge(verdicts, inputs, examples, candidates, shard_size=recorded_inputs(candidates)["shard_size"], seed=config.seed,
                  **config.judge.model_dump())

    # ------------------------------------------------------------------ pairs
    if "pairs" in steps:
        inputs = {"candidates": output_of(candidates, "sample"), "verdicts": output_of(verdicts, "judge", candidates),
                  "seed": config.seed, **config.pairs.model_dump()}
        if pending("pairs", pairs_file, inputs) and ranks.is_main():
            found, words = (examples, read_parquet(candidates), read_parquet(verdicts)), words_hash(labels_file)
            rows, dropped = build_pairs(*found, seed=config.seed, schema_style=schema_style,
                                        vouched=preferred_by_people(folder), **config.pairs.model_dump(exclude={"control"}),
                                        revised=lambda rows, dropped: with_peoples_words(rows, dropped, folder, *found, schema_style))
            rows, dropped = as_control(config.pairs.control, rows, dropped, *found[1:], seed=config.seed)
            write_parquet(place / "dropped.parquet", dropped, DROPPED_SCHEMA)
            write_parquet(pairs_file, rows, PAIRS_SCHEMA)
            mark_complete(pairs_file, inputs, {"pairs": len(rows), "dropped": len(dropped), "labels": words})
        ranks.barrier()
        if ranks.is_main():
            print_yield(place)

    # ------------------------------------------------------------------ train
    if "train" in steps:
        inputs = training_inputs(config, stage, number, output_of(pairs_file, "pairs", candidates, verdicts), weights)
        pairs, trained = read_parquet(pairs_file), place / "dpo"
        if not pairs:
            if ranks.is_main():
                discard_without_pairs(trained, inputs, overwrite)
            return False
        if config.train.label_noise is not None:
            made = [round_folder(folder, earlier) / "pairs.parquet" for earlier in range(1, number + 1)]
            inputs["label_smoothing"] = ranks.gather(ranks.is_main() and label_smoothing(config.train.label_noise, made, labels_file))[0]
        if pending("train", trained, inputs):
            from preference.dpo_stage import train_round

            train_round(config, sft_config, folder, number, tokenizer, pairs, inputs)
            publish_best(folder, number, show=False)
    return True


if __name__ == "__main__":
    main()
