"""The store: what can be opened, lists against a plain reading of the same rows, one pair, one question, broken files."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preference.inspection import index
from preference.inspection import store as store_module
from preference.inspection.store import open_store
from preference.pairs import PAIRS_SCHEMA
from sft.artefacts import read_parquet, write_parquet

PROJECT = Path(__file__).parents[3]
PLAIN = [{"prompt": f"What is {number}?", "chosen": f"SELECT {number}", "rejected": f"SELECT {number} + 1"} for number in range(5)]
MESSAGES = [{side: [{"role": "user" if side == "prompt" else "assistant", "content": row[side]}] for side in row} for row in PLAIN]


def pair(number, **columns):
    """A row of PAIRS_SCHEMA of which no two are alike."""
    row = {
        "pair_id": f"{number:04x}", "example_id": f"e{number // 3}", "question": f"Question {number} about pets?",
        "prompt": [{"role": "user", "content": f"Question {number}"}], "chosen_sql": f"SELECT {'a' * (number % 7)} FROM t{number}",
        "rejected_sql": f"SELECT {'b' * (number % 5)} FROM t", "chosen_verdict": "correct", "rejected_verdict": "wrong",
        "chosen_reason": "equal", "rejected_reason": ("rows", "columns", "order")[number % 3], "source": f"s{number % 2}",
        "strategy": "nearest", "kind": [["join"], ["join", "group"], ["joined"]][number % 3], "round": 1 + number % 2,
        "kill_score": None if number % 4 == 0 else (number % 5) / 5, "chosen_logp_sum": -1.0 * (number % 6),
        "rejected_logp_sum": -2.0, "gold_fallback": False}
    row |= {side: [{"role": "assistant", "content": row[f"{side}_sql"]}] for side in ("chosen", "rejected")}
    return row | columns


@pytest.fixture
def opened(request):
    """A function that opens a store, which is closed after the test."""
    stores = []

    def open_it(path):
        stores.append(open_store(path))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def thirty(tmp_path, opened):
    """(rows, store) of thirty pairs."""
    rows = [pair(number) for number in range(30)]
    write_parquet(tmp_path / "pairs.parquet", rows, PAIRS_SCHEMA)
    return rows, opened(tmp_path / "pairs.parquet")


def ids(result):
    total, rows = result
    assert total == len(rows)
    return [row["pair_id"] for row in rows]


# ----------------------------------------------------------------------- lists


@pytest.mark.parametrize(("filters", "keeps"), [
    ({}, lambda row: True),
    ({"verdict": "wrong"}, lambda row: True),
    ({"verdict": "unclear"}, lambda row: False),
    ({"reason": "columns"}, lambda row: row["rejected_reason"] == "columns"),
    ({"reason": "equal", "source": "s1"}, lambda row: row["source"] == "s1"),
    ({"kind": "join"}, lambda row: "join" in row["kind"]),
    ({"kind": "joi"}, lambda row: False),
    ({"round": "2"}, lambda row: row["round"] == 2),
    ({"example_id": "e3"}, lambda row: row["example_id"] == "e3"),
    ({"min_length": "18"}, lambda row: max(len(row["chosen_sql"]), len(row["rejected_sql"])) >= 18),
    ({"min_length": "16", "max_length": "17"}, lambda row: 16 <= max(len(row["chosen_sql"]), len(row["rejected_sql"])) <= 17),
    ({"source": "' OR 1=1 --"}, lambda row: False),
    ({"labelled": "no", "strategy": " nearest "}, lambda row: True),
    ({"person_label": "tie", "source": ""}, lambda row: False),
])
def test_filters_keep_what_they_say(thirty, filters, keeps):
    rows, store = thirty
    assert ids(store.page(filters)) == [row["pair_id"] for row in rows if keeps(row)]


@pytest.mark.parametrize(("search", "keeps"), [
    ("pets", lambda row: True),
    ("PETS select", lambda row: True),
    ("aaaaa", lambda row: "aaaaa" in row["chosen_sql"]),
    ('"question 7 about"', lambda row: row["pair_id"] == "0007"),
    ("about question", lambda row: True),
    ('"about question"', lambda row: False),
    ("bbb t1", lambda row: "bbb" in row["rejected_sql"] and "t1" in row["chosen_sql"]),
    ("001", lambda row: row["pair_id"].startswith("001")),
    ("%", lambda row: False),
    ("t_", lambda row: False),
    ("\\", lambda row: False),
    ("'; DROP TABLE pairs", lambda row: False),
    ("\ud800", lambda row: "?" in row["question"]),  # a lone surrogate cannot be asked for; it becomes ?
])
def test_search_finds_all_words_in_any_case(thirty, search, keeps):
    rows, store = thirty
    assert ids(store.page(search=search)) == [row["pair_id"] for row in rows if keeps(row)]


def test_search_within_a_filter_and_within_what_has_a_label(thirty, monkeypatch):
    monkeypatch.setattr(store_module, "_REMEMBERED", 3)
    rows, store = thirty
    for reason in ("rows", "columns", "order", "rows"):
        for search in ("aaa", "bbb t1"):
            everything = ids(store.page(search=search))
            assert ids(store.page({"reason": reason}, search=search)) == [
                row["pair_id"] for row in rows if row["pair_id"] in everything and row["rejected_reason"] == reason]
            assert ids(store.page({"kind": "join", "reason": reason}, search=search, sort="pair_id", descending=True)) == sorted((
                row["pair_id"] for row in rows if row["pair_id"] in everything and row["rejected_reason"] == reason and
                "join" in row["kind"]), reverse=True)
    assert ids(store.page({"labelled": "yes"}, search="pets")) == []
    store.labels.add("0003", "ada", "tie")
    assert ids(store.page({"labelled": "yes"}, search="pets")) == ["0003"] == ids(store.page({"person_label": "tie"}, search="pets"))
    assert len(store.rows("SELECT 1 FROM duckdb_tables() WHERE starts_with(table_name, 'matching_')")) == 3


@pytest.mark.parametrize("sort", ["", "question", "chosen_length", "kill_score", "round", "pair_id", "chosen_logp"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_and_neighbours_follow_one_order(thirty, sort, descending):
    rows, store = thirty
    whole = ids(store.page(sort=sort, descending=descending))
    assert sorted(whole) == sorted(row["pair_id"] for row in rows)
    assert [row["pair_id"] for start in range(0, 30, 7) for row in store.page(
        sort=sort, descending=descending, offset=start, limit=7)[1]] == whole
    values = [row[sort] for row in store.page(sort=sort, descending=descending)[1]] if sort else whole
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=descending) and values[len(known):] == [None] * (30 - len(known))
    for filters in ({}, {"reason": "rows"}):
        some = ids(store.page(filters, sort=sort, descending=descending))
        for before, here, after in zip([None, *some], some, [*some[1:], None]):
            assert store.neighbours(here, filters, sort=sort, descending=descending) == (before, after)


def test_neighbours_of_a_pair_that_the_filter_no_longer_holds(thirty):
    _, store = thirty
    store.labels.add("0004", "ada", "tie")
    assert store.neighbours("0004", {"labelled": "no"}) == ("0003", "0005")
    assert store.neighbours("nowhere") == (None, None)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"filters": {"reasn": "rows"}}, "no filter 'reasn'; allowed are verdict, .*; did you mean reason"),
    ({"filters": {"round": "one"}}, "round is 'one'; allowed are whole numbers"),
    ({"filters": {"min_length": "9" * 30}}, "min_length"),
    ({"filters": {"labelled": "maybe"}}, "allowed are yes and no"),
    ({"filters": {"person_label": "good"}}, "allowed are prefer_chosen"),
    ({"sort": "lengths"}, "cannot be sorted by 'lengths'; allowed are question, "),
    ({"sort": "row; DROP TABLE pairs"}, "cannot be sorted by"),
    ({"search": "x" * 501}, "allowed are up to 500"),
    ({"offset": -1}, "allowed are offset >= 0"),
    ({"limit": 10**6}, "1 to 1000 rows"),
])
def test_impossible_requests_are_refused(thirty, arguments, message):
    with pytest.raises(ValueError, match=message):
        thirty[1].page(**arguments)


def test_facets_count_values_and_labels(thirty):
    _, store = thirty
    store.labels.add("0001", "ada", "tie")
    store.labels.add("0001", "bo", "prefer_chosen")
    store.labels.add("0002", "ada", "tie")
    facets = store.facets()
    assert facets["reason"] == [("equal", 30), ("columns", 10), ("order", 10), ("rows", 10)]
    assert facets["kind"] == [("join", 20), ("group", 10), ("joined", 10)] and facets["round"] == [("1", 15), ("2", 15)]
    assert facets["verdict"] == [("correct", 30), ("wrong", 30)]
    assert facets["labelled"] == [("yes", 2), ("no", 28)] and facets["person_label"] == [("tie", 2), ("prefer_chosen", 1)]
    assert ids(store.page({"labelled": "yes"})) == ["0001", "0002"] and ids(store.page({"person_label": "prefer_chosen"})) == ["0001"]
    assert [row["label"] for row in store.page(limit=4)[1]] == [None, "prefer_chosen", "tie", None]
    store.labels.undo("ada")
    assert store.facets()["labelled"] == [("yes", 1), ("no", 29)]


def test_a_label_on_other_texts_is_not_shown(tmp_path, opened):
    """Ids of other people's files need not follow from the texts: a label counts only for the texts that were seen."""
    path = tmp_path / "pairs.parquet"
    rows = [dict(row, pair_id=f"p{number}") for number, row in enumerate(MESSAGES)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    store = opened(path)
    for name in ("p0", "p1"):
        store.labels.add(name, "ada", "tie", content_hash=store.pair(name)["content_hash"])
    assert ids(store.page({"labelled": "yes"})) == ["p0", "p1"]
    rows[0]["rejected"] = [{"role": "assistant", "content": "SELECT 'made anew'"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    again = opened(path)
    assert ids(again.page({"labelled": "yes"})) == ["p1"]
    assert again.pair("p0")["labels"] == {} and again.pair("p1")["labels"]["ada"].label == "tie"


def test_sides_that_changed_places_take_the_label_along(tmp_path, opened):
    path = tmp_path / "pairs.parquet"
    rows = [pair(0, pair_id="p0")]
    write_parquet(path, rows, PAIRS_SCHEMA)
    store = opened(path)
    store.labels.add("p0", "ada", "prefer_rejected", content_hash=store.pair("p0")["content_hash"])
    turned = rows[0] | {side: rows[0][other] for side, other in (("chosen", "rejected"), ("rejected", "chosen"))}
    write_parquet(path, [turned], PAIRS_SCHEMA)
    assert opened(path).pair("p0")["labels"]["ada"].label == "prefer_chosen"


# -------------------------------------------------------- one pair, one question


def test_the_clinics_run(clinic_run, opened):
    store = opened(clinic_run)
    stored = read_parquet(clinic_run / "round-1" / "pairs.parquet")
    assert (store.kind, store.total, store.warnings) == ("pairs", len(stored), [])
    assert store.columns == set(PAIRS_SCHEMA.names) and store.labels_path == clinic_run / "labels.sqlite"
    for row in stored:
        found = store.pair(row["pair_id"])
        assert found["content_hash"] == row["pair_id"], "the id that preference.pairs gives is the hash of the texts"
        assert {name: found[name] for name in row if not name.endswith("_trace")} == {
            name: value for name, value in row.items() if not name.endswith("_trace")}
        assert found["rejected_trace"] == json.loads(row["rejected_trace"])
    assert store.pair("nowhere") is None


def test_a_question_joins_samples_verdicts_and_pairs(clinic_run, opened):
    store = opened(clinic_run)
    found = store.question("clinic/01")
    assert found["example"]["question"] == "How many pets are registered?" and found["warnings"] == []
    assert {query["verdict"] for query in found["queries"]} == {"correct", "wrong"}
    assert sum(query["count"] for query in found["queries"]) == 5 and all(query["trace"] for query in found["queries"])
    assert [row["example_id"] for row in found["pairs"]] == ["clinic/01"] * len(found["pairs"]) and found["pairs"]
    assert store.question("nowhere") == {"example": None, "queries": [], "pairs": [], "rankings": {}, "warnings": []}


def test_candidates_alone_show_their_verdicts(clinic_run, opened):
    store = opened(clinic_run / "round-1" / "candidates.parquet")
    total, rows = store.page(limit=1000)
    assert store.kind == "candidates" and total == len(read_parquet(clinic_run / "round-1" / "candidates.parquet"))
    assert {row["chosen_verdict"] for row in rows} >= {"correct", "wrong"} and rows[0]["question"] == "How many pets are registered?"
    assert rows[1]["pair_id"] == "clinic/01:1" and store.pair("clinic/01:1")["gold_sql"] == "SELECT COUNT(*) FROM pet"


def test_a_run_is_opened_with_the_pairs_of_all_its_rounds_in_their_order(clinic_run, tmp_path, opened):
    for number in (10, 2, 1):
        shutil.copytree(clinic_run / "round-1", tmp_path / f"round-{number}")
    stored = len(read_parquet(clinic_run / "round-1" / "pairs.parquet"))
    store = opened(tmp_path)
    assert [path.parent.name for path in store.files.main] == ["round-1", "round-2", "round-10"] and store.total == 3 * stored
    assert opened(tmp_path / "round-2").total == stored and opened(tmp_path / "round-2").labels_path == tmp_path / "labels.sqlite"


def test_without_the_runs_candidates_the_sides_stand_in(clinic_run, tmp_path, opened):
    shutil.copy(clinic_run / "round-1" / "pairs.parquet", tmp_path)
    found = opened(tmp_path / "pairs.parquet").question("clinic/01")
    assert found["example"]["gold_sql"] and {query["verdict"] for query in found["queries"]} == {"correct", "wrong"}
    assert "candidates are not there" in found["warnings"][0]


def test_nearest_ids(thirty):
    _, store = thirty
    assert store.nearest("000") == [f"000{digit}" for digit in "012345678"]
    assert store.nearest("e2") == ["0006", "0007", "0008"]
    assert store.nearest("00x4")[0] in ("0004", "0014") and len(store.nearest("00x4")) == 5
    assert store.nearest("")


# ------------------------------------------------------------- any TRL dataset


def saved_by_datasets(folder):
    import datasets

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(MESSAGES)}).save_to_disk(folder / "saved")
    return folder / "saved"


def written(name, rows):
    def write(folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


IMPLICIT = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in MESSAGES]


@pytest.mark.parametrize("make", [
    written("text.parquet", PLAIN), written("text.jsonl", PLAIN), written("messages.parquet", MESSAGES),
    written("messages.jsonl", MESSAGES), written("messages.json", MESSAGES), written("no-prompt.parquet", IMPLICIT),
    saved_by_datasets, lambda folder: written("data/train-00000-of-00001.parquet", MESSAGES)(folder).parents[1],
    written("it's [a] *odd* name.parquet", MESSAGES), written("round=7/pairs.jsonl", PLAIN),
])
def test_preference_datasets_of_all_shapes(make, tmp_path, opened):
    store = opened(make(tmp_path))
    assert (store.kind, store.total, store.warnings) == ("pairs", 5, [])
    row = store.page()[1][3]
    assert (row["question"], row["chosen_sql"], row["rejected_sql"]) == ("What is 3?", "SELECT 3", "SELECT 3 + 1")
    assert row["rejected_verdict"] is None and row["round"] is None, "a folder's name is no column"
    found = store.pair(row["pair_id"])
    assert found["chosen_sql"] == "SELECT 3" and found["labels"] == {} and len(found["content_hash"]) == 16
    assert store.overview()["flags"] == [] and store.facets()["reason"] == []
    assert len({row["pair_id"] for row in store.page()[1]}) == 5


def test_a_pair_that_stands_there_twice_is_passed_over_once(tmp_path, opened):
    """As when a round makes a pair again: `next` goes on, and comes to an end."""
    rows = [{"pair_id": name, "prompt": "p", "chosen": f"c{name}", "rejected": f"r{name}", "round": number}
            for name, number in (("a", 1), ("b", 1), ("a", 2), ("c", 2), ("b", 2))]
    store = opened(written("twice.jsonl", rows)(tmp_path))
    for filters, walk in (({}, ["a", "b", "c"]), ({"round": "2"}, ["a", "c", "b"])):
        for before, here, after in zip([None, *walk], walk, [*walk[1:], None]):
            assert store.neighbours(here, filters) == (before, after)


def test_times_of_a_zone_are_read(tmp_path, opened):
    when = pa.array([1, None], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"], "created_at": when}), tmp_path / "zone.parquet")
    store = opened(tmp_path / "zone.parquet")
    found = [store.pair(row["pair_id"]) for row in store.page()[1]]
    assert found[0]["created_at"].startswith("1970-01-01") and found[1]["created_at"] is None


def test_what_the_hub_keeps_beside_a_dataset_is_no_part_of_it(tmp_path, opened):
    written("data/train-00000-of-00001.parquet", MESSAGES)(tmp_path)
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (tmp_path / "notes.json").write_text('{"any": "other"}')
    assert opened(tmp_path).total == 5


def test_labels_of_a_rounds_pairs_go_to_the_run_from_wherever_they_are_named(clinic_run, monkeypatch, opened):
    monkeypatch.chdir(clinic_run / "round-1")
    for named in ("pairs.parquet", ".", clinic_run / "round-1" / "pairs.parquet", clinic_run / "round-1"):
        assert opened(named).labels_path == clinic_run / "labels.sqlite"


def test_texts_that_look_like_dates_stay_texts(tmp_path, opened):
    path = written("dates.jsonl", [{"prompt": "2024-01-01", "chosen": "12:30:00", "rejected": "2024-01-01 10:00:00"}])(tmp_path)
    row = opened(path).page()[1][0]
    assert (row["question"], row["chosen_sql"], row["rejected_sql"]) == ("2024-01-01", "12:30:00", "2024-01-01 10:00:00")


def test_columns_of_other_types_are_read_as_far_as_they_go(tmp_path, opened):
    table = pa.table({"chosen": [1, 2], "rejected": [2.5, 3.0], "kind": [1, 2], "round": ["x", "2"], "kill_score": ["a", "0.5"],
                      "gold_fallback": ["maybe", "true"], "question": [b"\xff", b"x"], "example_id": [1, 2],
                      "chosen_trace": ["{bad", "[1]"]})
    pq.write_table(table, tmp_path / "odd.parquet")
    store = opened(tmp_path / "odd.parquet")
    rows = store.page()[1]
    assert [(row["chosen_sql"], row["round"], row["kill_score"]) for row in rows] == [("1", None, None), ("2", 2, 0.5)]
    assert store.pair(rows[0]["pair_id"])["chosen_trace"] == {"text": "{bad"}
    assert store.question("1")["pairs"]


# ----------------------------------------------------------------- what is broken


@pytest.mark.parametrize(("name", "content", "message"), [
    ("empty.parquet", b"", "is not a readable Parquet file"),
    ("garbage.parquet", b"PAR1" + bytes(500) + b"PAR1", "is not a readable Parquet file"),
    ("pairs.txt", b"hello", "is no preference file: allowed are a run's folder and files that end in"),
    ("empty.jsonl", b"", "the file is empty"),
    ("broken.jsonl", b'{"chosen": "a", "rejected": "b"}\n{oh', "is not readable as a dataset .*line"),
    ("other.jsonl", b'{"text": "a"}\n', "its columns are text. Needed are the columns chosen and rejected"),
])
def test_files_that_are_none_say_so_in_three_parts(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_store(tmp_path / name)
    assert str(error.value).count(". ") >= 1 and "\n" not in str(error.value)


def test_a_truncated_file_and_one_that_is_damaged_inside(clinic_run, tmp_path):
    whole = (clinic_run / "round-1" / "pairs.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.parquet is not a readable Parquet file .* Allowed are whole files. Copy it"):
        open_store(tmp_path / "cut.parquet")
    damaged = bytearray(whole)
    damaged[100:2000] = b"\x55" * 1900
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged.parquet is (damaged|not a readable)"):
        open_store(tmp_path / "damaged.parquet")


def test_nothing_there(tmp_path):
    (tmp_path / "pears.parquet").touch()
    with pytest.raises(ValueError, match="pairs.parquet does not exist. There are: .*pears.parquet"):
        open_store(tmp_path / "pairs.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pairs"):
        open_store(tmp_path / "empty")


@pytest.mark.parametrize("victim", ["round-1/candidates.parquet", "round-1/verdicts.parquet", "round-1/dropped.parquet",
                                    "data/train.parquet", "labels.sqlite"])
def test_what_stands_beside_the_pairs_may_be_broken(clinic_run, tmp_path, victim, opened):
    run = shutil.copytree(clinic_run, tmp_path / "run")
    (run / victim).write_bytes(b"broken " * 20)
    store = opened(run)
    total, rows = store.page()
    assert total and store.pair(rows[0]["pair_id"]) and store.question("clinic/01")["pairs"] and store.overview()["total"] == total
    assert len(store.warnings) == 1 and victim.rpartition("/")[2] in store.warnings[0]


def test_hostile_texts_are_only_texts(tmp_path, opened):
    nasty = ["\x1b[31mred\x1b[0m", "[bold]x[/bold] <script>alert(1)</script>", "\u202eabc\u2066", "nul \x00 nul", "x" * 1_000_000]
    rows = [pair(number, pair_id=f"{text[:30]}{number}", question=text, chosen_sql=text, rejected_sql=f"{text}!", kind=[text[:20], "\x1f"],
                 source=text[:40], context=text) for number, text in enumerate(nasty)]
    write_parquet(tmp_path / "pairs.parquet", rows, PAIRS_SCHEMA)
    store = opened(tmp_path / "pairs.parquet")
    for row, short in zip(rows, store.page()[1], strict=True):
        assert short["question"] == row["question"][:4000]
        assert store.pair(row["pair_id"])["chosen_sql"] == row["chosen_sql"]
        assert store.page({"source": row["source"]})[0] == 1
    assert store.page(search="<script>")[0] == 1


# --------------------------------------------------------------------- the index


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Every file counts as large enough for an index on disk; its folder."""
    monkeypatch.setattr(index, "_LARGE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text-to-sql-preference"


def test_the_index_is_made_once_and_anew_when_the_file_changes(large, tmp_path, opened):
    path = tmp_path / "pairs.parquet"
    write_parquet(path, [pair(number) for number in range(40)], PAIRS_SCHEMA)
    first = ids(opened(path).page({"reason": "rows"}))
    [made] = large.glob("*.duckdb")
    first_made = made.stat().st_ino
    assert ids(opened(path).page({"reason": "rows"})) == first and made.stat().st_ino == first_made
    write_parquet(path, [pair(number) for number in range(50)], PAIRS_SCHEMA)
    assert opened(path).total == 50
    assert list(large.glob("*")) != [made] and len(list(large.glob("*"))) == 1, "the old index is cleared away"
    [made] = large.glob("*.duckdb")
    made.write_bytes(b"damaged")
    assert opened(path).total == 50


def test_an_index_that_nobody_used_for_long_goes(large, tmp_path, opened):
    old, used, new = (tmp_path / f"{name}.parquet" for name in ("old", "used", "new"))
    for path in (old, used, new):
        write_parquet(path, [pair(number) for number in range(5)], PAIRS_SCHEMA)
    opened(old)
    [of_old] = large.glob("*.duckdb")
    opened(used)
    [of_used] = set(large.glob("*.duckdb")) - {of_old}
    of_a_killed_process = large / f".{of_old.name}.1.tmp"
    of_a_killed_process.touch()
    for file in large.iterdir():
        os.utime(file, (1_000, 1_000))
    opened(used)  # which says that it is used
    opened(new)
    kept = set(large.iterdir())
    assert of_used in kept and len(kept) == 2 and not {of_old, of_a_killed_process} & kept
    assert large.stat().st_mode & 0o077 == 0, "it holds what the pairs hold"


def test_two_processes_that_make_the_index_at_once(large, tmp_path):
    path = tmp_path / "pairs.parquet"
    write_parquet(path, [pair(number) for number in range(300)], PAIRS_SCHEMA)
    code = ("import sys; from preference.inspection import index; index._LARGE = 1; "
            "from preference.inspection.store import open_store; print(open_store(sys.argv[1]).page({'reason': 'rows'})[0])")
    started = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True,
                                env=os.environ | {"PYTHONPATH": str(PROJECT)}) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in started] == ["100"] * 3
    assert len(list(large.glob("*"))) == 1


def test_where_no_index_can_be_kept_a_temporary_one_serves(monkeypatch, tmp_path, opened):
    monkeypatch.setattr(index, "_LARGE", 1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write_parquet(tmp_path / "pairs.parquet", [pair(number) for number in range(9)], PAIRS_SCHEMA)
    assert opened(tmp_path / "pairs.parquet").page({"reason": "rows"})[0] == 3


def test_many_threads_read_at_once(thirty):
    from concurrent.futures import ThreadPoolExecutor

    rows, store = thirty

    def work(number):
        chance = random.Random(number)
        name = chance.choice(rows)["pair_id"]
        store.labels.add(name, f"a{number % 3}", "tie")
        assert store.pair(name)["pair_id"] == name
        return store.page({"reason": "rows"}, search=f"question {chance.randrange(9)}", sort="kill_score")[0]

    with ThreadPoolExecutor(8) as threads:
        assert all(isinstance(total, int) for total in threads.map(work, range(60)))
