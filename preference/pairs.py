"""Preference pairs from execution verdicts: a question's correct query against a wrong one. No ML import."""

from __future__ import annotations

import difflib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import get_args

import pyarrow as pa

from preference.balance import skeleton, surplus
from preference.margins import RAN, margin_of
from reward.queries import canonical_sql
from reward.tokens import tokenize
from sft.artefacts import content_hash
from sft.configuration import Pairs
from sft.prompt import render, target_text

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SIDE = {"sql": pa.string(), "verdict": pa.string(), "reason": pa.string(), "trace": pa.string(),
         "result_hash": pa.string(), "logp_sum": pa.float64(), "tokens_round_trip": pa.bool_(), "sample_index": pa.int64()}
# TRL's conversational preference format first; every further column is evidence, which plain TRL ignores.
PAIRS_SCHEMA = pa.schema([
    ("pair_id", pa.string()), ("prompt", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES),
    *((f"{side}_{name}", kind) for side in ("chosen", "rejected") for name, kind in _SIDE.items()),
    ("example_id", pa.string()), ("source", pa.string()), ("question", pa.string()), ("context", pa.string()),
    ("database", pa.string()), ("gold_sql", pa.string()), ("kind", pa.list_(pa.string())), ("suite_hash", pa.string()),
    ("kill_score", pa.float64()), ("gold_fallback", pa.bool_()), ("strategy", pa.string()), ("weight", pa.float64()),
    ("margin", pa.float64()), ("round", pa.int64()), ("seed", pa.int64()), ("checkpoint_hash", pa.string()),
    ("prompt_hash", pa.string()), ("person_label", pa.string()),
])
DROPPED_SCHEMA = pa.schema([("example_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# Among how many combinations, the best by the strategy, the balance of lengths may choose.
_BALANCED_AMONG = 4


def verdict_key(candidate: dict) -> str | None:
    """What a candidate's verdict is kept under: its query in canonical form, None where the model abstained."""
    return None if candidate["abstained"] else canonical_sql(candidate["sql"] or "")


def edit_distance(left: str, right: str) -> float:
    """How far two queries are apart, 0 (equal) to 1 (nothing in common), over SQLite's tokens; case of bare words is nothing.

    Example: SELECT a FROM t WHERE b = 1 and select a from t where b=2 share 7 of 8 tokens each: 1 - 2 x 7 / 16 = 1 / 8.
    """
    tokens = ([token.upper for token in tokenize(sql)] for sql in (left, right))
    return 1 - difflib.SequenceMatcher(None, *tokens, autojunk=False).ratio()


def judged_samples(candidates: list[dict], verdicts: list[dict]) -> dict[str, list[dict]]:
    """Each question's samples in sample order, every one with its verdict's columns and its `canonical_sql`.

    Raises ValueError for a sample whose query has no verdict.
    """
    found = {(row["example_id"], row["canonical_sql"]): row for row in verdicts}
    samples = defaultdict(list)
    for candidate in sorted(candidates, key=lambda row: row["sample_index"]):
        key = verdict_key(candidate)
        if (candidate["example_id"], key) not in found:
            raise ValueError(f"sample {candidate['sample_index']} of question {candidate['example_id']} has no verdict ({key!r}). "
                             "Every sampled query needs one. Judge the samples anew: delete verdicts.parquet beside them, then --only judge --overwrite.")
        samples[candidate["example_id"]].append({**candidate, **found[candidate["example_id"], key], "canonical_sql": key})
    return samples


def distinct_finished(samples: list[dict], likeliest: bool = False) -> list[dict]:
    """One sample of each distinct query that ended with EOS; one that was cut would teach the model to stop there.

    It is the first; with `likeliest` the one with the largest logp_sum: the model can write a query in several ways.
    """
    found: dict[str | None, dict] = {}
    for sample in samples:
        if sample["ended_with_eos"]:
            there = found.setdefault(sample["canonical_sql"], sample)
            if likeliest and logp_of(sample) > logp_of(there):
                found[sample["canonical_sql"]] = sample
    return list(found.values())


def logp_of(sample: dict) -> float:
    """A sample's logp_sum, in nats; -inf where it is unknown, so that such a sample is liked least. Gold has none: 0."""
    value = sample.get("logp_sum", 0.0)
    return -math.inf if value is None or math.isnan(value) else value


def choose_pairs(correct: list[dict], wrong: list[dict], *, strategy: str, per_question: int, chance: random.Random,
                 lead: int | None = None) -> list[tuple[dict, dict]]:
    """Up to `per_question` (chosen, rejected) of one question; no rejected query serves twice.

    nearest / farthest: smallest / largest edit distance first. hardest: the wrong query that the model likes best
    (largest logp_sum) first. random: any. Ties go to the chosen query that has served least, then, with hardest, to the one
    that the model likes best, then to the earlier sample. Inputs have distinct queries.

    lead: None, or by how many tokens the chosen sides of the pairs so far are longer than the rejected ones, in all; then
    each choice is the one of the strategy's best four that brings it nearest to zero (the better rank where even).
    Example: lead 3; the best has 9 tokens chosen and 7 rejected (lead 5), the second 7 and 9 (lead 1): the second is taken.
    """
    combinations = [(chosen, rejected) for chosen in correct for rejected in wrong]
    if strategy == "random":
        chance.shuffle(combinations)
        ranks = list(range(len(combinations)))
    elif strategy == "hardest":
        ranks = [-logp_of(rejected) for _, rejected in combinations]
    else:  # a sample without a query (an abstention, an empty text) has nothing in common with any
        sign = {"nearest": 1, "farthest": -1}[strategy]
        ranks = [sign * edit_distance(chosen["sql"] or "", rejected["sql"] or "") for chosen, rejected in combinations]
    open_pairs = [(rank, *pair) for rank, pair in zip(ranks, combinations, strict=True)]
    taken: list[tuple[dict, dict]] = []
    served: Counter = Counter()

    def dislike(chosen: dict) -> float:
        return -logp_of(chosen) if strategy == "hardest" else 0.0

    while open_pairs and len(taken) < per_question:
        open_pairs.sort(key=lambda entry: (entry[0], served[_place(entry[1])], dislike(entry[1]), _place(entry[1]),
                                           _place(entry[2])))
        if lead is None:
            _, chosen, rejected = open_pairs[0]
        else:
            _, chosen, rejected = min(open_pairs[:_BALANCED_AMONG], key=lambda entry: abs(lead + longer_by(entry[1:])))
            lead += longer_by((chosen, rejected))
        taken.append((chosen, rejected))
        served[_place(chosen)] += 1
        open_pairs = [entry for entry in open_pairs if entry[2] is not rejected]
    return taken


def is_graded(pair: dict) -> bool:
    """Whether both sides of a pair are wrong by its making: see `graded` of `build_pairs`. A control's name comes after it."""
    return "-graded" in (pair.get("strategy") or "")


def longer_by(pair: tuple[dict, dict]) -> int:
    """By how many tokens the chosen side is longer than the rejected one."""
    return pair[0]["token_count"] - pair[1]["token_count"]


def _place(sample: dict) -> int:
    """A sample's index; gold, which is none, stands before all."""
    return -1 if sample["sample_index"] is None else sample["sample_index"]


def _gold_side(example: dict, samples: list[dict]) -> dict:
    """The gold query as a side: right by definition, never sampled, so without index and log-probability.

    Its token_count, used for balance only, is reckoned from its characters by what the question's samples have.
    """
    text = target_text(example)
    characters = sum(len(sample["completion"]) for sample in samples)
    tokens = sum(sample["token_count"] for sample in samples)
    return {"completion": text, "sql": example["gold_sql"], "verdict": "correct", "reason": "gold", "sample_index": None,
            "token_count": round(len(text) * tokens / max(1, characters))}


def _why_none(rows: list[dict], gold_serves: bool) -> tuple[str, str]:
    """Why a question gives no pair: (reason, detail with the counts of its verdicts)."""
    counts = Counter(row["verdict"] for row in rows)
    detail = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    if counts["gold_bad"]:
        return "gold_bad", next(row["reason"] for row in rows if row["verdict"] == "gold_bad") or ""
    if counts["correct"] and not counts["wrong"]:
        return "no_wrong_sample", detail
    if counts["wrong"] and not counts["correct"] and not gold_serves:
        return "no_correct_sample", detail
    if counts["wrong"]:
        return "unfinished", detail + "; one side has no sample that ends with EOS"
    return "only_unclear", detail


def build_pairs(examples: list[dict], candidates: list[dict], verdicts: list[dict], *, strategy: str, per_question: int,
                schema_style: str, seed: int, chosen: str = "sample", graded: bool = False, balance_lengths: bool = False,
                balance_structure: bool = False, weights: str = "none", min_kill_score: float = 0.0,
                vouched: Callable[[dict], bool] = lambda pair: False,
                revised: Callable[[list[dict], list[dict]], tuple[list[dict], list[dict]]] = lambda pairs, dropped: (pairs, dropped),
                ) -> tuple[list[dict], list[dict]]:
    """(pairs, dropped): rows of PAIRS_SCHEMA and DROPPED_SCHEMA, in the order of the examples, which decides nothing else.

    A pair is always `correct` against `wrong`; `unclear` and failures of the judge never become a side. Samples that
    were cut before their EOS are left out, since training would teach the model to stop there.

    chosen: `sample`, the model's own; `gold`, always; `sample-or-gold`: gold for questions without a correct sample that
    ended. Pairs with gold have gold_fallback true. graded: what correct against wrong leave of per_question is filled with
    wrong results (chosen) against queries that do not run (rejected: sql_error), strategy `...-graded`.
    balance_lengths: as in `choose_pairs`, over the questions by example_id. balance_structure: pairs are left out as
    `preference.balance.surplus` says, and counted as unbalanced. weights: `kill_score` or `none` (all 1).
    margin: how much more wrong the rejected side is than the chosen one (`preference.margins`).

    Questions whose kill score is below min_kill_score give no pair; one without a score (gold has no mutant that runs)
    stays, and weighs 1. vouched: whether people prefer a side of a pair. Such a pair does not rest on the executor's word:
    it stays whatever the kill score and the balance of structure, and weighs 1. revised: what people's words make of pairs
    and dropped rows (exchanged sides, pairs taken out or added), before the balance of structure.

    Raises ValueError for a word that an option does not know, and as `judged_samples` does.
    """
    for name, word in (("strategy", strategy), ("chosen", chosen), ("weights", weights)):
        if word not in (allowed := get_args(Pairs.model_fields[name].annotation)):
            raise ValueError(f"{name}: found {word!r}. Allowed are {', '.join(allowed)}. Choose one of them.")
    if per_question < 1:
        raise ValueError(f"per_question: found {per_question}. Allowed is a whole number of at least 1.")
    samples = judged_samples(candidates, verdicts)
    lead = 0 if balance_lengths else None
    pairs, dropped = [], []
    for example in sorted(examples, key=lambda example: example["example_id"]):
        rows = samples.get(example["example_id"], [])
        if not rows:
            continue
        finished = distinct_finished(rows, likeliest=strategy == "hardest")
        correct = [row for row in finished if row["verdict"] == "correct"]
        wrong = [row for row in finished if row["verdict"] == "wrong"]
        if chosen == "gold" or (chosen == "sample-or-gold" and not correct):
            correct = [_gold_side(example, rows)]
        chance = random.Random(f"{seed}:{example['example_id']}")
        sides = choose_pairs(correct, wrong, strategy=strategy, per_question=per_question, chance=chance, lead=lead)
        named = [(pair, strategy) for pair in sides]
        if graded:
            served = [rejected for _, rejected in sides]
            ran = [row for row in wrong if row["reason"] in RAN]
            failed = [row for row in wrong if row["reason"] == "sql_error" and not any(row is other for other in served)]
            ahead = None if lead is None else lead + sum(map(longer_by, sides))
            named += [(pair, f"{strategy}-graded") for pair in choose_pairs(
                ran, failed, strategy=strategy, per_question=per_question - len(sides), chance=chance, lead=ahead)]
        if not named:
            reason, detail = _why_none(rows, chosen != "sample")
            dropped.append({"example_id": example["example_id"], "reason": reason, "detail": detail})
            continue
        prompt, score = render(example, schema_style), rows[0]["kill_score"]
        weak = score is not None and score < min_kill_score
        kept = 0
        for pair, name in named:
            row = _pair(example, prompt, *pair, strategy=name, seed=seed)
            trusted = vouched(row)
            if weak and not trusted:
                continue
            if weights == "kill_score" and score is not None and not trusted:
                row["weight"] = score
            kept += 1
            lead = None if lead is None else lead + longer_by(pair)
            pairs.append(row)
        if kept < len(named):
            dropped.append({"example_id": example["example_id"], "reason": "low_kill_score",
                            "detail": f"{score} is below {min_kill_score}: {len(named) - kept} of {len(named)} pairs"})
    pairs, dropped = revised(pairs, dropped)
    if balance_structure:
        left_out = set(surplus(pairs, [pair["person_label"] is not None or vouched(pair) for pair in pairs]))
        dropped += [{"example_id": pairs[place]["example_id"], "reason": "unbalanced", "detail": " against ".join(
            " ".join(skeleton(pairs[place][f"{side}_sql"])) for side in ("chosen", "rejected"))} for place in sorted(left_out)]
        pairs = [pair for place, pair in enumerate(pairs) if place not in left_out]
    places = {example["example_id"]: place for place, example in enumerate(examples)}
    for rows in (pairs, dropped):
        rows.sort(key=lambda row: places[row["example_id"]])
    return pairs, dropped


def why_dropped(pairs: list[dict], dropped: list[dict]) -> str:
    """How many questions have no pair, and what was left out of questions that have one, by rows of `dropped`; with reasons."""
    served, first, left_out = {pair["example_id"] for pair in pairs}, {}, []
    for row in dropped:
        if row["example_id"] in served:
            left_out.append(row["reason"])
        else:
            first.setdefault(row["example_id"], row["reason"])

    def counted(reasons) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())

    return (f"questions without a pair: {counted(first.values()) or 'none'}"
            + (f"; left out of other questions: {counted(left_out)}" if left_out else ""))


def side_columns(side: str, sample: dict) -> dict:
    """The columns of one side (`chosen` or `rejected`) of a pair."""
    return {side: [{"role": "assistant", "content": sample["completion"]}],
            **{f"{side}_{name}": sample.get(name) for name in _SIDE}}


def _pair(example: dict, prompt: list[dict], chosen: dict, rejected: dict, *, strategy: str, seed: int) -> dict:
    """One row of PAIRS_SCHEMA. What all samples of a question share is read from the rejected one: gold is no sample."""
    row = {"prompt": prompt, **side_columns("chosen", chosen), **side_columns("rejected", rejected)}
    row["pair_id"] = content_hash({name: row[name] for name in ("prompt", "chosen", "rejected")})[:16]
    row |= {name: example[name] for name in ("example_id", "source", "question", "context", "database", "gold_sql", "kind")}
    row |= {name: rejected[name] for name in ("suite_hash", "kill_score", "round", "checkpoint_hash", "prompt_hash")}
    return row | {"gold_fallback": chosen["sample_index"] is None, "strategy": strategy, "weight": 1.0,
                  "margin": margin_of(chosen, rejected), "seed": seed, "person_label": None}
