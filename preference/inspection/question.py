"""One question with everything that a run knows of it: its example, all distinct queries with verdicts, its pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb

from preference.inspection.contents import database_path, trace
from preference.inspection.files import first_line, parquet
from preference.inspection.labels import Ranking

if TYPE_CHECKING:
    from preference.inspection.store import Store

_MOST_ROWS = 2000
_OF_THE_QUESTION = ("question", "context", "database", "gold_sql", "source", "kind", "suite_hash", "kill_score", "seed",
                    "example_id")


def read_question(store: Store, example_id: str) -> dict:
    """{"example", "queries", "pairs", "rankings", "warnings"}; `example` is None for a question that is nowhere.

    A query is {"canonical_sql", "sql", "completion", "verdict", "reason", "trace", "count", "sample_indices", "logp_sum",
    "ended_with_eos"}: equal queries once, most frequent first. Without the run's candidates the sides of its pairs stand in.
    """
    warnings: list[str] = []
    numbers = store.rows("SELECT row, file, file_row FROM store.pairs WHERE example_id = ? ORDER BY row LIMIT 500", [example_id])
    example = next((row for path in store.files.examples for row in _rows(store, path, example_id, warnings)), None)
    samples = [row | {"folder": path.parent} for path in store.files.candidates
               for row in _rows(store, path, example_id, warnings)]
    verdicts = {row.get("canonical_sql"): row for path in store.files.verdicts
                for row in _rows(store, path, example_id, warnings)}
    if store.kind == "candidates" and not samples:
        samples = _whole(store, numbers)
    pairs = store.short([number["row"] for number in numbers]) if store.kind == "pairs" else []
    whole = _whole(store, numbers) if store.kind == "pairs" and (example is None or not samples) else []
    if example is None and whole:
        example = {name: whole[0].get(name) for name in _OF_THE_QUESTION}
    if example is not None:
        example["database"] = database_path(example.get("database"), store.files.run)
        example["judge_databases"] = store.judge_databases
        example.setdefault("seed", next((row["seed"] for row in samples + whole if row.get("seed") is not None), 0))
    if not samples:
        samples, verdicts = _sides(whole)
        if samples:
            warnings.append("the run's candidates are not there: shown are the sides of its pairs")
    try:
        rankings = ranks_for(example, store.labels.rankings().get(example_id, {}))
    except ValueError as error:
        rankings = {}
        warnings.append(str(error))
    return {"example": example, "queries": distinct_queries(samples, verdicts), "pairs": pairs, "rankings": rankings,
            "warnings": warnings}


def question_hash(example: dict | None) -> str:
    """The hash of what a ranking is about, a question and its schema; "" where neither is known."""
    from sft.artefacts import content_hash

    seen = {name: (example or {}).get(name) for name in ("question", "context")}
    return content_hash(seen)[:16] if any(seen.values()) else ""


def ranks_for(example: dict | None, rankings: dict[str, Ranking]) -> dict[str, dict[str, int]]:
    """The annotators' orders that were meant for this question: a question made anew may bear the id of another."""
    asked = question_hash(example)
    return {annotator: ranking.ranks for annotator, ranking in rankings.items()
            if "" in (asked, ranking.content_hash) or ranking.content_hash == asked}


def _whole(store: Store, numbers: list[dict]) -> list[dict]:
    """Whole rows at places of the index; each file is read once."""
    return [row for file in sorted({number["file"] for number in numbers})
            for row in store.whole(file, [number["file_row"] for number in numbers if number["file"] == file])]


def _rows(store: Store, path, example_id: str, warnings: list[str]) -> list[dict]:
    try:
        found = store.rows(f"SELECT * EXCLUDE (file_row_number) FROM {parquet(path)} WHERE example_id = ? LIMIT {_MOST_ROWS}",
                           [example_id])
    except duckdb.Error as error:
        warnings.append(f"{path} is not shown: {first_line(error)}")
        return []
    return found


def _sides(pairs: list[dict]) -> tuple[list[dict], dict]:
    """The sides of pairs as if they were samples, and their verdicts."""
    from reward.queries import canonical_sql

    samples, verdicts = {}, {}
    for pair in pairs:
        for side in ("chosen", "rejected"):
            sql = pair.get(f"{side}_sql")
            if sql is not None:
                canonical = canonical_sql(sql)
                messages = pair.get(side)
                completion = messages[-1].get("content") if isinstance(messages, list) and messages else messages
                samples.setdefault(canonical, {
                    "sql": sql, "completion": completion, "abstained": False, "logp_sum": pair.get(f"{side}_logp_sum"),
                    "sample_index": pair.get(f"{side}_sample_index"), "ended_with_eos": True})
                verdicts[canonical] = {name: pair.get(f"{side}_{name}") for name in ("verdict", "reason", "trace")}
    return list(samples.values()), verdicts


def distinct_queries(samples: list[dict], verdicts: dict) -> list[dict]:
    """Distinct queries of samples, by the canonical form that verdicts are kept under."""
    from preference.pairs import verdict_key

    found: dict[str | None, dict] = {}
    for sample in samples:
        sql = sample.get("sql") if sample.get("sql") is not None else sample.get("completion")
        key = verdict_key({"abstained": bool(sample.get("abstained")), "sql": sql})
        judged = verdicts.get(key, {})
        query = found.setdefault(key, {
            "canonical_sql": key, "sql": sql, "completion": sample.get("completion"), "verdict": judged.get("verdict"),
            "reason": judged.get("reason"), "trace": trace(judged.get("trace")), "count": 0, "sample_indices": [],
            "logp_sum": sample.get("logp_sum"), "ended_with_eos": bool(sample.get("ended_with_eos", True))})
        query["count"] += 1
        if sample.get("sample_index") is not None:
            query["sample_indices"].append(sample["sample_index"])
        if not query["ended_with_eos"] and sample.get("ended_with_eos"):  # one that may become a side stands for them
            query |= {"ended_with_eos": True, "completion": sample.get("completion"), "logp_sum": sample.get("logp_sum"),
                      "sql": sql}
    return sorted(found.values(), key=lambda query: (-query["count"], query["canonical_sql"] or ""))
