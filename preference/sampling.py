"""The first two steps of stage two: candidates sampled from the SFT model, and the judge's verdicts on them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from preference.pairs import verdict_key
from reward.cache import default_folder
from reward.judge import Judge
from sft import ranks
from sft.artefacts import join_shards, make_in_shards, mark_complete, mark_path, read_parquet
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
           samples: int, temperature: float, top_k: int, top_p: float, max_new_tokens: int, batch_size: int,
           shard_size: int, seed: int, round_number: int, checkpoint_hash: str, prompt_hash: str) -> None:
    """Write candidates.parquet: `samples` completions for each example, in fixed shards that the ranks share.

    generate: that of `sft.sampler` or of `sft.vllm_sampler`, with the model that it takes.
    """
    started, made, tokens = time.perf_counter(), 0, 0
    fixed = {"round": round_number, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
             "checkpoint_hash": checkpoint_hash, "prompt_hash": prompt_hash}
    bar = tqdm(total=len(examples[:: ranks.world_size()]), desc="sampling", unit="question", disable=not ranks.is_main())

    def make(shard: list[dict]) -> list[dict]:
        nonlocal made, tokens
        prompts = [prompt_ids(tokenizer, render(example, schema_style)) for example in shard]
        found = generate(model, tokenizer, prompts, [example["example_id"] for example in shard], samples=samples,
                         max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                         batch_size=batch_size, progress=bar.update)
        rows = []
        for example, completions in zip(shard, found, strict=True):
            for index, completion in enumerate(completions):
                sql, abstained = read_completion(completion.text)
                # Whether the text encodes to the very tokens that were sampled: only then is logp_sum that of the text.
                round_trip = completion_ids(tokenizer, completion.text)[:-1] == list(completion.token_ids)
                rows.append({"example_id": example["example_id"], "sample_index": index, "completion": completion.text,
                             "sql": sql, "abstained": abstained, "token_count": completion.token_count,
                             "logp_sum": completion.logp_sum, "ended_with_eos": completion.ended_with_eos,
                             "tokens_round_trip": round_trip, **fixed})
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
    queries: dict[str, dict[str | None, str | None]] = {}
    for row in read_parquet(candidates):
        queries.setdefault(row["example_id"], {}).setdefault(verdict_key(row), candidate(row))
    asked = [example for example in examples if example["example_id"] in queries]
    bar = tqdm(total=len(asked[:: ranks.world_size()]), desc="judging", unit="question", disable=not ranks.is_main())

    with Judge(databases=databases, workers=workers or ranks.threads_per_rank(), seed=seed,
               cache=default_folder()) as judged:

        def make(shard: list[dict]) -> list[dict]:
            nonlocal made
            tasks = judge_tasks(shard, [list(queries[example["example_id"]].values()) for example in shard])
            rows = []
            for example, line in zip(shard, judged.stream(tasks, progress=False), strict=True):
                gold = line["gold"]
                for canonical, verdict in zip(queries[example["example_id"]], line["verdicts"], strict=True):
                    trace = verdict.get("trace")
                    rows.append({"example_id": example["example_id"], "canonical_sql": canonical,
                                 "verdict": verdict["verdict"], "reason": verdict["reason"],
                                 "trace": None if trace is None else json.dumps(trace, ensure_ascii=False),
                                 "result_hash": (trace or {}).get("result_hash"), "suite_hash": gold.get("suite_hash"),
                                 "kill_score": gold.get("kill_score")})
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


def print_yield(place: Path) -> None:
    """Say what sampling and judging brought and cost: pairs, and why questions gave none."""
    candidates, dropped = read_parquet(place / "candidates.parquet"), read_parquet(place / "dropped.parquet")
    verdicts = Counter(row["verdict"] for row in read_parquet(place / "verdicts.parquet"))
    pairs = read_parquet(place / "pairs.parquet")
    tokens = sum(row["token_count"] for row in candidates)
    questions = len({row["example_id"] for row in candidates})
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(row["reason"] for row in dropped).most_common())
    print(f"pairs: {len(pairs)} from {questions} questions, {len(candidates)} samples ({tokens} tokens: "
          f"{1000 * len(pairs) / max(1, tokens):.1f} pairs per 1,000); distinct queries: "
          + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
          + f"; questions without a pair: {reasons or 'none'}")
    marks = [json.loads(mark_path(place / name).read_text(encoding="utf-8"))
             for name in ("candidates.parquet", "verdicts.parquet")]
    if pairs and all("seconds" in mark["rows"] for mark in marks):
        sampling, judging = (mark["rows"]["seconds"] / len(pairs) for mark in marks)
        print(f"cost of a correct pair: {tokens / len(pairs):.0f} generated tokens, {sampling + judging:.2f} s "
              f"({sampling:.2f} s of sampling, {judging:.2f} s of judging)")
