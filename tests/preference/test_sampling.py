"""The sampling step with a sampler of the test's own: what is written, resumed, counted and said."""

import json

import pytest
from tqdm import tqdm as Tqdm

from preference import sampling
from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA
from preference.sampling import CANDIDATES_SCHEMA, VERDICTS_SCHEMA, has_enough, judge, print_yield, sample, time_taken
from sft.artefacts import make_in_shards, mark_complete, read_parquet, write_parquet
from sft.checkpoint import load_tokenizer
from sft.sampler import Completion, generate

SETTINGS = {"schema_style": "compact", "samples": 2, "most_samples": None, "temperature": 1.0, "top_k": 32, "top_p": 1.0,
            "max_new_tokens": 8, "batch_size": 4, "shard_size": 2, "seed": 0, "round_number": 1, "checkpoint_hash": "c",
            "prompt_hash": "p", "judging": {"databases": "both", "workers": 1}}
EXAMPLES = [{"example_id": f"e{number}", "question": f"question {number}?", "context": "CREATE TABLE a (b INT)",
             "evidence": None, "answerable": True, "gold_sql": "SELECT 1", "database": None} for number in range(5)]


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


@pytest.fixture
def bars(monkeypatch):
    """The progress bars that are opened: where each stands, and its end."""
    opened = []

    def tqdm(**settings):
        opened.append(Tqdm(**settings | {"disable": False}))
        return opened[-1]

    monkeypatch.setattr(sampling, "tqdm", tqdm)
    return lambda: [(bar.unit, bar.n, bar.total) for bar in opened]


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


def test_an_interrupted_run_makes_only_what_is_missing(tiny_model, tmp_path, capsys, bars):
    tokenizer = load_tokenizer(tiny_model)
    target, sampler = tmp_path / "candidates.parquet", Sampler()
    with pytest.raises(KeyboardInterrupt):
        sample(target, {}, EXAMPLES, Sampler(stop=2), None, tokenizer, **SETTINGS)
    sample(target, {}, EXAMPLES, sampler, None, tokenizer, **SETTINGS)
    assert sampler.asked == [["e4"]] and len(read_parquet(target)) == 10
    assert "sample: 6 tokens in " in capsys.readouterr().out
    assert bars() == [("sample", 8, 10), ("sample", 2, 2)]  # the second counts what is left


def test_a_bar_counts_the_shards_of_its_rank(monkeypatch, tmp_path):
    monkeypatch.setattr(sampling.ranks, "world_size", lambda: 2)
    for rank, left in ((0, 3), (1, 2)):  # e0 e1, e4 and e2 e3
        monkeypatch.setattr(sampling.ranks, "rank", lambda rank=rank: rank)
        assert sampling.still_to_make(tmp_path / "candidates.parquet", EXAMPLES, 2) == left


def test_judging_that_goes_on_counts_what_is_left(tiny_model, tmp_path, fake_judge, bars):
    candidates, verdicts = tmp_path / "candidates.parquet", tmp_path / "verdicts.parquet"
    sample(candidates, {}, EXAMPLES, Writer({f"e{n}": "WW" for n in range(5)}), None, load_tokenizer(tiny_model), **SETTINGS)
    make_in_shards(verdicts, EXAMPLES, 2, VERDICTS_SCHEMA, lambda shard: [], part=0, parts=3)  # e0 and e1
    judge(verdicts, {}, EXAMPLES, candidates, databases="both", workers=1, shard_size=2, seed=0)
    assert bars() == [("sample", 10, 10), ("question", 3, 3)]


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


# ---------------------------------------------------------------- more samples where they are worth it


class Writer:
    """Samples as they are written down: one letter each, R(ight), W(rong), C(ut short) or U(nclear), by example."""

    def __init__(self, letters):
        self.letters, self.asked = letters, []

    def __call__(self, model, tokenizer, prompts, example_ids, *, samples, first_sample, progress, **settings):
        self.asked.append((example_ids, first_sample, samples))
        progress(len(prompts))
        return [[Completion(f"SELECT '{letter}', {index}", (7,), -1.0, 2, letter != "C")
                 for index, letter in enumerate(self.letters[name.rpartition(":")[2]])][first_sample:][:samples]
                for name in example_ids]


class FakeJudge:
    """Reads the verdict from the letter in a query; gold of example e4 is bad."""

    WORDS = {"R": "correct", "W": "wrong", "C": "wrong", "U": "unclear"}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def stream(self, tasks, progress):
        for task in tasks:
            bad = task["id"] == "e4"
            yield {"gold": {}, "verdicts": [{"verdict": "gold_bad" if bad else self.word(query), "reason": None}
                                            for query in task["candidates"]]}

    def word(self, query):
        return self.WORDS[query[8]]


@pytest.fixture
def fake_judge(monkeypatch):
    """The judge that sampling opens, and the settings that it was opened with."""
    opened = []

    def open_judge(**settings):
        opened.append((FakeJudge(), settings))
        return opened[-1][0]

    monkeypatch.setattr(sampling, "open_judge", open_judge)
    return opened


@pytest.mark.parametrize(("letters", "enough"), [
    ("RW", True), ("RRRR", True), ("WWWW", False), ("UU", False), ("RU", False), ("CR", False), ("CRW", True), ("RCRC", False)])
def test_enough_is_a_pair_or_always_right(letters, enough):
    """A wrong sample that was cut short is no side of a pair; one that is unclear is neither right nor wrong."""
    assert has_enough([(FakeJudge.WORDS[letter], letter != "C") for letter in letters]) is enough
    assert has_enough([("gold_bad", True)]) and has_enough([("correct", False)])


def test_questions_without_a_pair_are_drawn_again_up_to_most_samples(tiny_model, tmp_path, fake_judge, capsys, bars):
    tokenizer = load_tokenizer(tiny_model)
    writer = Writer({"e0": "RW?????", "e1": "WWWR???", "e2": "RR?????", "e3": "WWUWWCW", "e4": "WW?????"})
    target = tmp_path / "candidates.parquet"
    settings = SETTINGS | {"most_samples": 5, "shard_size": 4}
    sample(target, {"most_samples": 5}, EXAMPLES, writer, None, tokenizer, **settings)
    assert writer.asked == [(["e0", "e1", "e2", "e3"], 0, 2), (["e1", "e3"], 2, 2), (["e3"], 4, 1), (["e4"], 0, 2)]
    rows = read_parquet(target)
    drawn = {f"e{n}": [row["sample_index"] for row in rows if row["example_id"] == f"e{n}"] for n in range(5)}
    assert drawn == {"e0": [0, 1], "e1": [0, 1, 2, 3], "e2": [0, 1], "e3": [0, 1, 2, 3, 4], "e4": [0, 1]}
    assert [row["example_id"] for row in rows] == sorted(row["example_id"] for row in rows)
    of_e1 = [row["sql"] for row in rows if row["example_id"] == "e1"]
    assert of_e1 == [f"SELECT '{letter}', {index}" for index, letter in enumerate("WWWR")]
    assert fake_judge[0][1] == {"databases": "both", "workers": 1, "seed": 0}
    # The judge's own step finds every query, those of later samples too.
    verdicts = tmp_path / "verdicts.parquet"
    judge(verdicts, {}, EXAMPLES, target, databases="both", workers=1, shard_size=4, seed=0)
    assert len(read_parquet(verdicts)) == len(rows) == 15
    assert bars() == [("sample", 15, 15), ("question", 5, 5)]  # 25 at most: less for every question that has enough
    for name, schema in (("pairs", PAIRS_SCHEMA), ("dropped", DROPPED_SCHEMA)):
        write_parquet(tmp_path / f"{name}.parquet", [], schema)
    print_yield(tmp_path)
    said = capsys.readouterr().out
    assert "samples a question: 3 questions stopped at 2, 1 questions stopped at 4, 1 questions drew all 5" in said


def test_without_most_samples_no_judge_is_opened(tiny_model, tmp_path, fake_judge):
    writer = Writer({f"e{n}": "WW" for n in range(5)})
    sample(tmp_path / "candidates.parquet", {}, EXAMPLES, writer, None, load_tokenizer(tiny_model), **SETTINGS)
    assert not fake_judge and len(writer.asked) == 3


def test_the_samples_of_blocks_are_those_drawn_at_once(tiny_model, tmp_path, fake_judge, monkeypatch):
    """With the real sampler: 2 + 2 + 1 samples of questions that are never right are the first 5 of one draw."""
    from sft.checkpoint import load_base

    model, tokenizer = load_base(tiny_model, precision="fp32").eval(), load_tokenizer(tiny_model)
    monkeypatch.setattr(FakeJudge, "word", lambda judge, query: "wrong")
    found = {}
    for name, changes in {"blocks": {"most_samples": 5}, "once": {"samples": 5}}.items():
        target = tmp_path / f"{name}.parquet"
        sample(target, {}, EXAMPLES[:4], generate, model, tokenizer, **SETTINGS | changes)
        found[name] = read_parquet(target)
    logps = {name: [row.pop("logp_sum") for row in rows] for name, rows in found.items()}
    assert found["blocks"] == found["once"] and len(found["once"]) == 20
    assert logps["blocks"] == pytest.approx(logps["once"], abs=1e-4)


def test_a_question_that_comes_again_in_a_later_round_is_drawn_anew(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    first, second = Sampler(), Sampler()
    sample(tmp_path / "1.parquet", {}, EXAMPLES, first, None, tokenizer, **SETTINGS)
    sample(tmp_path / "2.parquet", {}, EXAMPLES, second, None, tokenizer, **SETTINGS | {"round_number": 2})
    assert first.asked[0] == ["e0", "e1"] and second.asked[0] == ["round-2:e0", "round-2:e1"]
    assert {(row["example_id"], row["round"]) for row in read_parquet(tmp_path / "2.parquet")} == {(f"e{n}", 2) for n in range(5)}
