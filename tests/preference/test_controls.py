"""Control arms: as many pairs of each question as the real arm has, and each without one part of its signal."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.controls import as_control
from preference.inspection.contents import hash_of
from preference.inspection.overview import CONTROLS, make_overview
from preference.inspection.store import open_store
from preference.pairs import PAIRS_SCHEMA, build_pairs, verdict_key
from sft.artefacts import read_parquet, write_parquet

# Query -> verdict, in sample order; every question has its own constants in them.
SAMPLES = {"SELECT a FROM t{n} WHERE b > 1": "correct", "SELECT b FROM t{n}": "wrong", "SELECT a FROM t{n}": "unclear",
           "SELECT t{n}.a FROM t{n} WHERE b > 1": "correct", "SELECT COUNT(*) FROM t{n}": "wrong"}


def rows_of(counts):
    """(examples, candidates, verdicts): question n has the first counts[n] of SAMPLES."""
    examples, candidates, verdicts = [], [], []
    for number, count in enumerate(counts):
        name = f"e{number}"
        examples.append({"example_id": name, "source": "test", "question": f"Question {number}?", "answerable": True,
                         "context": f"CREATE TABLE t{number} (a INTEGER, b INTEGER)", "database": None, "evidence": None,
                         "gold_sql": f"SELECT a FROM t{number} WHERE b > 1", "kind": ["simple"]})
        for index, (sql, verdict) in enumerate(list(SAMPLES.items())[:count]):
            sql = sql.format(n=number)
            candidates.append({"example_id": name, "sample_index": index, "round": 1, "completion": sql, "sql": sql,
                               "abstained": False, "token_count": 5, "logp_sum": -1.0 - index, "ended_with_eos": True,
                               "tokens_round_trip": True, "checkpoint_hash": "c", "prompt_hash": "p"})
            verdicts.append({"example_id": name, "canonical_sql": verdict_key(candidates[-1]), "verdict": verdict,
                             "reason": "sql_error" if verdict == "wrong" else "equal", "trace": f'{{"at": "{name}"}}',
                             "result_hash": f"{name}-{index}", "suite_hash": "s", "kill_score": 0.8})
    return examples, candidates, verdicts


def built(counts, **options):
    rows = rows_of(counts)
    options = {"strategy": "nearest", "per_question": 2, "schema_style": "compact", "seed": 0} | options
    return *build_pairs(*rows, **options), *rows[1:]


def of_questions(pairs):
    return Counter(pair["example_id"] for pair in pairs)


NAMES = ("strategy", "pair_id", "person_label")


def without(pair, *names):
    return {name: value for name, value in pair.items() if name not in names}


# --------------------------------------------------------------------- by hand


def test_none_is_the_real_arm():
    pairs, dropped, *rows = built([2, 5, 1])
    assert as_control("none", pairs, dropped, *rows, seed=0) == (pairs, dropped)
    with pytest.raises(ValueError, match="control: found 'swapped'. Allowed are none, flipped, shuffled-rejected, random-sides"):
        as_control("swapped", pairs, dropped, *rows, seed=0)


def test_flipped_exchanges_all_columns_of_the_sides_and_nothing_else():
    pairs, dropped, *rows = built([5], weights="kill_score")
    flipped, same = as_control("flipped", pairs, dropped, *rows, seed=0)
    assert same == dropped and len(flipped) == len(pairs) == 2
    for pair, turned in zip(pairs, flipped, strict=True):
        for name in PAIRS_SCHEMA.names:
            if name.startswith(("chosen", "rejected")):
                side, rest = name[:6], name[6:]
                other = "rejected" + rest if side == "chosen" else "chosen" + name[8:]
                assert turned[name] == pair[other]
            elif name not in NAMES:
                assert turned[name] == pair[name]
        assert (turned["chosen_verdict"], turned["margin"], turned["weight"]) == ("wrong", 1.0, 0.8)
        assert turned["strategy"] == "nearest-flipped" and turned["pair_id"] == hash_of(turned) != pair["pair_id"]


def test_shuffled_rejected_sides_come_from_other_questions_with_their_evidence():
    pairs, dropped, *rows = built([5, 2, 5, 2, 2])
    shuffled, same = as_control("shuffled-rejected", pairs, dropped, *rows, seed=0)
    assert same == dropped and of_questions(shuffled) == of_questions(pairs)
    for pair, row in zip(pairs, shuffled, strict=True):
        # The trace names the question that the side comes from; the log-probability was under that one's prompt.
        assert row["rejected_trace"] != pair["rejected_trace"] and row["rejected_sql"] == row["rejected"][0]["content"]
        assert row["rejected_logp_sum"] is row["rejected_tokens_round_trip"] is None
        assert row["rejected_verdict"] == "wrong" and row["rejected_reason"] == "sql_error"
        kept = [name for name in PAIRS_SCHEMA.names if not name.startswith("rejected") and name not in NAMES]
        assert [row[name] for name in kept] == [pair[name] for name in kept]
    assert sorted(row["rejected_sql"] for row in shuffled) == sorted(pair["rejected_sql"] for pair in pairs)
    deals = {tuple(row["rejected_sql"] for row in as_control("shuffled-rejected", pairs, [], *rows, seed=seed)[0])
             for seed in range(6)}
    assert len(deals) > 1


def test_what_cannot_be_shuffled_is_counted():
    # Two pairs of one question and one of another: one of the two finds no other question.
    pairs, dropped, *rows = built([5, 2])
    shuffled, dropped = as_control("shuffled-rejected", pairs, dropped, *rows, seed=0)
    assert of_questions(shuffled) == {"e0": 1, "e1": 1}
    assert [(row["example_id"], row["reason"]) for row in dropped] == [("e0", "no_control")]
    alone, dropped = as_control("shuffled-rejected", pairs[:2], [], *rows, seed=0)
    assert alone == [] and [row["detail"] for row in dropped] == [
        f"pair {pair['pair_id']}: shuffled-rejected" for pair in pairs[:2]]


def test_a_shuffled_side_never_repeats_the_chosen_query():
    pairs, _, *rows = built([2, 2, 2])
    # The first question's answer is what the second one rejects: that may go to the third only.
    pairs[0]["chosen_sql"] = pairs[1]["rejected_sql"].lower().replace(" ", "  ")
    for seed in range(8):
        first = as_control("shuffled-rejected", pairs, [], *rows, seed=seed)[0][0]
        assert first["rejected_sql"] == pairs[2]["rejected_sql"] != first["chosen_sql"]


def test_a_shuffled_side_comes_from_another_prompt():
    pairs, _, *rows = built([2, 2, 2, 2])
    # The same question stands in the data twice.
    pairs[1]["prompt"] = pairs[0]["prompt"]
    for seed in range(8):
        first, second, *_ = as_control("shuffled-rejected", pairs, [], *rows, seed=seed)[0]
        assert {first["rejected_sql"], second["rejected_sql"]} <= {pair["rejected_sql"] for pair in pairs[2:]}


def test_a_question_gets_no_shuffled_side_twice():
    # Of the other questions' sides two are the same query: the question with two pairs gets it once, and one without a table.
    pairs, _, *rows = built([5, 2, 2, 2])
    for pair in pairs[2:4]:
        pair["rejected_sql"] = "SELECT 1"
    for seed in range(8):
        shuffled, lost = as_control("shuffled-rejected", pairs, [], *rows, seed=seed)
        given = [(row["example_id"], row["rejected_sql"].lower()) for row in shuffled]
        assert len(set(given)) == len(given) == len({row["pair_id"] for row in shuffled})
        assert len(shuffled) + len(lost) == len(pairs) and not lost
    # Where all others are one query: what cannot be dealt is left out and counted.
    pairs[4]["rejected_sql"] = "SELECT 1"
    for seed in range(8):
        shuffled, lost = as_control("shuffled-rejected", pairs, [], *rows, seed=seed)
        assert len({(row["example_id"], row["rejected_sql"]) for row in shuffled}) == len(shuffled) >= 3
        assert [row["reason"] for row in lost] == ["no_control"] * (len(pairs) - len(shuffled))


def test_random_sides_are_drawn_without_a_look_at_verdicts():
    pairs, dropped, *rows = built([5] * 60, per_question=1)
    drawn, same = as_control("random-sides", pairs, dropped, *rows, seed=0)
    assert same == dropped and of_questions(drawn) == of_questions(pairs)
    verdicts = Counter((pair["chosen_verdict"], pair["rejected_verdict"]) for pair in drawn)
    # 5 samples, 2 correct, 2 wrong, 1 unclear: of 20 ordered pairs 4 are right, 4 the wrong way round, 12 neither.
    assert 4 <= verdicts["correct", "wrong"] <= 22 and 4 <= verdicts["wrong", "correct"] <= 22
    assert sum(count for sides, count in verdicts.items() if "unclear" in sides) > 10
    for pair, row in zip(pairs, drawn, strict=True):
        assert row["chosen_sql"].count(pair["context"].split()[2]) and row["chosen_sql"] != row["rejected_sql"]
        assert (row["margin"], row["weight"], row["prompt"]) == (pair["margin"], pair["weight"], pair["prompt"])
    assert as_control("random-sides", pairs, dropped, *rows, seed=0)[0] == drawn
    assert as_control("random-sides", pairs, dropped, *rows, seed=1)[0] != drawn


def test_random_sides_need_two_samples():
    # Under gold, one wrong sample is enough for a pair, and too little for two sides by chance.
    pairs, dropped, *rows = built([2, 2], chosen="gold")
    rows[0] = [row for row in rows[0] if row["example_id"] == "e0" or row["sample_index"] == 1]
    drawn, dropped = as_control("random-sides", pairs, dropped, *rows, seed=0)
    assert [(pair["example_id"], pair["gold_fallback"]) for pair in drawn] == [("e0", False)]
    assert [(row["example_id"], row["reason"]) for row in dropped] == [("e1", "no_control")]


@pytest.mark.parametrize("control", CONTROLS)
def test_the_overview_tells_a_control_from_the_real_arm(control, tmp_path):
    pairs, dropped, *rows = built([5, 2, 5])
    for folder, made in (("real", pairs), ("control", as_control(control, pairs, dropped, *rows, seed=0)[0])):
        write_parquet(tmp_path / folder / "pairs.parquet", made, PAIRS_SCHEMA)
        assert read_parquet(tmp_path / folder / "pairs.parquet") == made
        flags = {flag["name"]: flag["count"] for flag in make_overview(open_store(tmp_path / folder / "pairs.parquet"))["flags"]}
        assert flags.get("control") == (None if folder == "real" else len(made))


def test_gold_and_graded_pairs_are_no_errors_in_the_overview(tmp_path):
    pairs, _, *_ = built([5, 2], chosen="gold")
    pairs[0] |= {"chosen_verdict": "wrong", "strategy": "nearest-graded"}
    write_parquet(tmp_path / "pairs.parquet", pairs, PAIRS_SCHEMA)
    flags = {flag["name"]: flag["level"] for flag in make_overview(open_store(tmp_path / "pairs.parquet"))["flags"]}
    assert flags["gold_fallback"] == "warning" and "odd_verdict" not in flags


# ------------------------------------------------------------ what always holds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 3), st.randoms())
def test_what_holds_for_every_control(counts, per_question, seed, chance):
    pairs, dropped, *rows = built(counts, per_question=per_question, strategy="random", seed=seed)
    for control in CONTROLS:
        made, lost = as_control(control, pairs, dropped, *rows, seed=seed)
        assert of_questions(made) + of_questions(lost[len(dropped):]) == of_questions(pairs)
        assert all(hash_of(row) == row["pair_id"] and row["chosen"] != row["rejected"] for row in made)
        mixed = [list(part) for part in (pairs, *rows)]
        for part in mixed:
            chance.shuffle(part)
        again, _ = as_control(control, mixed[0], dropped, *mixed[1:], seed=seed)
        if control != "random-sides" or per_question == 1:  # several draws of one question are dealt to its pairs in order
            assert sorted(again, key=str) == sorted(made, key=str)
    twice, _ = as_control("flipped", as_control("flipped", pairs, dropped, *rows, seed=0)[0], dropped, *rows, seed=0)
    assert [without(pair, "strategy") for pair in twice] == [without(pair, "strategy") for pair in pairs]
    drawn, _ = as_control("random-sides", pairs, dropped, *rows, seed=seed)
    sides = [(row["example_id"], row["chosen_sql"], row["rejected_sql"]) for row in drawn]
    assert len({frozenset(side) for side in sides}) == len(sides), "no two stand both ways round"
    assert len({(name, rejected) for name, _, rejected in sides}) == len(sides), "none is rejected twice"
