"""Preference pairs from execution verdicts: a question's own correct sample against a wrong one. No ML import."""

from __future__ import annotations

import difflib
import random
from collections import Counter, defaultdict

import pyarrow as pa

from reward.queries import canonical_sql
from sft.artefacts import content_hash
from sft.prompt import render

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


def verdict_key(candidate: dict) -> str | None:
    """What a candidate's verdict is kept under: its query in canonical form, None where the model abstained."""
    return None if candidate["abstained"] else canonical_sql(candidate["sql"] or "")


def edit_distance(left: str, right: str) -> float:
    """How far two queries are apart, 0 (equal) to 1 (nothing in common), over their words and signs."""
    return 1 - difflib.SequenceMatcher(None, left.split(), right.split(), autojunk=False).ratio()


def choose_pairs(correct: list[dict], wrong: list[dict], *, strategy: str, per_question: int,
                 chance: random.Random) -> list[tuple[dict, dict]]:
    """Up to `per_question` (chosen, rejected) of one question; no rejected query serves twice.

    nearest / farthest: smallest / largest edit distance first. hardest: the wrong query that the model likes best
    (largest logp_sum) first. random: any. Ties go to the earlier sample. Inputs have distinct queries.
    """
    combinations = [(chosen, rejected) for chosen in correct for rejected in wrong]
    if strategy == "random":
        chance.shuffle(combinations)
    else:
        rank = {
            "nearest": lambda pair: edit_distance(pair[0]["sql"], pair[1]["sql"]),
            "farthest": lambda pair: -edit_distance(pair[0]["sql"], pair[1]["sql"]),
            "hardest": lambda pair: -pair[1]["logp_sum"],
        }[strategy]
        combinations.sort(key=lambda pair: (rank(pair), pair[0]["sample_index"], pair[1]["sample_index"]))
    taken, used = [], set()
    for chosen, rejected in combinations:
        if len(taken) < per_question and rejected["sample_index"] not in used:
            used.add(rejected["sample_index"])
            taken.append((chosen, rejected))
    return taken


def _distinct(candidates: list[dict]) -> list[dict]:
    """The first sample of each distinct query, in sample order."""
    first: dict[str, dict] = {}
    for candidate in sorted(candidates, key=lambda row: row["sample_index"]):
        first.setdefault(candidate["canonical_sql"], candidate)
    return list(first.values())


def _why_none(rows: list[dict]) -> tuple[str, str]:
    """Why a question gives no pair: (reason, detail with the counts of its verdicts)."""
    counts = Counter(row["verdict"] for row in rows)
    detail = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    if counts["gold_bad"]:
        return "gold_bad", next(row["reason"] for row in rows if row["verdict"] == "gold_bad") or ""
    if counts["correct"] and not counts["wrong"]:
        return "no_wrong_sample", detail
    if counts["wrong"] and not counts["correct"]:
        return "no_correct_sample", detail
    if counts["correct"] and counts["wrong"]:
        return "unfinished", detail + "; one side has no sample that ends with EOS"
    return "only_unclear", detail


def build_pairs(examples: list[dict], candidates: list[dict], verdicts: list[dict], *, strategy: str, per_question: int,
                schema_style: str, seed: int) -> tuple[list[dict], list[dict]]:
    """(pairs, dropped): rows of PAIRS_SCHEMA and DROPPED_SCHEMA, in the order of the examples.

    A pair is always `correct` against `wrong`; `unclear` and failures of the judge never become a side. Samples that
    were cut before their EOS are left out, since training would teach the model to stop there.
    """
    found = {(row["example_id"], row["canonical_sql"]): row for row in verdicts}
    samples = defaultdict(list)
    for candidate in candidates:
        key = verdict_key(candidate)
        verdict = found[candidate["example_id"], key]
        samples[candidate["example_id"]].append({**candidate, **verdict, "canonical_sql": key})
    pairs, dropped = [], []
    for example in examples:
        rows = samples.get(example["example_id"], [])
        if not rows:
            continue
        finished = [row for row in rows if row["ended_with_eos"]]
        correct = _distinct([row for row in finished if row["verdict"] == "correct"])
        wrong = _distinct([row for row in finished if row["verdict"] == "wrong"])
        chosen = choose_pairs(correct, wrong, strategy=strategy, per_question=per_question,
                              chance=random.Random(f"{seed}:{example['example_id']}"))
        if not chosen:
            reason, detail = _why_none(rows)
            dropped.append({"example_id": example["example_id"], "reason": reason, "detail": detail})
        prompt = render(example, schema_style)
        pairs += [_pair(example, prompt, *sides, strategy=strategy, seed=seed) for sides in chosen]
    return pairs, dropped


def _pair(example: dict, prompt: list[dict], chosen: dict, rejected: dict, *, strategy: str, seed: int) -> dict:
    """One row of PAIRS_SCHEMA."""
    row = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen["completion"]}],
        "rejected": [{"role": "assistant", "content": rejected["completion"]}],
    }
    row["pair_id"] = content_hash(row)[:16]
    for side, sample in (("chosen", chosen), ("rejected", rejected)):
        row |= {f"{side}_{name}": sample.get(name) for name in _SIDE}
    row |= {name: example[name] for name in ("example_id", "source", "question", "context", "database", "gold_sql", "kind")}
    row |= {name: chosen[name] for name in ("suite_hash", "kill_score", "round", "checkpoint_hash", "prompt_hash")}
    return row | {"gold_fallback": False, "strategy": strategy, "weight": 1.0, "margin": 0.0, "seed": seed,
                  "person_label": None}
