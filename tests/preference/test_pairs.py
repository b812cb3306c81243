"""Pairs from verdicts: only correct against wrong, by the strategy asked for, and a reason where there is none."""

import random

import pyarrow.parquet as pq
import pytest

from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA, build_pairs, choose_pairs, edit_distance
from reward.queries import canonical_sql
from sft.artefacts import read_parquet, write_parquet

CONTEXT = "CREATE TABLE pet (name TEXT, age INTEGER)"
BUILD = {"strategy": "nearest", "per_question": 2, "schema_style": "compact", "seed": 0}


def example(example_id="e1"):
    return {
        "example_id": example_id,
        "source": "test",
        "question": "Name the old pets.",
        "context": CONTEXT,
        "gold": "select name from pet where age>4",
        "gold_sql": "SELECT name FROM pet WHERE age > 4",
        "database": None,
        "evidence": None,
        "answerable": True,
        "kind": ["simple"],
        "split": "train",
        "license": None,
    }


def sampled(*samples, example_id="e1"):
    """(candidates, verdicts) of (sql, verdict, logp_sum, ended_with_eos) in sample order."""
    candidates, verdicts = [], {}
    for index, (sql, verdict, logp_sum, ended) in enumerate(samples):
        candidates.append(
            {
                "example_id": example_id,
                "sample_index": index,
                "round": 1,
                "completion": f" {sql};",
                "sql": sql,
                "abstained": False,
                "token_count": 9,
                "logp_sum": logp_sum,
                "ended_with_eos": ended,
                "tokens_round_trip": index != 2,
                "temperature": 1.0,
                "top_k": 32,
                "top_p": 1.0,
                "seed": 7,
                "checkpoint_hash": "c" * 16,
                "prompt_hash": "p" * 16,
            }
        )
        verdicts[canonical_sql(sql)] = {
            "example_id": example_id,
            "canonical_sql": canonical_sql(sql),
            "verdict": verdict,
            "reason": f"{verdict} reason",
            "trace": f'{{"sql": {index}}}',
            "result_hash": f"r{index}",
            "suite_hash": "s" * 16,
            "kill_score": 0.75,
        }
    return candidates, list(verdicts.values())


RIGHT = "SELECT name FROM pet WHERE age > 4"
NEAR = "SELECT name FROM pet WHERE age > 5"
MIDDLE = "SELECT age FROM pet WHERE name > 5"
FAR = "SELECT COUNT(*) FROM pet"


def side(sql, index, logp_sum=-1.0):
    return {"sql": sql, "sample_index": index, "logp_sum": logp_sum}


def chosen_by(strategy, per_question=3, correct=None, seed=0):
    wrong = [side(MIDDLE, 1, -3.0), side(FAR, 2, -1.0), side(NEAR, 3, -2.0)]
    found = choose_pairs(
        correct or [side(RIGHT, 0)], wrong, strategy=strategy, per_question=per_question, chance=random.Random(seed)
    )
    return [(chosen["sample_index"], rejected["sample_index"]) for chosen, rejected in found]


# ------------------------------------------------------------------ strategies


def test_edit_distance_over_words():
    assert edit_distance(RIGHT, RIGHT) == 0
    # 8 words each, 7 in common: 1 - 2 * 7 / 16.
    assert edit_distance(RIGHT, NEAR) == pytest.approx(1 / 8)
    # SELECT, FROM, pet, WHERE and > in common: 1 - 2 * 5 / 16.
    assert edit_distance(RIGHT, MIDDLE) == pytest.approx(3 / 8)
    # SELECT, FROM, pet in common: 1 - 2 * 3 / 12.
    assert edit_distance(RIGHT, FAR) == pytest.approx(1 / 2)
    assert edit_distance("a b", "c d") == 1


@pytest.mark.parametrize(
    ("strategy", "rejected"), [("nearest", [3, 1, 2]), ("farthest", [2, 1, 3]), ("hardest", [2, 3, 1])]
)
def test_the_order_of_each_strategy(strategy, rejected):
    assert chosen_by(strategy) == [(0, index) for index in rejected]
    assert chosen_by(strategy, per_question=1) == [(0, rejected[0])]


def test_random_is_any_order_that_the_seed_decides():
    orders = [tuple(chosen_by("random", seed=seed)) for seed in range(40)]
    assert len(set(orders)) == 6 and all(sorted(order) == [(0, 1), (0, 2), (0, 3)] for order in orders)
    assert orders == [tuple(chosen_by("random", seed=seed)) for seed in range(40)]


def test_no_wrong_query_serves_twice_and_ties_go_to_the_earlier_sample():
    correct = [side(RIGHT, 5), side(RIGHT.replace("name", "pet.name"), 4)]
    # Both correct ones against each wrong one would be six pairs.
    found = chosen_by("nearest", per_question=6, correct=correct)
    assert sorted(rejected for _, rejected in found) == [1, 2, 3]
    assert found[0] == (5, 3)
    same = [side(RIGHT, 7), side(RIGHT + " ", 6)]
    assert chosen_by("nearest", per_question=1, correct=same) == [(6, 3)]
    assert chosen_by("hardest", per_question=1, correct=same) == [(6, 2)]


# ------------------------------------------------------------------------ rows


def test_one_pair_has_exactly_these_columns():
    candidates, verdicts = sampled(
        (FAR, "wrong", -4.0, True), (RIGHT, "correct", -1.5, True), (NEAR, "wrong", -2.0, True)
    )
    [pair], dropped = build_pairs([example()], candidates, verdicts, **BUILD | {"per_question": 1})
    assert dropped == [] and len(pair["pair_id"]) == 16
    assert {**pair, "pair_id": None} == {
        "pair_id": None,
        "prompt": [
            {"role": "system", "content": "Answer with one SQLite query."},
            {"role": "user", "content": "pet(name, age)\nQuestion: Name the old pets."},
        ],
        # As generated, since the log-probabilities and token ids are of that text.
        "chosen": [{"role": "assistant", "content": f" {RIGHT};"}],
        "rejected": [{"role": "assistant", "content": f" {NEAR};"}],
        "chosen_sql": RIGHT,
        "chosen_verdict": "correct",
        "chosen_reason": "correct reason",
        "chosen_trace": '{"sql": 1}',
        "chosen_result_hash": "r1",
        "chosen_logp_sum": -1.5,
        "chosen_tokens_round_trip": True,
        "chosen_sample_index": 1,
        "rejected_sql": NEAR,
        "rejected_verdict": "wrong",
        "rejected_reason": "wrong reason",
        "rejected_trace": '{"sql": 2}',
        "rejected_result_hash": "r2",
        "rejected_logp_sum": -2.0,
        "rejected_tokens_round_trip": False,
        "rejected_sample_index": 2,
        "example_id": "e1",
        "source": "test",
        "question": "Name the old pets.",
        "context": CONTEXT,
        "database": None,
        "gold_sql": RIGHT,
        "kind": ["simple"],
        "suite_hash": "s" * 16,
        "kill_score": 0.75,
        "gold_fallback": False,
        "strategy": "nearest",
        "weight": 1.0,
        "margin": 0.0,
        "round": 1,
        "seed": 0,
        "checkpoint_hash": "c" * 16,
        "prompt_hash": "p" * 16,
        "person_label": None,
    }


def test_pair_ids_follow_from_the_content():
    candidates, verdicts = sampled(
        (RIGHT, "correct", -1.0, True), (NEAR, "wrong", -2.0, True), (FAR, "wrong", -2.0, True)
    )
    pairs, _ = build_pairs([example()], candidates, verdicts, **BUILD)
    again, _ = build_pairs([example()], candidates, verdicts, **BUILD | {"strategy": "farthest", "seed": 5})
    assert len({pair["pair_id"] for pair in pairs}) == 2
    assert {pair["pair_id"]: pair["rejected_sql"] for pair in pairs} == {
        pair["pair_id"]: pair["rejected_sql"] for pair in again
    }


def test_written_and_read_again_with_the_schema(tmp_path):
    rows = [
        sampled((RIGHT, "correct", -1.0, True), (NEAR, "wrong", -2.0, True), example_id=name) for name in ("e1", "e2")
    ]
    pairs, _ = build_pairs([example("e1"), example("e2")], rows[0][0] + rows[1][0], rows[0][1] + rows[1][1], **BUILD)
    assert all(list(sorted(pair)) == sorted(PAIRS_SCHEMA.names) for pair in pairs)
    write_parquet(tmp_path / "pairs.parquet", pairs, PAIRS_SCHEMA)
    assert pq.read_schema(tmp_path / "pairs.parquet") == PAIRS_SCHEMA
    assert read_parquet(tmp_path / "pairs.parquet") == pairs


def test_pairs_have_trls_conversational_columns(tmp_path):
    from datasets import load_dataset
    from trl import is_conversational

    candidates, verdicts = sampled((RIGHT, "correct", -1.0, True), (NEAR, "wrong", -2.0, True))
    write_parquet(tmp_path / "pairs.parquet", build_pairs([example()], candidates, verdicts, **BUILD)[0], PAIRS_SCHEMA)
    data = load_dataset("parquet", data_files=str(tmp_path / "pairs.parquet"), split="train", cache_dir=str(tmp_path))
    assert is_conversational(data[0]) and {"prompt", "chosen", "rejected"} <= set(data.column_names)
    assert not {"tools", "chat_template_kwargs", "ref_chosen_logps", "ref_rejected_logps"} & set(data.column_names)


# ------------------------------------------------------- what becomes no pair


def test_only_correct_against_wrong():
    candidates, verdicts = sampled(
        (RIGHT, "correct", -1.0, True),
        (NEAR, "unclear", -1.0, True),
        (MIDDLE, "wrong", -1.0, True),
        (FAR, "unclear", -1.0, True),
        ("SELECT name FROM pet WHERE age >= 5", "correct", -1.0, True),
    )
    pairs, _ = build_pairs([example()], candidates, verdicts, **BUILD | {"per_question": 9})
    assert [(pair["chosen_verdict"], pair["rejected_verdict"], pair["rejected_sql"]) for pair in pairs] == [
        ("correct", "wrong", MIDDLE)
    ]


def test_equal_queries_count_once_and_the_earliest_sample_stands_for_them():
    candidates, verdicts = sampled(
        (NEAR, "wrong", -3.0, False),
        (NEAR.lower(), "wrong", -2.0, True),
        (RIGHT, "correct", -1.0, True),
        (NEAR, "wrong", -3.0, True),
        (RIGHT.replace(" ", "  "), "correct", -9.0, True),
    )
    assert len(verdicts) == 2
    [pair], _ = build_pairs([example()], candidates, verdicts, **BUILD)
    # Sample 0 was cut before its end, so 1 is the earliest that may be a side.
    assert (pair["chosen_sample_index"], pair["rejected_sample_index"]) == (2, 1)


@pytest.mark.parametrize(
    ("samples", "reason", "detail"),
    [
        ([(RIGHT, "correct", -1, True)] * 2, "no_wrong_sample", "2 correct"),
        ([(RIGHT, "correct", -1, True), (NEAR, "unclear", -1, True)], "no_wrong_sample", "1 correct, 1 unclear"),
        ([(NEAR, "wrong", -1, True), (FAR, "wrong", -1, False)], "no_correct_sample", "2 wrong"),
        ([(NEAR, "unclear", -1, True)], "only_unclear", "1 unclear"),
        (
            [(RIGHT, "correct", -1, True), (NEAR, "wrong", -1, False)],
            "unfinished",
            "1 correct, 1 wrong; one side has no sample that ends with EOS",
        ),
        ([(RIGHT, "gold_bad", -1, True), (NEAR, "gold_bad", -1, True)], "gold_bad", "gold_bad reason"),
    ],
)
def test_a_question_without_a_pair_says_why(samples, reason, detail):
    pairs, dropped = build_pairs([example()], *sampled(*samples), **BUILD)
    assert pairs == [] and dropped == [{"example_id": "e1", "reason": reason, "detail": detail}]


def test_questions_that_were_not_sampled_are_neither(tmp_path):
    candidates, verdicts = sampled((RIGHT, "correct", -1.0, True), example_id="e2")
    pairs, dropped = build_pairs([example("e1"), example("e2")], candidates, verdicts, **BUILD)
    assert pairs == [] and [row["example_id"] for row in dropped] == ["e2"]
    write_parquet(tmp_path / "dropped.parquet", dropped, DROPPED_SCHEMA)
    assert read_parquet(tmp_path / "dropped.parquet") == dropped


# ----------------------------------------------------------------- determinism


def test_random_pairs_follow_seed_and_question_and_not_the_order_of_the_files():
    samples = [
        (RIGHT, "correct", -1.0, True),
        (NEAR, "wrong", -1.0, True),
        (MIDDLE, "wrong", -1.0, True),
        (FAR, "wrong", -1.0, True),
    ]
    names = [f"e{number}" for number in range(8)]
    candidates, verdicts = [], []
    for name in names:
        found = sampled(*samples, example_id=name)
        candidates += found[0]
        verdicts += found[1]

    def build(seed, candidates=candidates, examples=names):
        pairs, _ = build_pairs(
            [example(name) for name in examples],
            candidates,
            verdicts,
            **BUILD | {"strategy": "random", "per_question": 1, "seed": seed},
        )
        return {pair["example_id"]: pair["rejected_sql"] for pair in pairs}

    wanted = build(1)
    assert len(set(wanted.values())) > 1
    assert build(1, candidates=candidates[::-1]) == wanted and build(1, examples=names[::-1]) == wanted
    assert build(1, examples=names[3:4]) == {"e3": wanted["e3"]}
    assert build(2) != wanted
