"""What `summary` finds: counts that match the rows, and every problem that was planted, and no other."""

import json

import pytest

from preference.inspection import overview
from preference.inspection.store import open_store
from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA
from sft.artefacts import read_parquet, write_parquet

# The lengths of both sides go up and down alike, so that a healthy set has no flag.
WORDS = ("a", "bb", "ccc", "dddd", "eeeee")


def healthy(count=60):
    rows = []
    for number in range(count):
        row = {
            "pair_id": f"{number:04x}", "example_id": f"e{number // 2}", "question": f"Question {number // 2}?",
            "prompt": [{"role": "user", "content": f"Question {number // 2}?"}],
            "chosen_sql": f"SELECT {WORDS[number % 5]} FROM right{number}", "rejected_sql": f"SELECT {WORDS[(number + 2) % 5]} FROM wrong{number}",
            "chosen_verdict": "correct", "chosen_reason": "equal", "rejected_verdict": "wrong", "rejected_reason": "rows",
            "chosen_logp_sum": -5.0 - number % 7, "rejected_logp_sum": -6.0 - number % 5, "kill_score": 0.9, "gold_fallback": False,
            "source": "s", "strategy": "nearest", "kind": ["simple"], "round": 1, "chosen_sample_index": 0}
        rows.append(row | {side: [{"role": "assistant", "content": row[f"{side}_sql"]}] for side in ("chosen", "rejected")})
    return rows


def look(tmp_path, rows, dropped=(), candidates=None):
    write_parquet(tmp_path / "pairs.parquet", [{name: row.get(name) for name in PAIRS_SCHEMA.names} for row in rows], PAIRS_SCHEMA)
    if dropped:
        write_parquet(tmp_path / "dropped.parquet", list(dropped), DROPPED_SCHEMA)
    if candidates:
        from preference.sampling import CANDIDATES_SCHEMA

        write_parquet(tmp_path / "candidates.parquet", candidates, CANDIDATES_SCHEMA)
    store = open_store(tmp_path / "pairs.parquet")
    try:
        return json.loads(json.dumps(store.overview()))
    finally:
        store.close()


def change(*columns):
    """A change of the first rows: one dictionary of columns each."""
    def plant(rows):
        for row, new in zip(rows, columns, strict=False):
            row |= new
        return rows

    return plant


def swapped(row):
    return row | {"pair_id": "turned", **{f"{side}{rest}": row[f"{other}{rest}"] for rest in ("", "_sql")
                                          for side, other in (("chosen", "rejected"), ("rejected", "chosen"))}}


def test_a_healthy_set_has_no_flag(tmp_path):
    found = look(tmp_path, healthy())
    assert found["flags"] == [] and found["warnings"] == [] and (found["total"], found["questions"]) == (60, 30)
    assert found["counts"]["rejected_reason"] == [["rows", 60]] and found["counts"]["kind"] == [["simple", 60]]
    assert sum(found["lengths"]["chosen"]) == sum(found["lengths"]["rejected"]) == sum(found["differences"]["counts"]) == 60
    assert found["kill_scores"]["counts"] == [0] * 9 + [60] and found["kill_scores"]["missing"] == 0
    chosen = [len(row["chosen_sql"]) for row in healthy()]
    assert found["length"]["chosen_mean"] == pytest.approx(sum(chosen) / 60) and found["length"]["chosen_longest"] == max(chosen)


@pytest.mark.parametrize(("name", "count", "level", "plant"), [
    ("same_text", 2, "error", lambda rows: [row | {"rejected_sql": row["chosen_sql"]} if number < 2 else row
                                            for number, row in enumerate(rows)]),
    ("opposite", 2, "error", lambda rows: [*rows, swapped(rows[3])]),
    ("odd_verdict", 3, "error", change({"chosen_verdict": "unclear"}, {"rejected_verdict": "gold_bad"}, {"chosen_verdict": "wrong"})),
    ("no_prompt", 3, "error", change({"prompt": []}, {"question": " \n"}, {"prompt": [{"role": "user", "content": ""}]})),
    ("empty_chosen", 2, "error", change({"chosen_sql": ""}, {"chosen_sql": " \t\n"})),
    ("empty_rejected", 1, "warning", change({"rejected_sql": "  "})),
    ("looks_cut", 3, "warning", change({"chosen_sql": "SELECT a FROM t WHERE"}, {"chosen_sql": "select a,"}, {"chosen_sql": "SELECT a FROM t GROUP BY"})),
    ("duplicates", 2, "warning", lambda rows: [*rows, *(row | {"pair_id": f"again{row['pair_id']}"} for row in rows[:2])]),
    ("low_kill_score", 1, "warning", change({"kill_score": 0.5})),
    ("gold_fallback", 2, "warning", change({"gold_fallback": True}, {"gold_fallback": True})),
    ("logp_outliers", 4, "warning", change({"chosen_logp_sum": -900.0}, {"rejected_logp_sum": 2.5}, {"chosen_logp_sum": float("nan")},
                                           {"rejected_logp_sum": float("-inf")})),
    ("both_sides", 1, "warning", lambda rows: change({}, {"chosen_sql": rows[0]["rejected_sql"], "example_id": "e0"})(rows)),
    ("most_of_a_question", 30, "warning", lambda rows: [row | {"example_id": "e0"} if number < 30 else row | {"example_id": f"x{number}"}
                                                        for number, row in enumerate(rows)]),
])
def test_every_planted_problem_is_flagged_and_no_other(tmp_path, name, count, level, plant):
    found = look(tmp_path, plant(healthy()))
    assert [(flag["name"], flag["count"], flag["level"]) for flag in found["flags"]] == [(name, count, level)]
    assert f"{count:,}" in found["flags"][0]["text"]


def test_flags_on_one_pair_and_on_several():
    def texts(count):
        names = ("same_text", "opposite", "empty_chosen", "looks_cut", "duplicates", "both_sides", "low_kill_score",
                 "most_of_a_question")
        return [flag["text"].partition(":")[0] for flag in overview.make_flags({
            "problems": dict.fromkeys(names, count), "total": 9, "kind": "pairs", "questions": 9, "dropped": [("{gold}", count)],
            "length": dict.fromkeys(("chosen_longer", "rejected_longer", "chosen_mean", "rejected_mean"), 0),
            "one_sided": {"no_wrong_sample": count}})]

    assert texts(1) == [
        "1 pair has the same text on both sides", "1 pair stands in the other direction too", "1 chosen text is empty",
        "1 chosen query looks cut off in the middle", "1 pair chooses a text that another pair of the same question rejects",
        "1 pair repeats the question and both texts of another", "1 pair rests on weak databases (kill score below 0.7)",
        "1 question has only right samples and gives no pair", "1 question was dropped"]  # whatever a file calls the reason
    assert texts(2)[:4] == [
        "2 pairs have the same text on both sides", "2 pairs stand in the other direction too", "2 chosen texts are empty",
        "2 chosen queries look cut off in the middle"]
    assert texts(2)[-1] == "2 questions were dropped"


@pytest.mark.parametrize(("longer", "shorter", "word"), [("chosen", "rejected", "chosen"), ("rejected", "chosen", "rejected")])
def test_length_bias(tmp_path, longer, shorter, word):
    rows = [row | {f"{longer}_sql": row[f"{longer}_sql"] + " ORDER BY a"} for row in healthy()]
    [flag] = look(tmp_path, rows)["flags"]
    assert flag["name"] == "length_bias" and f"the {word} side is longer in 100%" in flag["text"]


def test_a_flip_by_a_person_is_no_odd_verdict(tmp_path):
    rows = change({"chosen_verdict": "wrong", "rejected_verdict": "correct", "person_label": "prefer_rejected"})(healthy())
    found = look(tmp_path, rows)
    assert found["flags"] == [] and found["counts"]["person_label"] == [["prefer_rejected", 1]] and found["labels"]["labelled"] == 1


def test_dropped_questions_and_samples_without_an_end(tmp_path):
    dropped = [{"example_id": f"d{number}", "reason": reason, "detail": ""} for number, reason in enumerate(
        ["no_wrong_sample"] * 3 + ["no_correct_sample"] * 2 + ["gold_bad"])]
    candidates = [{"example_id": f"e{number}", "sample_index": 0, "round": 1, "ended_with_eos": number != 4} for number in range(30)]
    found = look(tmp_path, healthy(), dropped, candidates)
    assert found["one_sided"] == {"no_wrong_sample": 3, "no_correct_sample": 2}
    assert {flag["name"]: flag["count"] for flag in found["flags"]} == {
        "unfinished": 2, "no_wrong_sample": 3, "no_correct_sample": 2, "dropped_gold_bad": 1}


def test_no_rows_at_all(tmp_path):
    found = look(tmp_path, [])
    assert [flag["name"] for flag in found["flags"]] == ["no_rows"] and found["length"]["chosen_mean"] is None


def test_the_clinics_samples(clinic_run):
    store = open_store(clinic_run / "round-1" / "candidates.parquet")
    found = store.overview()
    store.close()
    stored = read_parquet(clinic_run / "round-1" / "candidates.parquet")
    assert (found["kind"], found["total"], found["questions"]) == ("candidates", len(stored), len({row["example_id"] for row in stored}))
    assert {verdict for verdict, _ in found["counts"]["chosen_verdict"]} >= {"correct", "wrong"}
    judged = read_parquet(clinic_run / "round-1" / "verdicts.parquet")
    assert sum(n for _, _, n in found["judged"]) == len(judged)
    assert overview.make_flags(found) == found["flags"]
