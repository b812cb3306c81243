"""The first two steps of stage two: candidates sampled from the SFT model, and the judge's verdicts on them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from preference.pairs import verdict_key, why_dropped
from reward.cache import default_folder
from reward.judge import Judge
from sft import ranks
from sft.artefacts import join_shards, make_in_shards, mark_complete, mark_path, read_parquet, shards_to_make
from sft.evaluation import candidate, judge_tasks
from sft.prompt import completion_ids, prompt_ids, read_completion, render

CANDIDATES_SCHEMA = pa.schema([
    ("example_id", pa.string()), ("sample_index", pa.int64()), ("round", pa.int64()), ("completion", pa.string()),
    ("sql", pa.string()), ("abstained", pa.bool_()), ("token_count", pa.int64()), ("logp_sum", pa.float64()),
    ("ended_with_eos", pa.bool_()), ("tokens_round_trip", pa.bool_()), ("temperature", pa.float64()),
    ("top_k", pa.int64()), ("top_p", pa.float64()), ("seed", pa.int64()), ("checkpoint_hash", pa.string()), ("prompt_hash", pa.string()),
])
VERDICTS_SCHEMA = pa.schema([
    ("example_id", pa.string()), ("canonical_sql", pa.string()), ("verdict", pa.string()), ("reason", pa.string()),
    ("trace", pa.string()), ("result_hash", pa.string()), ("suite_hash", pa.string()), ("kill_score", pa.float64()),
])


def sample(target: Path, inputs: dict, examples: list[dict], generate: Callable, model, tokenizer, *, schema_style: str,
           samples: int, most_samples: int | None, temperature: float, top_k: int, top_p: float, max_new_tokens: int,
           batch_size: int, shard_size: int, seed: int, round_number: int, checkpoint_hash: str, prompt_hash: str,
           judging: dict) -> None:
    """Write candidates.parquet: completions for each example, in fixed shards that the ranks share.

    Each example gets `samples`; with `most_samples` those that do not have enough get as many again, up to that number.
    judging: the judge's {databases, workers}, which says what is enough. generate: that of `sft.sampler` or of
    `sft.vllm_sampler`, with the model that it takes.
    """
    started, made, tokens = time.perf_counter(), 0, 0
    fixed = {"round": round_number, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
             "checkpoint_hash": checkpoint_hash, "prompt_hash": prompt_hash}
    most = most_samples or samples
    # The most that can be drawn; less for every question that has enough before.
    bar = tqdm(total=most * still_to_make(target, examples, shard_size), desc="sampling", unit="sample", disable=not ranks.is_main())

    def draw(asked: list[dict], first: int, count: int) -> list[dict]:
        """Samples `first` to first + count - 1 of each example."""
        found = generate(model, tokenizer, [prompt_ids(tokenizer, render(example, schema_style)) for example in asked],
                         [draw_key(example["example_id"], round_number) for example in asked], samples=count,
                         max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                         batch_size=batch_size, first_sample=first, progress=lambda questions: bar.update(questions * count))
        rows = []
        for example, completions in zip(asked, found, strict=True):
            for index, completion in enumerate(completions, first):
                sql, abstained = read_completion(completion.text)
                # Whether the text encodes to the very tokens that were sampled: only then is logp_sum that of the text.
                round_trip = completion_ids(tokenizer, completion.text)[:-1] == list(completion.token_ids)
                rows.append({"example_id": example["example_id"], "sample_index": index, "completion": completion.text,
                             "sql": sql, "abstained": abstained, "token_count": completion.token_count,
                             "logp_sum": completion.logp_sum, "ended_with_eos": completion.ended_with_eos,
                             "tokens_round_trip": round_trip, **fixed})
        return rows

    # Only suites of databases are kept from here for the judge's step; running the queries again costs little beside them.
    with open_judge(**judging, seed=seed) if most > samples else nullcontext() as judged:

        def make(shard: list[dict]) -> list[dict]:
            nonlocal made, tokens
            rows, drawn, asked = [], 0, shard
            while asked:
                rows += draw(asked, drawn, min(samples, most - drawn))
                drawn, before = min(drawn + samples, most), len(asked)
                asked = without_enough(judged, asked, rows) if drawn < most else []
                bar.total -= (before - len(asked)) * (most - drawn)
            places = {example["example_id"]: place for place, example in enumerate(shard)}
            rows.sort(key=lambda row: (places[row["example_id"]], row["sample_index"]))
            made, tokens = made + len(shard), tokens + sum(row["token_count"] for row in rows)
            return rows

        make_in_shards(target, examples, shard_size, CANDIDATES_SCHEMA, make, part=ranks.rank(), parts=ranks.world_size())
    bar.close()
    cost = time_taken(started, made, len(examples))
    tokens = sum(ranks.gather(tokens))
    if ranks.is_main():
        count = join_shards(target, CANDIDATES_SCHEMA)
        mark_complete(target, inputs, {"questions": len(examples), "candidates": count, **cost})
        if tokens:
            seconds = time.perf_counter() - started
            print(f"sample: {tokens} tokens in {seconds:.0f} s, {tokens / seconds:.0f} tokens/s")
    ranks.barrier()


def still_to_make(target: Path, examples: list[dict], shard_size: int) -> int:
    """How many of the examples are in shards that this rank has still to make: what a progress bar counts."""
    return sum(len(shard) for _, shard in shards_to_make(target, examples, shard_size, part=ranks.rank(), parts=ranks.world_size()))


def draw_key(example_id: str, round_number: int) -> str:
    """What a sample's random numbers depend on beside seed and index: a question that comes again is drawn anew."""
    return example_id if round_number == 1 else f"round-{round_number}:{example_id}"


def without_enough(judged: Judge, asked: list[dict], rows: list[dict]) -> list[dict]:
    """Those of the examples of which more samples can bring a pair: see `has_enough`."""
    left = []
    for example, found in zip(asked, verdict_rows(judged, asked, distinct_queries(rows)), strict=True):
        verdicts = {row["canonical_sql"]: row["verdict"] for row in found}
        samples = [row for row in rows if row["example_id"] == example["example_id"]]
        if not has_enough([(verdicts[verdict_key(row)], row["ended_with_eos"]) for row in samples]):
            left.append(example)
    return left


def has_enough(samples: list[tuple[str, bool]]) -> bool:
    """Whether a question needs no more samples, by (verdict, ended with EOS) of those it has.

    It has both sides of a pair, a correct and a wrong sample that ended; or the model is always right; or gold is bad.
    """
    verdicts, sides = {verdict for verdict, _ in samples}, {verdict for verdict, ended in samples if ended}
    return {"correct", "wrong"} <= sides or verdicts == {"correct"} or "gold_bad" in verdicts


def time_taken(started: float, made: int, total: int) -> dict[str, int]:
    """Seconds for all `total` questions, for a step's mark; judged by those that all ranks made since `started`.

    Empty where none was made: a run that was interrupted had them all.
    """
    done = ranks.gather((made, time.perf_counter() - started))
    made, seconds = sum(count for count, _ in done), max(seconds for _, seconds in done)
    return {"seconds": round(seconds * total / made)} if made else {}


def judge(target: Path, inputs: dict, examples: list[dict], candidates: Path, *, databases: str, workers: int,
          shard_size: int, seed: int) -> None:
    """Write verdicts.parquet: one row for each example and distinct query, in fixed shards that the ranks share."""
    started, made = time.perf_counter(), 0
    queries = distinct_queries(read_parquet(candidates))
    asked = [example for example in examples if example["example_id"] in queries]
    bar = tqdm(total=still_to_make(target, asked, shard_size), desc="judging", unit="question", disable=not ranks.is_main())

    with open_judge(databases=databases, workers=workers, seed=seed) as judged:

        def make(shard: list[dict]) -> list[dict]:
            nonlocal made
            rows = []
            for found in verdict_rows(judged, shard, queries):
                rows += found
                bar.update()
            made += len(shard)
            return rows

        make_in_shards(target, asked, shard_size, VERDICTS_SCHEMA, make, part=ranks.rank(), parts=ranks.world_size())
    bar.close()
    cost = time_taken(started, made, len(asked))
    if ranks.is_main():
        count = join_shards(target, VERDICTS_SCHEMA)
        mark_complete(target, inputs, {"questions": len(asked), "verdicts": count, **cost})
    ranks.barrier()


def open_judge(*, databases: str, workers: int, seed: int) -> Judge:
    """The judge of a rank (workers 0: one for each core it has), with the user's cache of suites."""
    return Judge(databases=databases, workers=workers or ranks.threads_per_rank(), seed=seed, cache=default_folder())


def distinct_queries(rows: list[dict]) -> dict[str, dict[str | None, str | None]]:
    """What the judge is asked about samples: by example, for each `verdict_key` the query of the first that has it."""
    queries: dict[str, dict[str | None, str | None]] = {}
    for row in rows:
        queries.setdefault(row["example_id"], {}).setdefault(verdict_key(row), candidate(row))
    return queries


def verdict_rows(judged: Judge, shard: list[dict], queries: dict[str, dict]) -> Iterator[list[dict]]:
    """For each example the rows of VERDICTS_SCHEMA of its distinct queries (`queries`: by example and `verdict_key`)."""
    tasks = judge_tasks(shard, [list(queries[example["example_id"]].values()) for example in shard])
    for example, line in zip(shard, judged.stream(tasks, progress=False), strict=True):
        gold, rows = line["gold"], []
        for canonical, verdict in zip(queries[example["example_id"]], line["verdicts"], strict=True):
            trace = verdict.get("trace")
            rows.append({"example_id": example["example_id"], "canonical_sql": canonical,
                         "verdict": verdict["verdict"], "reason": verdict["reason"],
                         "trace": None if trace is None else json.dumps(trace, ensure_ascii=False),
                         "result_hash": (trace or {}).get("result_hash"), "suite_hash": gold.get("suite_hash"),
                         "kill_score": gold.get("kill_score")})
        yield rows


def print_yield(place: Path) -> None:
    """Say what sampling and judging brought and cost: pairs, and why questions gave none."""
    candidates, dropped = read_parquet(place / "candidates.parquet"), read_parquet(place / "dropped.parquet")
    verdicts = Counter(row["verdict"] for row in read_parquet(place / "verdicts.parquet"))
    pairs = read_parquet(place / "pairs.parquet")
    tokens = sum(row["token_count"] for row in candidates)
    questions = len({row["example_id"] for row in candidates})
    gold = sum(bool(pair["gold_fallback"]) for pair in pairs)
    print(f"pairs: {len(pairs)} from {questions} questions, {len(candidates)} samples ({tokens} tokens: "
          f"{1000 * len(pairs) / max(1, tokens):.1f} pairs per 1,000); distinct queries: "
          + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
          + f"; {why_dropped(pairs, dropped)}" + (f"; gold is the chosen side of {gold} pairs" if gold else ""))
    marks = [json.loads(mark_path(place / name).read_text(encoding="utf-8"))
             for name in ("candidates.parquet", "verdicts.parquet")]
    if most := marks[0]["inputs"].get("most_samples"):
        drawn = Counter(Counter(row["example_id"] for row in candidates).values())
        print("samples a question: " + ", ".join(f"{number} questions " + (f"stopped at {count}" if count < most else
                                                                           f"drew all {count}")
                                                 for count, number in sorted(drawn.items())))
    if pairs and all("seconds" in mark["rows"] for mark in marks):
        sampling, judging = (mark["rows"]["seconds"] / len(pairs) for mark in marks)
        print(f"cost of a correct pair: {tokens / len(pairs):.0f} generated tokens, {sampling + judging:.2f} s "
              f"({sampling:.2f} s of sampling, {judging:.2f} s of judging)")
