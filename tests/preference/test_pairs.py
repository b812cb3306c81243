"""Pairs from verdicts: only correct against wrong, by the strategy asked for, and a reason where there is none."""

import random
from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.balance import lead, skeleton, structure, surplus
from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA, build_pairs, choose_pairs, edit_distance, why_dropped
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


def sampled(*samples, example_id="e1", kill_score=0.75):
    """(candidates, verdicts) of (sql, verdict, logp_sum, ended_with_eos[, reason]) in sample order; a word is a token."""
    candidates, verdicts = [], {}
    for index, (sql, verdict, logp_sum, ended, *reason) in enumerate(samples):
        candidates.append(
            {
                "example_id": example_id,
                "sample_index": index,
                "round": 1,
                "completion": f" {sql};",
                "sql": sql,
                "abstained": False,
                "token_count": len(sql.split()),
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
            "reason": reason[0] if reason else f"{verdict} reason",
            "trace": f'{{"sql": {index}}}',
            "result_hash": f"r{index}",
            "suite_hash": "s" * 16,
            "kill_score": kill_score,
        }
    return candidates, list(verdicts.values())


RIGHT = "SELECT name FROM pet WHERE age > 4"
NEAR = "SELECT name FROM pet WHERE age > 5"
MIDDLE = "SELECT age FROM pet WHERE name > 5"
FAR = "SELECT COUNT(*) FROM pet"


def side(sql, index, logp_sum=-1.0, token_count=9):
    return {"sql": sql, "sample_index": index, "logp_sum": logp_sum, "token_count": token_count}


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
    # SELECT, FROM, pet in common; COUNT ( * ) are four: 1 - 2 * 3 / (8 + 7).
    assert edit_distance(RIGHT, FAR) == pytest.approx(3 / 5)
    assert edit_distance("a b", "c d") == 1
    # Neither spaces nor case count: SELECT a FROM t WHERE b = 1 and the other have 7 of 8 tokens in common.
    assert edit_distance("SELECT a FROM t WHERE b = 1", "select a from t where b=2") == pytest.approx(1 / 8)
    # COUNT ( * ) and COUNT ( b ): 3 of 4 tokens; texts keep their case.
    assert edit_distance("COUNT(*)", "count( b )") == pytest.approx(1 / 4)
    assert edit_distance("'Ann'", "'ann'") == 1


def test_hardest_takes_the_writing_of_a_query_that_the_model_likes_best():
    samples = [(RIGHT, "correct", -4.0, True), (RIGHT.lower(), "correct", -1.0, True), (NEAR, "wrong", -9.0, True),
               (NEAR.lower(), "wrong", -0.5, True), (FAR, "wrong", -5.0, True)]
    for strategy, sides in (("hardest", (1, 3)), ("nearest", (0, 2))):
        [pair], _ = build_pairs([example()], *sampled(*samples), **BUILD | {"strategy": strategy, "per_question": 1})
        assert (pair["chosen_sample_index"], pair["rejected_sample_index"]) == sides


def test_hardest_likes_samples_without_a_log_probability_least():
    samples = [(RIGHT, "correct", None, True), (NEAR, "wrong", None, True), (MIDDLE, "wrong", float("nan"), True),
               (FAR, "wrong", -50.0, True)]
    [pair], _ = build_pairs([example()], *sampled(*samples), **BUILD | {"strategy": "hardest", "per_question": 1})
    assert pair["rejected_sql"] == FAR


def test_a_sample_without_a_verdict_is_told():
    candidates, verdicts = sampled((RIGHT, "correct", -1.0, True), (NEAR, "wrong", -1.0, True))
    with pytest.raises(ValueError, match="sample 1 of question e1 has no verdict.*--only judge --overwrite"):
        build_pairs([example()], candidates, verdicts[:1], **BUILD)


@pytest.mark.parametrize("option", ["balance_lengths", "balance_structure"])
def test_the_order_of_the_questions_changes_no_pair(option):
    chance, names, candidates, verdicts = random.Random(3), [f"e{number:02}" for number in range(40)], [], []
    for name in names:
        wrong = [(NEAR + " AND age > 1" * chance.randrange(4) + chance.choice(["", " ORDER BY age", " LIMIT 1"]), "wrong",
                  -chance.random(), True) for _ in range(3)]
        found = sampled((RIGHT + " AND age > 0" * chance.randrange(3), "correct", -1.0, True), *wrong, example_id=name)
        candidates += found[0]
        verdicts += found[1]
    options = BUILD | {"strategy": "hardest", option: True}
    pairs, dropped = build_pairs([example(name) for name in names], candidates, verdicts, **options)
    mixed = random.Random(1).sample(names, len(names))
    again, dropped_again = build_pairs([example(name) for name in mixed], candidates, verdicts, **options)
    assert sorted(again, key=lambda pair: pair["example_id"]) == pairs
    assert [pair["example_id"] for pair in again] == sorted((pair["example_id"] for pair in pairs), key=mixed.index)
    assert Counter(map(str, dropped_again)) == Counter(map(str, dropped)) and len(pairs) > 20


def test_what_was_dropped_is_counted_by_questions_and_by_pairs():
    rows = [{"example_id": name, "reason": reason} for name, reason in
            [("a", "unbalanced"), ("b", "unbalanced"), ("b", "unbalanced"), ("c", "gold_bad"), ("d", "low_kill_score")]]
    assert why_dropped([{"example_id": "a"}], rows) == (
        "questions without a pair: 1 unbalanced, 1 gold_bad, 1 low_kill_score; left out of other questions: 1 unbalanced")
    assert why_dropped([], []) == "questions without a pair: none"


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


def test_equally_good_pairs_take_the_chosen_query_that_served_least():
    correct = [side(RIGHT, 0), side("SELECT name FROM pet WHERE 4 < age", 4), side("SELECT p.name FROM pet p", 5)]
    # How much the model likes the wrong query says nothing of the chosen one: each of the three serves once.
    assert chosen_by("hardest", correct=correct) == [(0, 2), (4, 3), (5, 1)]
    # Of those that served as often, hardest takes the one that the model likes best.
    assert chosen_by("hardest", correct=[side(RIGHT, 0, -3.0), side("SELECT name FROM pet WHERE 4 < age", 4, -2.0)]) == [
        (4, 2), (0, 3), (4, 1)]
    # The nearest goes first whichever chosen query is in it; the last wrong one is as far (3 / 5) from 0 as from 4.
    assert chosen_by("nearest", correct=correct[:2]) == [(0, 3), (0, 1), (4, 2)]


def test_a_sample_without_a_query_is_as_far_as_can_be():
    wrong = [side(None, 1), side(NEAR, 2)]
    for strategy, first in (("nearest", 2), ("farthest", 1)):
        [(_, rejected)] = choose_pairs(
            [side(RIGHT, 0)], wrong, strategy=strategy, per_question=1, chance=random.Random(0)
        )
        assert rejected["sample_index"] == first


# -------------------------------------------------------------------- length


def balanced(lead, lengths, per_question=1):
    """Rejected samples that are chosen for a chosen one of 10 tokens; lengths: of the wrong ones, best ranked first."""
    wrong = [side(NEAR, index, -index, length) for index, length in enumerate(lengths, 1)]
    found = choose_pairs(
        [side(RIGHT, 0, token_count=10)],
        wrong,
        strategy="hardest",
        per_question=per_question,
        chance=random.Random(0),
        lead=lead,
    )
    return [rejected["sample_index"] for _, rejected in found]


def test_balance_takes_what_brings_the_lead_nearest_to_zero():
    # Leads after each: 3 + (10 - length) = 5, 1, 3, 2.
    assert balanced(3, [8, 12, 10, 11]) == [2]
    # 1 and -1 are equally near: the better ranked.
    assert balanced(0, [9, 11]) == [1] and balanced(0, [11, 9]) == [1]
    # The fifth would bring it to exactly zero, but only the best four are asked.
    assert balanced(3, [8, 9, 10, 11, 13]) == [4]
    # Without a lead the strategy alone decides.
    assert balanced(None, [8, 12, 10, 11]) == [1]
    # The lead moves on with each pair: 3 -> 1 (length 12) -> 0 (length 11) -> 0 (length 10) -> 2.
    assert balanced(3, [8, 12, 10, 11], per_question=4) == [2, 4, 3, 1]


def test_balance_brings_the_mean_difference_of_all_pairs_down():
    chance = random.Random(5)
    names = [f"e{number}" for number in range(60)]
    candidates, verdicts = [], []
    for name in names:
        # 8 tokens shorter than the correct one is the likeliest; the others 4 or none shorter, or 12 longer.
        sizes = [-3, *(chance.choice((-2, -1, 2)) for _ in range(3))]
        samples = [(NEAR + " AND age > 1" * (4 + size) + f" AND age < {index}", "wrong", -1.0 - index, True)
                   for index, size in enumerate(sizes)]
        found = sampled((RIGHT + " AND age > 0" * 4, "correct", -1.0, True), *samples, example_id=name)
        candidates += found[0]
        verdicts += found[1]

    def mean_difference(balance_lengths):
        pairs, _ = build_pairs([example(name) for name in names], candidates, verdicts,
                               **BUILD | {"strategy": "hardest", "per_question": 1, "balance_lengths": balance_lengths})
        lengths = {(row["example_id"], row["sample_index"]): row["token_count"] for row in candidates}
        differences = [lengths[pair["example_id"], pair["chosen_sample_index"]]
                       - lengths[pair["example_id"], pair["rejected_sample_index"]] for pair in pairs]
        assert len(differences) == 60
        return sum(differences) / 60

    assert mean_difference(False) == 8
    assert abs(mean_difference(True)) < 0.5


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
        # The judge's reason is none that a query with a result has.
        "margin": 1.0,
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


# ------------------------------------------------------------------------ gold


def test_gold_stands_in_only_where_no_correct_sample_ended():
    first = sampled((RIGHT + " ", "correct", -1.0, True), (NEAR, "wrong", -1.0, True), example_id="e1")
    second = sampled((NEAR, "wrong", -1.0, True), (FAR, "wrong", -1.0, True), example_id="e2")
    third = sampled((RIGHT, "correct", -1.0, False), (NEAR, "wrong", -1.0, True), example_id="e3")
    rows = [examples + more + rest for examples, more, rest in zip(first, second, third, strict=True)]
    names = ["e1", "e2", "e3"]

    def build(chosen):
        pairs, dropped = build_pairs([example(name) for name in names], *rows, **BUILD, chosen=chosen)
        return [(pair["example_id"], pair["gold_fallback"]) for pair in pairs], [row["reason"] for row in dropped]

    assert build("sample") == ([("e1", False)], ["no_correct_sample", "unfinished"])
    assert build("sample-or-gold") == ([("e1", False), ("e2", True), ("e2", True), ("e3", True)], [])
    assert build("gold") == ([("e1", True), ("e2", True), ("e2", True), ("e3", True)], [])


def test_a_gold_side_is_the_gold_query_and_nothing_that_was_sampled(tmp_path):
    candidates, verdicts = sampled((RIGHT + " ", "correct", -1.0, True), (NEAR, "wrong", -2.0, True))
    [pair], _ = build_pairs([example()], candidates, verdicts, **BUILD, chosen="gold")
    assert pair["chosen"] == [{"role": "assistant", "content": RIGHT}]
    assert {name.removeprefix("chosen_"): value for name, value in pair.items() if name.startswith("chosen_")} == {
        "sql": RIGHT, "verdict": "correct", "reason": "gold", "trace": None, "result_hash": None, "logp_sum": None,
        "tokens_round_trip": None, "sample_index": None,
    }
    assert (pair["round"], pair["suite_hash"], pair["checkpoint_hash"]) == (1, "s" * 16, "c" * 16)
    write_parquet(tmp_path / "pairs.parquet", [pair], PAIRS_SCHEMA)
    assert read_parquet(tmp_path / "pairs.parquet") == [pair]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([(RIGHT, "correct", -1, True)], "no_wrong_sample"),
        ([(NEAR, "wrong", -1, False)], "unfinished"),
        ([(NEAR, "unclear", -1, True)], "only_unclear"),
        ([(NEAR, "gold_bad", -1, True)], "gold_bad"),
    ],
)
def test_gold_alone_makes_no_pair(samples, reason):
    for chosen in ("gold", "sample-or-gold"):
        pairs, dropped = build_pairs([example()], *sampled(*samples), **BUILD, chosen=chosen)
        assert pairs == [] and [row["reason"] for row in dropped] == [reason]


# ---------------------------------------------------------------------- graded


def test_graded_pairs_fill_what_is_left_with_running_above_failing():
    broken, worse = "SELECT nme FROM pet", "SELECT name FRM pet"
    samples = [
        (NEAR, "wrong", -1.0, True, "order"),
        (broken, "wrong", -2.0, True, "sql_error"),
        (worse, "wrong", -3.0, True, "sql_error"),
        ("SELECT sleep(1)", "wrong", -1.0, True, "refused"),
    ]

    def build(samples, per_question=2, **options):
        pairs, dropped = build_pairs([example()], *sampled(*samples), **BUILD | {"per_question": per_question}, **options)
        return [(pair["chosen_sql"], pair["rejected_sql"], pair["strategy"], pair["margin"]) for pair in pairs], dropped

    assert build(samples)[1][0]["reason"] == "no_correct_sample"
    # A query that is refused is no lesson in syntax. Margin: 1 for an error less 0.25 for the right rows in another order.
    graded = [(NEAR, broken, "nearest-graded", 0.75), (NEAR, worse, "nearest-graded", 0.75)]
    assert sorted(build(samples, graded=True)[0]) == sorted(graded) and build(samples, graded=True)[1] == []
    # Correct against wrong goes first, and what it rejected is not rejected again.
    both = [*samples[:2], (RIGHT, "correct", -1.0, True)]
    assert build(both, 1, graded=True)[0] == [(RIGHT, NEAR, "nearest", 0.25)]
    assert build(both, 9, graded=True)[0] == [(RIGHT, NEAR, "nearest", 0.25), (RIGHT, broken, "nearest", 1.0)]
    # Two of the three are rejected under gold already; the cap holds over both kinds.
    assert [row[2] for row in build(samples[:3], 3, graded=True, chosen="gold")[0]] == ["nearest"] * 3
    assert build([samples[0], samples[3]], graded=True)[0] == []


# ------------------------------------------------------ kill score and people


def test_a_low_kill_score_gives_no_pair_and_is_counted():
    rows = (RIGHT, "correct", -1.0, True), (NEAR, "wrong", -1.0, True), (FAR, "wrong", -1.0, True)
    names = {"e1": 0.4, "e2": 0.6, "e3": 1.0, "e4": None}
    found = [sampled(*rows, example_id=name, kill_score=score) for name, score in names.items()]
    found.append(sampled(rows[0], example_id="e5", kill_score=0.1))
    candidates, verdicts = (sum(parts, []) for parts in zip(*found, strict=True))
    examples = [example(name) for name in (*names, "e5")]
    pairs, dropped = build_pairs(examples, candidates, verdicts, **BUILD, min_kill_score=0.6)
    # 0.6 is not below 0.6; without a score there is no mistake that could have passed.
    assert [pair["example_id"] for pair in pairs] == ["e2", "e2", "e3", "e3", "e4", "e4"]
    assert dropped == [
        {"example_id": "e1", "reason": "low_kill_score", "detail": "0.4 is below 0.6: 2 of 2 pairs"},
        # It would have given none in any case.
        {"example_id": "e5", "reason": "no_wrong_sample", "detail": "1 correct"},
    ]
    pairs, _ = build_pairs(examples, candidates, verdicts, **BUILD, weights="kill_score")
    assert [pair["weight"] for pair in pairs] == [0.4, 0.4, 0.6, 0.6, 1.0, 1.0, 1.0, 1.0]
    assert {pair["weight"] for pair in build_pairs(examples, candidates, verdicts, **BUILD)[0]} == {1.0}


def test_a_pair_that_people_vouch_for_stays_whatever_the_kill_score():
    candidates, verdicts = sampled((RIGHT, "correct", -1.0, True), (NEAR, "wrong", -1.0, True),
                                   (FAR, "wrong", -1.0, True), kill_score=0.4)
    options = {"min_kill_score": 0.5, "weights": "kill_score"}
    pairs, dropped = build_pairs([example()], candidates, verdicts, **BUILD, **options,
                                 vouched=lambda pair: pair["rejected_sql"] == FAR)
    assert [(pair["rejected_sql"], pair["weight"]) for pair in pairs] == [(FAR, 1.0)]
    assert [row["detail"] for row in dropped] == ["0.4 is below 0.5: 1 of 2 pairs"]


def test_people_prefer_a_side_by_majority_in_labels_sqlite(tmp_path):
    from preference.inspection.labels import LabelFile
    from preference.inspection.training import preferred_by_people

    candidates, verdicts = sampled((RIGHT, "correct", -1.0, True), (NEAR, "wrong", -1.0, True),
                                   (FAR, "wrong", -1.0, True), (MIDDLE, "wrong", -1.0, True), kill_score=0.4)
    options = BUILD | {"per_question": 3, "min_kill_score": 0.5}
    pairs, _ = build_pairs([example()], candidates, verdicts, **options | {"min_kill_score": 0.0})
    assert not any(map(preferred_by_people(tmp_path), pairs))
    file = LabelFile(tmp_path / "labels.sqlite")
    for pair, words in zip(pairs, (["prefer_rejected", "skip"], ["tie"], ["prefer_chosen", "prefer_rejected"]), strict=True):
        for annotator, word in enumerate(words):
            file.add(pair["pair_id"], f"annotator {annotator}", word, content_hash=pair["pair_id"])
    file.close()
    kept, dropped = build_pairs([example()], candidates, verdicts, **options, vouched=preferred_by_people(tmp_path))
    # Overturned counts as vouched for: `with_peoples_words` then exchanges the sides. A tie and a conflict do not.
    assert [pair["pair_id"] for pair in kept] == [pairs[0]["pair_id"]]
    assert [row["detail"] for row in dropped] == ["0.4 is below 0.5: 2 of 3 pairs"]


# ----------------------------------------------------------------- structure


def test_a_skeleton_has_words_functions_and_signs_and_the_kinds_of_names_and_values():
    assert skeleton("select Max(age) from pet where name = 'SELECT x 3' and \"desc\" <> 3.5;") == (
        "^ SELECT MAX ( ? ) FROM ? WHERE ? = A a a AND ? <> # $".split())
    assert skeleton("''") == ["^", "a", "$"] and skeleton("'unclosed") == ["^", "?", "?", "$"]
    assert skeleton(None) == skeleton("") == ["^", "$"]


def test_structure_counts_runs_of_up_to_three():
    assert structure("SELECT a") == {"^": 1, "SELECT": 1, "?": 1, "$": 1, "^ SELECT": 1, "SELECT ?": 1, "? $": 1,
                                     "^ SELECT ?": 1, "SELECT ? $": 1}


def of(*queries):
    return [{"chosen_sql": chosen, "rejected_sql": rejected} for chosen, rejected in queries]


def test_lead_is_what_the_chosen_side_has_more_of():
    [pair] = of(("SELECT COUNT(*) FROM a", "SELECT COUNT(b) FROM a"))
    assert lead(pair) == {"*": 1, "?": -1, "( *": 1, "( ?": -1, "* )": 1, "? )": -1, "COUNT ( *": 1, "COUNT ( ?": -1,
                          "( * )": 1, "( ? )": -1, "* ) FROM": 1, "? ) FROM": -1}
    # The same structure: other names and values.
    assert lead(of(("SELECT a FROM b WHERE c = 'd e' LIMIT 1", "SELECT x FROM y WHERE z = 'f g' LIMIT 22"))[0]) == {}


def test_surplus_is_what_has_to_go_for_both_sides_to_have_as_much():
    more, less, even = ("SELECT a", "SELECT a DESC"), ("SELECT a DESC", "SELECT a"), ("SELECT a", "SELECT b")
    assert surplus(of(more, more, even, less), [False] * 4) == [0]
    assert surplus(of(more, more, less), [True, False, False]) == [1]
    assert surplus(of(more, more, less), [True] * 3) == surplus([], []) == []
    # Without a counterpart both go, and only they.
    assert surplus(of(more, even, more), [False] * 3) == [0, 2]
    # As many of each word, and still a lead: what follows BY.
    by = ("SELECT a ORDER BY COUNT(b), c", "SELECT a ORDER BY c, COUNT(b)")
    assert lead(of(by)[0])["BY COUNT"] == 1 and surplus(of(by), [False]) == [0]
    assert surplus(of(by, by[::-1]), [False, False]) == []


def drawn_pairs(chance, count):
    """Pairs of queries of a few shapes."""
    shapes = ("SELECT a FROM b", "SELECT COUNT(*) FROM b", "SELECT a FROM b ORDER BY a DESC", "SELECT DISTINCT a FROM b")
    return of(*((chance.choice(shapes), chance.choice(shapes)) for _ in range(count)))


def test_surplus_is_that_of_a_plain_search():
    for seed in range(20):
        pairs = drawn_pairs(random.Random(seed), 14)
        fixed = [random.Random(~seed).random() < 0.2 for _ in pairs]
        left = []
        while True:
            def squares(without):
                total = Counter()
                for place, pair in enumerate(pairs):
                    if place not in without:
                        total.update(lead(pair))
                return sum(count**2 for count in total.values())

            gains = {place: squares(left) - squares([*left, place]) for place in range(len(pairs))
                     if place not in left and not fixed[place]}
            if not gains or max(gains.values()) <= 0:
                break
            left.append(max(gains, key=lambda place: (gains[place], -place)))
        assert surplus(pairs, fixed) == sorted(left)


def test_balance_of_structure_leaves_pairs_out_and_counts_them():
    right, descending, joined = ("SELECT name FROM pet", "SELECT name FROM pet DESC", "SELECT pet.name FROM pet")
    samples = {"e1": ((right, "correct"), (descending, "wrong")), "e2": ((right, "correct"), (descending, "wrong")),
               "e3": ((descending, "correct"), (right, "wrong"), (joined, "wrong"))}
    candidates, verdicts = [], []
    for name, found in samples.items():
        rows = sampled(*((sql, verdict, -1.0 - index, True) for index, (sql, verdict) in enumerate(found)), example_id=name)
        candidates += rows[0]
        verdicts += rows[1]
    build = BUILD | {"strategy": "hardest", "per_question": 1, "balance_structure": True}
    examples = [example(name) for name in samples]
    pairs, dropped = build_pairs(examples, candidates, verdicts, **build)
    assert [pair["example_id"] for pair in pairs] == ["e2", "e3"]
    assert dropped == [{"example_id": "e1", "reason": "unbalanced", "detail": "^ SELECT ? FROM ? $ against ^ SELECT ? FROM ? DESC $"}]
    # What people prefer stays; another pair makes up for it.
    pairs, dropped = build_pairs(examples, candidates, verdicts, **build, vouched=lambda pair: pair["example_id"] == "e1")
    assert [pair["example_id"] for pair in pairs] == ["e1", "e3"] and [row["example_id"] for row in dropped] == ["e2"]


def test_structure_is_balanced_over_the_pairs_as_people_leave_them(tmp_path):
    """Four pairs that reject DESC; people overturn two of them, so that as many choose it, and all stay."""
    from preference.inspection.labels import LabelFile
    from preference.inspection.training import preferred_by_people, with_peoples_words

    (tmp_path / "data").mkdir()
    names, candidates, verdicts = [f"e{number}" for number in range(4)], [], []
    for name in names:
        found = sampled(("SELECT name FROM pet", "correct", -1.0, True), ("SELECT name FROM pet DESC", "wrong", -1.0, True),
                        example_id=name)
        candidates, verdicts = candidates + found[0], verdicts + found[1]
    rows = ([example(name) | {"question": f"Which pets, {name}?"} for name in names], candidates, verdicts)
    pairs, dropped = build_pairs(*rows, **BUILD)
    assert len(pairs) == 4 and not build_pairs(*rows, **BUILD, balance_structure=True)[0]
    file = LabelFile(tmp_path / "labels.sqlite")
    for pair in pairs[:2]:
        file.add(pair["pair_id"], "ann", "prefer_rejected", content_hash=pair["pair_id"])
    file.close()
    pairs, dropped = build_pairs(*rows, **BUILD, balance_structure=True, vouched=preferred_by_people(tmp_path),
                                 revised=lambda pairs, dropped: with_peoples_words(pairs, dropped, tmp_path, *rows, "compact"))
    assert [pair["chosen_sql"].endswith("DESC") for pair in pairs] == [True, True, False, False] and dropped == []


@pytest.mark.parametrize(("name", "value", "message"), [
    ("strategy", "best", "strategy: found 'best'. Allowed are nearest, farthest, random, hardest"),
    ("chosen", "golden", "chosen: found 'golden'. Allowed are sample, gold, sample-or-gold"),
    ("weights", "all", "weights: found 'all'. Allowed are none, kill_score"),
    ("per_question", 0, "per_question: found 0. Allowed is a whole number of at least 1"),
])
def test_an_option_that_is_not_known(name, value, message):
    candidates, verdicts = sampled((RIGHT, "correct", -1.0, True), (NEAR, "wrong", -1.0, True))
    with pytest.raises(ValueError, match=message):
        build_pairs([example()], candidates, verdicts, **BUILD | {name: value})


# ------------------------------------------------------------ what always holds

POOL = (RIGHT, NEAR, MIDDLE, FAR, "SELECT nme FROM pet", "SELECT name, age FROM pet", "SELECT 1")
JUDGED = st.sampled_from([("correct", "equal"), ("wrong", "sql_error"), ("wrong", "columns"), ("wrong", "order"),
                          ("unclear", "near"), ("wrong", "rows")])


@st.composite
def questions(draw):
    """(examples, candidates, verdicts) of one to four questions with up to eight samples each, with repetitions."""
    candidates, verdicts = [], []
    names = [f"e{number}" for number in range(draw(st.integers(1, 4)))]
    for name in names:
        judged = [draw(JUDGED) for _ in POOL]
        drawn = draw(st.lists(st.tuples(st.integers(0, len(POOL) - 1), st.booleans(), st.integers(-9, -1)), max_size=8))
        found = sampled(*((POOL[number], judged[number][0], float(logp), ended, judged[number][1])
                          for number, ended, logp in drawn), example_id=name,
                        kill_score=draw(st.sampled_from([0.2, 0.8, None])))
        candidates += found[0]
        verdicts += found[1]
    return [example(name) for name in names], candidates, verdicts


OPTIONS = st.fixed_dictionaries({
    "strategy": st.sampled_from(["nearest", "farthest", "random", "hardest"]), "per_question": st.integers(1, 3),
    "chosen": st.sampled_from(["sample", "gold", "sample-or-gold"]), "graded": st.booleans(),
    "balance_lengths": st.booleans(), "balance_structure": st.booleans(), "weights": st.sampled_from(["none", "kill_score"]),
    "min_kill_score": st.sampled_from([0.0, 0.5]), "seed": st.integers(0, 3), "schema_style": st.just("compact"),
})


@settings(max_examples=120, deadline=None)
@given(questions(), OPTIONS, st.randoms(use_true_random=False))
def test_what_holds_for_all_samples_and_options(rows, options, chance):
    examples, candidates, verdicts = rows
    pairs, dropped = build_pairs(examples, candidates, verdicts, **options)
    ended = {(row["example_id"], row["sample_index"]): row["ended_with_eos"] for row in candidates}
    for pair in pairs:
        graded = pair["strategy"].endswith("-graded")
        assert pair["rejected_verdict"] == "wrong" and pair["chosen_verdict"] == ("wrong" if graded else "correct")
        assert not graded or (options["graded"] and pair["rejected_reason"] == "sql_error" != pair["chosen_reason"])
        assert ended[pair["example_id"], pair["rejected_sample_index"]]
        assert pair["gold_fallback"] or ended[pair["example_id"], pair["chosen_sample_index"]]
        assert options["chosen"] != "sample" or not pair["gold_fallback"]
        assert 0 < pair["margin"] <= 1 and 0 < pair["weight"] <= 1
        assert pair["kill_score"] is None or pair["kill_score"] >= options["min_kill_score"]
    for name in {row["example_id"] for row in candidates}:
        mine = [canonical_sql(pair["rejected_sql"]) for pair in pairs if pair["example_id"] == name]
        assert len(mine) <= options["per_question"] and len(set(mine)) == len(mine)
        # A question gives pairs or a reason why not.
        reasons = [row["reason"] for row in dropped if row["example_id"] == name]
        assert reasons if not mine else set(reasons) <= {"unbalanced"}
    if options["balance_structure"]:
        assert not surplus(pairs, [False] * len(pairs))
    chance.shuffle(candidates)
    chance.shuffle(verdicts)
    assert build_pairs(examples, candidates, verdicts, **options) == (pairs, dropped)


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
