"""Compare models on the same questions by greedy execution accuracy, and write report.json and report.html.

    accelerate launch preference/compare_models.py --models base=embedded sft=runs/embedded/sft dpo=runs/embedded/round-1/dpo \\
        --data test --output runs/embedded

A model is a name and `embedded`, a folder (model or adapter) or a hub name. --data is train, dev or test of the run in
--run (default: the output folder), or a file or folder in any supported layout, all rows of which are then asked.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=PATH", help="models in the order of training")
    parser.add_argument("--data", default="test", metavar="FILE_OR_SPLIT", help="train, dev, test, or a file (default: test)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run folder that holds the split (default: --output)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask at most N questions, drawn by the seed")
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="column names of a file")
    parser.add_argument("--schema-style", choices=("ddl", "compact"), help="prompt style (default: the adapters' own, or ddl)")
    parser.add_argument("--databases", choices=("given", "generated", "both"), default="both", help="what to judge on")
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N", help="longest answer (default: 96)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="questions at a time (default: 64)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model, where it needs it")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="judge's processes (0: one a core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="ask again where answers of other models are kept")
    arguments = parser.parse_args()
    from sft import ranks

    try:
        ranks.prepare_environment(distributed=False)
        compare(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def pairs_of(values: list[str], option: str) -> dict[str, str]:
    """`a=b` words as a dictionary, in their order; ValueError for anything else."""
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path) or name in found:
            raise ValueError(f"{option} {value}: write NAME=VALUE with a name of its own, e.g. sft=runs/embedded/sft")
        found[name] = path
    return found


def compare(arguments) -> None:
    """Answers of every model (kept, so that an interrupted comparison goes on), one judgement of all, the report."""
    from preference.report import print_table, summarise, write_report
    from sft import ranks
    from sft.artefacts import content_hash, is_complete, mark_complete, read_parquet, write_parquet
    from sft.checkpoint import checkpoint_hash, is_adapter, load_for_inference, load_tokenizer, read_provenance, release_memory, resolve_model
    from sft.evaluation import ANSWERS_SCHEMA, answer, judge_answers, measures
    from sft.examples import load, prepare_questions
    from sft.prompt import check_prompt_hash, prompt_hash
    from sft.splits import PREFERENCE, SPLITS

    # ------------------------------------------------------------------ the questions
    for option in ("limit", "max_new_tokens", "batch_size"):
        if (value := getattr(arguments, option)) is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} {value}: at least 1 is needed. Leave it out for the default (see --help).")
    models = pairs_of(arguments.models, "--models")
    output, run = arguments.output, arguments.run or arguments.output
    ranks.start(zero=False)
    if ranks.is_main():
        print(f"comparing {', '.join(models)}: {ranks.world_size()} rank(s) with {ranks.threads_per_rank()} thread(s) each")
    split = arguments.data if arguments.data in (*SPLITS, PREFERENCE) else "questions"
    if split == "questions":
        data = output / "data-questions"
        if ranks.is_main():
            prepare_questions(data, arguments.data, columns=pairs_of(arguments.columns, "--columns"),
                              limit=arguments.limit, seed=arguments.seed, databases=arguments.databases, workers=arguments.workers or ranks.cores(),
                              overwrite=arguments.overwrite)
        ranks.barrier()
        examples = load(data, split)
    else:
        if not (run / "data" / "complete.json").exists():
            raise ValueError(f"{run} has no prepared data to take the {split} split from. Name the run folder with --run, "
                             "or a file with --data.")
        if not (run / "data" / f"{split}.parquet").exists():
            raise ValueError(f"{run} has no {split} split: its stage one left no questions to stage two (data.preference_share). "
                             f"Name another split with --data: {', '.join(SPLITS)}, or a file.")
        examples = load(run / "data", split)
        if arguments.limit and arguments.limit < len(examples):
            import random

            examples = random.Random(f"{arguments.seed}:limit").sample(examples, arguments.limit)

    # ------------------------------------------------------------------ one prompt format for all
    formats = {}
    for name, path in models.items():
        if Path(path).is_dir() and is_adapter(path):
            formats[name] = read_provenance(path)
    styles = {provenance["prompt"]["schema_style"] for provenance in formats.values()}
    style = arguments.schema_style or (styles.pop() if len(styles) == 1 else "ddl")
    budget = next((provenance["prompt"]["max_prompt_tokens"] for provenance in formats.values()), 512)

    # ------------------------------------------------------------------ answers
    answers, trusted = {}, arguments.trust_remote_code
    asked = content_hash([[row[key] for key in ("example_id", "question", "context", "evidence") if row[key]] for row in examples])
    for name, path in models.items():
        target = output / "answers" / f"{name}.parquet"
        place = path if name in formats else resolve_model(path, trusted)
        weights, tokenizer = checkpoint_hash(place), load_tokenizer(place, trusted)
        prompt = prompt_hash(tokenizer, style, budget)
        if name in formats:
            check_prompt_hash(formats[name]["prompt_hash"], prompt, path)
        inputs = {"checkpoint": weights, "prompt_hash": prompt, "questions": asked, "schema_style": style,
                  "max_new_tokens": arguments.max_new_tokens, "precision": arguments.precision}
        if not ranks.gather(is_complete(target, inputs, arguments.overwrite) if ranks.is_main() else None)[0]:
            model, tokenizer, _ = load_for_inference(path, precision=arguments.precision, place=ranks.device(), trust_remote_code=trusted)
            found = answer(model, tokenizer, examples, schema_style=style, max_new_tokens=arguments.max_new_tokens,
                           batch_size=arguments.batch_size, description=f"{name} answers")
            if ranks.is_main():
                write_parquet(target, found, ANSWERS_SCHEMA)
                mark_complete(target, inputs, {"answers": len(found)})
            del model
            release_memory()
            ranks.barrier()
        answers[name] = read_parquet(target)

    # ------------------------------------------------------------------ verdicts and report
    if ranks.is_main():
        rows = judge_answers(examples, answers, databases=arguments.databases, workers=arguments.workers,
                             seed=arguments.seed)
        facts = run_facts(run)
        facts["unanswerable"] = {
            name: {"n": len(apart), "abstained_share": sum(row["abstained"] for row in apart) / len(apart)}
            for name, given in answers.items()
            if (apart := [row for row, example in zip(given, examples, strict=True) if not example["answerable"]])
        }
        summary = summarise(arguments.data, rows, {key: value for key, value in facts.items() if value})
        paths = write_report(output, summary, rows, facts)
        print_table(summary)
        left = sum(example["answerable"] for example in examples) - measures(next(iter(rows.values())))["n"]
        if left:
            print(f"{left} question(s) left out for all models: the judge cannot trust their gold")
        print(f"report: {paths[1]}\n        {paths[0]}")
    ranks.barrier()
    ranks.finish()


def run_facts(run: Path) -> dict:
    """What the stages of a run left to tell: costs, curves, pairs, configuration, versions. What is missing is left out."""
    from collections import Counter

    from ruamel.yaml import YAML

    from preference.rounds import adapter_of, consecutive_rounds, is_sampled, round_folder
    from sft.artefacts import read_parquet

    facts: dict = {"training": {}}
    if (run / "config.yaml").exists():
        facts["config"] = YAML(typ="safe", pure=True).load((run / "config.yaml").read_text(encoding="utf-8"))
    # The rounds of these settings, without what others left behind; the one that is under way has its pairs to tell.
    rounds = facts.get("config", {}).get("dpo", {}).get("rounds", 0)
    trained = consecutive_rounds(run, rounds)
    under_way = len(trained) + 1
    numbers = [*trained, under_way] if under_way <= rounds and is_sampled(run, under_way) else trained
    several, steps_before = len(numbers) > 1, 0
    for number in (0, *trained):  # 0: stage one
        stage, place = "dpo" if number else "sft", adapter_of(run, number)
        name = f"{stage}, round {number}" if number and several else stage
        if (place / "training.json").exists():
            found = json.loads((place / "training.json").read_text(encoding="utf-8"))
            measured = found.pop("evaluations", {})
            # The steps of later rounds are counted on, so that one curve shows them all.
            if guards := found.pop("guards", None):
                facts["training"].setdefault("guards", []).extend(
                    {**row, "step": row["step"] + steps_before} for row in guards)
            facts["training"].setdefault(stage, []).extend(
                {**row, "step": row["step"] + steps_before} for row in found.pop("log") if "loss" in row)
            # Rows of their own: it is not measured at the steps whose loss is logged.
            facts["training"][stage].extend({"step": int(step), "dev_execution_accuracy": row["execution_accuracy"]}
                                            for step, row in measured.items())
            steps_before += found["steps"] if number else 0
            facts[name] = {key: value for key, value in found.items() if not key.startswith("dev_")}
            if several and (reached := found.get("dev_after")):
                facts[name]["development_accuracy_share"] = reached["execution_accuracy"]
    pairs = {number: round_folder(run, number) / "pairs.parquet" for number in numbers}
    made = {f"round {number}": {
        "kept": len(read_parquet(file)),
        "dropped": dict(Counter(row["reason"] for row in read_parquet(file.with_name("dropped.parquet")))),
    } for number, file in pairs.items() if file.with_suffix(".complete.json").exists()}
    if made:
        facts["pairs"] = made if several else next(iter(made.values()))
    if (run / "versions.json").exists():
        facts["versions"] = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    return facts


if __name__ == "__main__":
    main()
