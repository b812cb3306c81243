"""The sampling step with a sampler of the test's own: what is written, resumed, counted and said."""

import json

import pytest

from preference import sampling
from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA
from preference.sampling import CANDIDATES_SCHEMA, VERDICTS_SCHEMA, print_yield, sample, time_taken
from sft.artefacts import mark_complete, read_parquet, write_parquet
from sft.checkpoint import load_tokenizer
from sft.sampler import Completion

SETTINGS = {"schema_style": "compact", "samples": 2, "temperature": 1.0, "top_k": 32, "top_p": 1.0, "max_new_tokens": 8,
            "batch_size": 4, "shard_size": 2, "seed": 0, "round_number": 1, "checkpoint_hash": "c", "prompt_hash": "p"}
EXAMPLES = [{"example_id": f"e{number}", "question": f"question {number}?", "context": "CREATE TABLE a (b INT)",
             "evidence": None} for number in range(5)]


class Sampler:
    """Every sample is `SELECT 1` of 3 tokens; after `stop` shards the run is cut off."""

    def __init__(self, stop=99):
        self.asked, self.stop = [], stop

    def __call__(self, model, tokenizer, prompts, example_ids, *, samples, progress, **settings):
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(example_ids)
        assert len(prompts) == len(example_ids) and settings["max_new_tokens"] == 8
        progress(len(prompts))
        return [[Completion("SELECT 1", (7, 8), -1.5, 3, True)] * samples for _ in prompts]


def test_candidates_in_shards_and_their_cost(tiny_model, tmp_path, capsys):
    tokenizer = load_tokenizer(tiny_model)
    target, sampler = tmp_path / "candidates.parquet", Sampler()
    sample(target, {"a": 1}, EXAMPLES, sampler, None, tokenizer, **SETTINGS)
    assert sampler.asked == [["e0", "e1"], ["e2", "e3"], ["e4"]]
    rows = read_parquet(target)
    assert [(row["example_id"], row["sample_index"]) for row in rows] == [(f"e{n}", i) for n in range(5) for i in (0, 1)]
    columns = ("sql", "token_count", "logp_sum", "temperature")
    assert {tuple(row[column] for column in columns) for row in rows} == {("SELECT 1", 3, -1.5, 1.0)}
    mark = json.loads((tmp_path / "candidates.complete.json").read_text())
    seconds = mark["rows"].pop("seconds")
    assert mark["rows"] == {"questions": 5, "candidates": 10} and 0 <= seconds < 60
    assert "sample: 30 tokens in " in capsys.readouterr().out


def test_an_interrupted_run_makes_only_what_is_missing(tiny_model, tmp_path, capsys):
    tokenizer = load_tokenizer(tiny_model)
    target, sampler = tmp_path / "candidates.parquet", Sampler()
    with pytest.raises(KeyboardInterrupt):
        sample(target, {}, EXAMPLES, Sampler(stop=2), None, tokenizer, **SETTINGS)
    sample(target, {}, EXAMPLES, sampler, None, tokenizer, **SETTINGS)
    assert sampler.asked == [["e4"]] and len(read_parquet(target)) == 10
    assert "sample: 6 tokens in " in capsys.readouterr().out


def test_time_is_for_all_questions_judged_by_those_made(monkeypatch):
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: 110.0)
    assert time_taken(100.0, made=20, total=100) == {"seconds": 50}
    assert time_taken(100.0, made=0, total=100) == {}
    # Two ranks made 20 and 30 of 100; the slower one took 10 s.
    monkeypatch.setattr(sampling.ranks, "gather", lambda value: [(20, 8.0), (30, 10.0)])
    assert time_taken(100.0, made=20, total=100) == {"seconds": 20}


def test_the_cost_of_a_correct_pair(tmp_path, capsys):
    """2 pairs from 10 samples of 3 tokens, 9 s of sampling and 2 s of judging."""
    candidates = [{"example_id": f"e{n}", "sample_index": i, "token_count": 3} for n in range(5) for i in (0, 1)]
    for name, rows, schema in (("candidates", candidates, CANDIDATES_SCHEMA),
                               ("pairs", [{"example_id": "e0"}] * 2, PAIRS_SCHEMA),
                               ("verdicts", [{"example_id": "e0", "verdict": "correct"}], VERDICTS_SCHEMA),
                               ("dropped", [{"example_id": "e1", "reason": "all wrong"}], DROPPED_SCHEMA)):
        write_parquet(tmp_path / f"{name}.parquet", rows, schema)
    mark_complete(tmp_path / "candidates.parquet", {}, {"candidates": 10, "seconds": 9})
    mark_complete(tmp_path / "verdicts.parquet", {}, {"verdicts": 1})
    print_yield(tmp_path)
    assert "cost" not in capsys.readouterr().out  # the judging was timed by nobody
    mark_complete(tmp_path / "verdicts.parquet", {}, {"verdicts": 1, "seconds": 2})
    print_yield(tmp_path)
    said = capsys.readouterr().out
    assert "cost of a correct pair: 15 generated tokens, 5.50 s (4.50 s of sampling, 1.00 s of judging)" in said
