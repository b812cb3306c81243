"""Labels and rankings become pairs: in the file (`apply`), when pairs are built anew, and as label noise for the loss."""

import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from preference.inspection import apply
from preference.inspection.apply import apply_labels, rewrite
from preference.inspection.contents import exchanged, hash_of
from preference.inspection.decisions import Action, majority
from preference.inspection.export import export_pairs
from preference.inspection.labels import LabelFile
from preference.inspection.question import question_hash
from preference.inspection.store import open_store
from preference.inspection.training import label_smoothing, with_peoples_words
from preference.pairs import DROPPED_SCHEMA, PAIRS_SCHEMA, build_pairs
from preference.sampling import CANDIDATES_SCHEMA
from reward.queries import canonical_sql
from sft.artefacts import mark_complete, read_parquet, write_parquet
from sft.configuration import DpoConfig, read_configuration

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def run(clinic_run, tmp_path):
    """A copy of the clinic's run, its pairs marked as complete."""
    folder = Path(shutil.copytree(clinic_run, tmp_path / "run"))
    mark_complete(folder / "round-1" / "pairs.parquet", {"seed": 7}, {"pairs": len(pairs_of(folder)), "dropped": 0})
    return folder


def pairs_of(run):
    return read_parquet(run / "round-1" / "pairs.parquet")


def by_id(pairs):
    return {pair["pair_id"]: pair for pair in pairs}


def label(run, words, annotator="ada"):
    """Labels by pair number, and the pairs as they were."""
    pairs = pairs_of(run)
    file = LabelFile(run / "labels.sqlite")
    for number, word in words.items():
        file.add(pairs[number]["pair_id"], annotator, word, content_hash=hash_of(pairs[number]))
    file.close()
    return pairs


def applied(run):
    """(revision, what was printed, pairs now)."""
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    store = open_store(run)
    try:
        revision = apply_labels(store, console)
    finally:
        store.close()
    return revision, console.export_text(), pairs_of(run) if run.is_dir() else None


# ------------------------------------------------------------------- majorities


@pytest.mark.parametrize(("words", "expected"), [
    ([], (None, False)), (["skip", "skip"], (None, False)), (["tie"], ("tie", False)), (["tie", "skip"], ("tie", False)),
    (["tie", "prefer_chosen"], (None, True)), (["tie", "prefer_chosen", "tie"], ("tie", False)),
    (["a", "a", "b", "b", "c"], (None, True)),
])
def test_majority(words, expected):
    assert majority(words) == expected


# ------------------------------------------------------------------------ apply


def test_flips_exchange_every_column_of_the_sides(run):
    before = label(run, {0: "prefer_rejected", 1: "prefer_chosen"})
    revision, printed, after = applied(run)
    assert revision.counts() == {"flipped": 1, "confirmed": 1, "added from rankings": 0, "conflicts": 0, "labels refused": 0,
                                 "questions quarantined": 0}
    assert "1 flipped" in printed and "pairs.parquet.before-labels-1" in printed
    assert before[0]["margin"] > 0, "how much more wrong the executor found the side that is now chosen"
    expected = dict(before[0], person_label="prefer_rejected", margin=0.0)
    for name in before[0]:
        if name.startswith("chosen"):
            other = "rejected" + name.removeprefix("chosen")
            expected[name], expected[other] = before[0][other], before[0][name]
    assert after[0] == expected and after[0]["source"] == "clinic" and after[0]["rejected_verdict"] == "correct"
    assert after[1] == dict(before[1], person_label="prefer_chosen") and after[2:] == before[2:]
    assert read_parquet(run / "round-1" / "pairs.parquet.before-labels-1") == before
    mark = json.loads((run / "round-1" / "pairs.complete.json").read_text())
    assert mark == {"inputs": {"seed": 7}, "rows": {"pairs": len(before), "dropped": 0}}, "the step stays complete"
    assert pq.read_schema(run / "round-1" / "pairs.parquet") == PAIRS_SCHEMA


def test_a_pair_that_people_decide_weighs_1(run):
    path = run / "round-1" / "pairs.parquet"
    write_parquet(path, [pair | {"weight": 0.4} for pair in pairs_of(run)], PAIRS_SCHEMA)
    label(run, {0: "prefer_rejected", 1: "prefer_chosen"})
    _, _, after = applied(run)
    assert [pair["weight"] for pair in after[:3]] == [1.0, 1.0, 0.4]


def test_drops_and_the_quarantine(run):
    words = {0: "tie", 3: "both_wrong", 4: "gold_wrong", 6: "unanswerable", 8: "skip"}
    before = label(run, words)
    questions = [pair["example_id"] for pair in before]
    assert questions[4] == questions[5] and questions[6] == questions[7], "the clinic's pairs come in twos"
    revision, _, after = applied(run)
    gone = {0, 3, 4, 5, 6, 7}
    assert after == [pair for number, pair in enumerate(before) if number not in gone]
    assert revision.counts() | {"conflicts": 0} == {
        "dropped: tie": 1, "dropped: both_wrong": 1, "dropped: gold_wrong": 1, "dropped: unanswerable": 1,
        "dropped: with their question": 2, "added from rankings": 0, "conflicts": 0, "labels refused": 0,
        "questions quarantined": 1}
    [entry] = [json.loads(line) for line in (run / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert (entry["example_id"], entry["reason"], entry["detail"]) == (questions[4], "person_gold_wrong", "said by ada")
    assert entry["content"]["gold_sql"] == before[4]["gold_sql"]
    dropped = read_parquet(run / "round-1" / "dropped.parquet")
    assert {"example_id": questions[0], "reason": "person_tie", "detail": f"pair {before[0]['pair_id']}: ada"} in dropped
    assert len([row for row in dropped if row["reason"].startswith("person_")]) == 6
    assert pq.read_schema(run / "round-1" / "dropped.parquet") == DROPPED_SCHEMA


def test_a_side_that_a_person_prefers_stands_although_gold_is_wrong(run):
    before = label(run, {4: "gold_wrong", 5: "prefer_rejected"})
    _, _, after = applied(run)
    found = by_id(after)
    assert before[4]["pair_id"] not in found
    assert found[before[5]["pair_id"]]["chosen_sql"] == before[5]["rejected_sql"]


def test_applied_again_nothing_changes_and_nothing_is_refused(run):
    label(run, {0: "prefer_rejected", 1: "tie", 4: "gold_wrong", 8: "prefer_chosen"})
    _, _, after = applied(run)
    files = {path: path.read_bytes() for path in (run / "round-1").iterdir()} | {
        run / "data" / "quarantine.jsonl": (run / "data" / "quarantine.jsonl").read_bytes()}
    for _ in range(2):
        revision, printed, again = applied(run)
        assert again == after and revision.refused == [] and "already as people say" in printed
    assert {path: path.read_bytes() for path in files} == files and {*(run / "round-1").iterdir()} <= files.keys()


def test_minds_that_change_after_apply(run):
    before = label(run, {0: "prefer_rejected", 1: "prefer_rejected", 2: "prefer_rejected"})
    _, _, after = applied(run)
    # Of the first the annotator now says the opposite of the flipped pair, of the second the opposite of the old one.
    file = LabelFile(run / "labels.sqlite")
    file.add(before[0]["pair_id"], "ada", "prefer_rejected", content_hash=hash_of(after[0]))
    file.add(before[1]["pair_id"], "ada", "prefer_chosen", content_hash=hash_of(before[1]))
    file.add(before[2]["pair_id"], "ada", "prefer_chosen", content_hash=hash_of(after[2]))
    file.close()
    _, _, again = applied(run)
    assert again[0] == dict(before[0], person_label="prefer_chosen") and again[1] == dict(before[1], person_label="prefer_chosen")
    assert again[2] == after[2]
    assert sorted(path.name for path in (run / "round-1").glob("*before*")) == [
        "pairs.parquet.before-labels-1", "pairs.parquet.before-labels-2"]


def test_annotators_that_disagree(run):
    label(run, {0: "prefer_rejected", 1: "prefer_rejected", 2: "tie"}, "ada")
    label(run, {0: "prefer_chosen", 1: "prefer_rejected", 2: "skip"}, "bo")
    before = label(run, {1: "prefer_chosen"}, "cy")
    revision, printed, after = applied(run)
    assert revision.conflicts == [before[0]["pair_id"]] and after[0] == before[0]
    assert after[1]["chosen_sql"] == before[1]["rejected_sql"] and before[2]["pair_id"] not in by_id(after)
    assert "executor's word stays" in printed and before[0]["pair_id"] in printed


def test_labels_meant_for_other_texts_are_refused_counted_and_listed(run):
    before = label(run, {0: "prefer_rejected"})
    file = LabelFile(run / "labels.sqlite")
    file.add("0123456789abcdef", "bo", "prefer_rejected")
    file.add(before[1]["pair_id"], "b\N{LATIN SMALL LETTER O WITH DIAERESIS}", "tie", content_hash="of another day")
    file.close()
    revision, printed, after = applied(run)
    assert {label.pair_id for label in revision.refused} == {"0123456789abcdef", before[1]["pair_id"]}
    assert after[1:] == before[1:] and after[0] != before[0]
    assert "2 labels refused" in printed and "0123456789abcdef (bo: prefer_rejected)" in printed


def test_killed_between_its_files_it_is_done_again_whole(run, monkeypatch):
    before = label(run, {0: "tie", 4: "gold_wrong"})
    monkeypatch.setattr(apply, "rewrite", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        applied(run)
    assert pairs_of(run) == before
    monkeypatch.undo()
    _, _, after = applied(run)
    assert len(after) == len(before) - 3
    assert len((run / "data" / "quarantine.jsonl").read_text().splitlines()) == 1
    assert len([row for row in read_parquet(run / "round-1" / "dropped.parquet") if row["reason"].startswith("person")]) == 3


def test_what_cannot_be_applied_says_why(run, tmp_path):
    with pytest.raises(ValueError, match="there are no labels in .*labels.sqlite. Needed is at least one. Label first"):
        applied(run)
    with pytest.raises(ValueError, match="holds candidates, not pairs"):
        applied(run / "round-1" / "candidates.parquet")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(ValueError, match="is no Parquet file, and apply writes Parquet. Convert it first"):
        applied(tmp_path / "pairs.jsonl")


def test_a_plain_dataset_gets_the_columns_that_it_needs(tmp_path):
    path = tmp_path / "data.parquet"
    rows = [{"prompt": f"q{number}", "chosen": f"a{number}", "rejected": f"b{number}", "extra": number} for number in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    store = open_store(path)
    names = [row["pair_id"] for row in store.page()[1]]
    store.labels.add(names[1], "ada", "prefer_rejected", content_hash=store.pair(names[1])["content_hash"])
    store.labels.add(names[2], "ada", "tie", content_hash=store.pair(names[2])["content_hash"])
    store.close()
    for _ in range(2):
        assert applied(path)[0].refused == []
        found = read_parquet(path)
        assert [row["pair_id"] for row in found] == [names[0], names[1], names[3]], "ids outlive sides that change places"
        assert [(row["chosen"], row["rejected"], row["extra"], row["person_label"]) for row in found] == [
            ("a0", "b0", 0, None), ("b1", "a1", 1, "prefer_rejected"), ("a3", "b3", 3, None)]
    assert (tmp_path / "data.parquet.before-labels-1").exists()


def test_a_datasets_folder_holds_its_pairs_once_after_apply(run, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    store = open_store(run)
    export_pairs(store, tmp_path / "out", None, True, Console(file=open("/dev/null", "w")))
    total = store.total
    store.close()
    for count, word in enumerate(("prefer_rejected", "gold_wrong"), start=1):
        store = open_store(tmp_path / "out")
        assert store.total == total, "neither the kept file nor the quarantine counts as pairs"
        first = store.page()[1][0]["pair_id"]
        store.labels.add(first, "ada", word, content_hash=store.pair(first)["content_hash"])
        store.close()
        store = open_store(tmp_path / "out")
        apply_labels(store, Console(file=open("/dev/null", "w")))
        store.close()
        assert len(list((tmp_path / "out" / "data").glob("*.before-labels-*"))) == count
        store = open_store(tmp_path / "out")
        total = store.total
        store.close()
    assert (tmp_path / "out" / "data" / "quarantine.jsonl").exists()
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))) == total


def test_rewrite_of_many_batches_touches_only_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "_BATCH_ROWS", 7)
    rows = [{"pair_id": str(number), "chosen": f"a{number}", "rejected": "b", "person_label": None} for number in range(50)]
    schema = pa.schema([(name, pa.string()) for name in rows[0]])
    write_parquet(tmp_path / "pairs.parquet", rows, schema)
    touched = {0: Action("drop", "tie"), 6: Action("exchange", "prefer_rejected"), 7: Action("keep", "prefer_chosen"),
               20: Action("drop", None), 49: Action("exchange", "prefer_rejected")}
    rewrite(tmp_path / "pairs.parquet", touched, [{"pair_id": "new", "chosen": [{"role": "assistant", "content": "x"}],
                                                   "rejected": [{"role": "assistant", "content": "y"}], "unknown": 1}], [])
    expected = [exchanged(row) | {"person_label": "prefer_rejected"} if number in (6, 49) else row | (
        {"person_label": "prefer_chosen"} if number == 7 else {}) for number, row in enumerate(rows) if number not in (0, 20)]
    assert read_parquet(tmp_path / "pairs.parquet") == [
        *expected, {"pair_id": "new", "chosen": "x", "rejected": "y", "person_label": None}]


def test_line_separators_in_a_question_tear_no_line_of_the_quarantine(run):
    path = run / "round-1" / "pairs.parquet"
    write_parquet(path, [pair | {"question": "How many\u2028pets\x85are there?"} for pair in pairs_of(run)], PAIRS_SCHEMA)
    before = label(run, {0: "gold_wrong"})
    file = run / "data" / "quarantine.jsonl"
    file.write_text("", encoding="utf-8")  # as stage one leaves it where no row failed
    for _ in range(2):
        applied(run)
        text = file.read_text(encoding="utf-8")
        assert text.startswith("{") and text.endswith("}\n")
        entries = [json.loads(line) for line in text.split("\n")[:-1]]
        assert [entry["example_id"] for entry in entries if entry["reason"] == "person_gold_wrong"] == [before[0]["example_id"]]
        assert entries[-1]["content"]["question"] == "How many\u2028pets\x85are there?"


# --------------------------------------------------------------------- rankings


def test_a_ranking_is_not_given_to_another_question_of_the_same_id(run):
    """Ids count the lines of a source: in changed data they name other questions."""
    examples = read_parquet(run / "data" / "train.parquet")
    example = next(example for example in examples if example["example_id"] == "clinic/01")
    ranks = {canonical_sql(ALL): 1, canonical_sql(OWNERS): 2}
    file = LabelFile(run / "labels.sqlite")
    file.rank("clinic/01", "ada", ranks, question_hash(example))
    file.close()
    store = open_store(run)
    assert store.question("clinic/01")["rankings"] == {"ada": ranks}
    store.close()
    assert applied(run)[0].counts()["added from rankings"] == 1
    asked_now = [row | {"question": "How many owners are there?"} if row["example_id"] == "clinic/01" else row for row in examples]
    pq.write_table(pa.Table.from_pylist(asked_now, pq.read_schema(run / "data" / "train.parquet")), run / "data" / "train.parquet")
    store = open_store(run)
    assert store.question("clinic/01")["rankings"] == {}
    store.close()
    revision, _, _ = applied(run)
    assert revision.added == [] and revision.unused == {"the question is another one by now": 1}
    build = (read_parquet(run / "round-1" / f"{name}.parquet") for name in ("candidates", "verdicts"))
    assert with_peoples_words([], [], run, asked_now, *build, "compact") == ([], [])


def rank(run, example_id, *orders):
    """Rankings of a question by its queries, best first, tied ones in one list."""
    file = LabelFile(run / "labels.sqlite")
    for annotator, order in enumerate(orders):
        file.rank(example_id, f"a{annotator}", {canonical_sql(sql): place for place, tied in enumerate(order, start=1) for sql in tied})
    file.close()


COUNT, PETS, OWNERS, LINKED, ALL = ("SELECT COUNT(*) FROM pet", "SELECT COUNT(pet_id) FROM pet", "SELECT COUNT(*) FROM owner",
                                    "SELECT COUNT(owner_id) FROM pet", "SELECT * FROM pet")


def human(pairs):
    return {(pair["chosen_sql"], pair["rejected_sql"]) for pair in pairs if pair["source"] == "human"}


def test_ranks_become_pairs_with_the_source_human(run):
    before = pairs_of(run)
    rank(run, "clinic/01", [[COUNT, PETS], [LINKED], [ALL]])
    revision, _, after = applied(run)
    executors = {(pair["chosen_sql"], pair["rejected_sql"]) for pair in before if pair["example_id"] == "clinic/01"}
    compared = {(COUNT, LINKED), (PETS, LINKED), (COUNT, ALL), (PETS, ALL), (LINKED, ALL)}
    assert human(after) == compared - executors and after[: len(before)] == before
    assert revision.counts()["added from rankings"] == len(compared - executors)
    for pair in after[len(before):]:
        assert pair["pair_id"] == hash_of(pair) and pair["prompt"] == before[0]["prompt"] and pair["person_label"] == "prefer_chosen"
        assert pair["chosen"] == [{"role": "assistant", "content": pair["chosen_sql"]}] and pair["strategy"] == "ranked"
        assert (pair["question"], pair["example_id"], pair["round"]) == (before[0]["question"], "clinic/01", 1)
    assert applied(run)[2] == after, "applied again nothing is added"


def test_rankings_that_change_and_rankings_against_the_executor(run):
    before = pairs_of(run)
    first = next(pair for pair in before if pair["example_id"] == "clinic/01")
    rank(run, "clinic/01", [[first["rejected_sql"]], [first["chosen_sql"]]])
    _, _, after = applied(run)
    assert first["pair_id"] not in by_id(after) and human(after) == {(first["rejected_sql"], first["chosen_sql"])}
    rank(run, "clinic/01", [[ALL], [OWNERS]])
    _, _, again = applied(run)
    assert human(again) == {(ALL, OWNERS)}


def test_annotators_vote_on_each_comparison(run):
    rank(run, "clinic/01", [[ALL], [OWNERS], [LINKED]], [[OWNERS], [ALL], [LINKED]], [[LINKED, ALL], [OWNERS]])
    _, _, after = applied(run)
    # ALL before OWNERS twice of three, OWNERS before LINKED twice of three, ALL before LINKED twice and once a tie.
    assert human(after) == {(ALL, OWNERS), (OWNERS, LINKED), (ALL, LINKED)}


def test_a_question_without_a_pair_gets_one_from_its_ranking(run):
    path = run / "round-1" / "pairs.parquet"
    write_parquet(path, [pair for pair in pairs_of(run) if pair["example_id"] != "clinic/01"], PAIRS_SCHEMA)
    rank(run, "clinic/01", [[COUNT], [ALL]])
    [pair] = [pair for pair in applied(run)[2] if pair["source"] == "human"]
    assert pair["prompt"][-1]["content"].endswith("Question: How many pets are registered?")
    assert (pair["question"], pair["gold_sql"]) == ("How many pets are registered?", COUNT)


def test_queries_that_are_gone_and_labels_that_go_before(run):
    before = label(run, {0: "prefer_chosen"})
    rank(run, before[0]["example_id"], [["SELECT nothing"], [before[0]["rejected_sql"]], [before[0]["chosen_sql"]]])
    revision, printed, after = applied(run)
    assert after[0]["chosen_sql"] == before[0]["chosen_sql"] and human(after) == set()
    assert revision.unused == {"a ranked query is no longer a candidate": 2, "a label on that very pair goes before": 1}
    assert "no longer a candidate" in printed


# ---------------------------------------------------------------- built again


def rebuilt(run):
    """Pairs and dropped rows as `preference/dpo.py --only pairs` would make them now."""
    examples = read_parquet(run / "data" / "train.parquet")
    candidates, verdicts = (read_parquet(run / "round-1" / f"{name}.parquet") for name in ("candidates", "verdicts"))
    pairs, dropped = build_pairs(examples, candidates, verdicts, strategy="nearest", per_question=2, schema_style="compact", seed=7)
    return with_peoples_words(pairs, dropped, run, examples, candidates, verdicts, "compact")


def test_a_rebuild_takes_the_labels_and_leaves_them_alone(run, capsys):
    label(run, {0: "prefer_rejected", 3: "tie", 4: "gold_wrong", 9: "prefer_chosen"})
    rank(run, "clinic/01", [[ALL], [OWNERS]])
    words = LabelFile(run / "labels.sqlite").latest()
    content = (run / "labels.sqlite").read_bytes()
    pairs, dropped = rebuilt(run)
    assert "people's word goes above the executor's" in capsys.readouterr().out
    _, _, after = applied(run)
    assert {name: {**dict.fromkeys(PAIRS_SCHEMA.names), **pair} for name, pair in by_id(pairs).items()} == by_id(after)
    assert [row["reason"] for row in dropped] == ["person_tie", "person_gold_wrong", "person_with_question"]
    assert rebuilt(run) == (pairs, dropped)
    assert LabelFile(run / "labels.sqlite").latest() == words and (run / "labels.sqlite").read_bytes() == content


def test_a_rebuild_refuses_no_label_on_the_pairs_of_another_round(run, capsys):
    other = run / "round-2" / "pairs.parquet"
    write_parquet(other, [pairs_of(run)[0] | {"pair_id": "of-another-round", "example_id": "other"}], PAIRS_SCHEMA)
    file = LabelFile(run / "labels.sqlite")
    file.add("of-another-round", "ada", "prefer_rejected")
    file.rank("other", "ada", {"a": 1, "b": 2}, "")
    rebuilt(run)
    assert "refused" not in capsys.readouterr().out
    write_parquet(other.with_name("dropped.parquet"), [{"example_id": "o", "reason": "person_tie", "detail": "pair dropped-there: ada"}],
                  DROPPED_SCHEMA)
    write_parquet(other.with_name("candidates.parquet"), [{"example_id": "other"}], CANDIDATES_SCHEMA)
    file.add("dropped-there", "ada", "tie")
    rebuilt(run)
    assert "refused" not in (said := capsys.readouterr().out) and "another one by now" not in said
    file.rank("nowhere", "ada", {"a": 1, "b": 2}, "")
    file.add("gone", "ada", "prefer_rejected")
    file.close()
    rebuilt(run)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 labels refused" in said and "no longer a candidate" in said


def test_without_labels_a_rebuild_is_as_it_was(run):
    assert rebuilt(run)[0] == pairs_of(run) and not (run / "labels.sqlite").exists()


# ------------------------------------------------------------------ label noise


def test_label_noise_is_the_share_that_people_overturn(run, capsys):
    pairs_file, labels_file = run / "round-1" / "pairs.parquet", run / "labels.sqlite"
    label(run, {0: "prefer_rejected", **dict.fromkeys(range(1, 8), "prefer_chosen"), 8: "tie", 9: "gold_wrong", 10: "skip"})
    assert label_smoothing("from-labels", [pairs_file], labels_file) == 1 / 8
    assert "people overturned 1 of 8 pairs, 12.5 %" in capsys.readouterr().out.replace("12.5%", "12.5 %")
    applied(run)
    assert label_smoothing("from-labels", [pairs_file], labels_file) == 1 / 8, "flipped pairs still count as overturned"
    assert label_smoothing(0.2, [pairs_file], labels_file) == 0.2
    later = run / "round-2" / "pairs.parquet"  # made while the run went on: nobody has looked at its pairs
    write_parquet(later, [pair | {"pair_id": f"new {pair['pair_id']}"} for pair in pairs_of(run)], PAIRS_SCHEMA)
    assert label_smoothing("from-labels", [pairs_file, later], labels_file) == 1 / 8
    assert label_smoothing("from-labels", [pairs_file, pairs_file], labels_file) == 1 / 8, "a pair that comes again counts once"
    with pytest.raises(ValueError, match="prefers a side of no pair"):
        label_smoothing("from-labels", [later], labels_file)


def test_label_noise_that_cannot_be_measured_or_used(run):
    pairs_file, labels_file = run / "round-1" / "pairs.parquet", run / "labels.sqlite"
    with pytest.raises(ValueError, match="prefers a side of no pair .* Needed is at least one such label"):
        label_smoothing("from-labels", [pairs_file], labels_file)
    label(run, {0: "prefer_rejected", 1: "prefer_chosen"})
    with pytest.raises(ValueError, match="people overturned 1 of 2 pairs. Allowed is less than half"):
        label_smoothing("from-labels", [pairs_file], labels_file)


@pytest.mark.parametrize(("settings", "message"), [
    (["train.label_noise=from-labels", "train.loss_type=[robust]", "train.loss_weights=[1.0]"], None),
    (["train.label_noise=0.1", "train.loss_type=[robust]", "train.loss_weights=[1.0]"], None),
    (["train.label_noise=from-label"], "train.label_noise"),
    (["train.label_noise=0.5"], "train.label_noise"),
    (["train.label_noise=0.1", "train.label_smoothing=0.1"], "stands in for label_smoothing"),
    (["train.label_noise=0.1", "train.loss_type=[ipo]", "train.loss_weights=[1.0]"], "only the loss robust uses"),
    (["train.label_noise=from-labels"], "only the loss robust uses"),
])
def test_the_configuration_key(settings, message):
    path = PROJECT / "configs" / "dpo.yaml"
    if message is None:
        assert read_configuration(DpoConfig, path, settings).train.label_noise is not None
    else:
        with pytest.raises(ValueError, match=message):
            read_configuration(DpoConfig, path, settings)
    assert read_configuration(DpoConfig, path, []).train.label_noise is None


# ----------------------------------------------------------------------- export


@pytest.mark.parametrize("evidence", [False, True])
def test_export_is_what_trl_trains_on(run, tmp_path, evidence):
    import datasets

    datasets.disable_progress_bars()
    label(run, {0: "prefer_rejected", 1: "prefer_rejected"})
    applied(run)
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    store = open_store(run)
    label(run, {2: "tie"})
    export_pairs(store, tmp_path / "out", None, evidence, console)
    assert "note: 1 labelled pairs are exported as the executor left them" in console.export_text()
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    expected = pairs_of(run)
    assert data.column_names == (PAIRS_SCHEMA.names if evidence else ["prompt", "chosen", "rejected"])
    assert [data[number]["chosen"] for number in range(len(data))] == [pair["chosen"] for pair in expected]
    assert "2 pairs carry a person's word" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="exists and is not empty. A new or empty folder is needed"):
        export_pairs(store, tmp_path / "out", None, evidence, console)
    store.close()


def test_without_a_token_the_hub_is_refused_clearly(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    store = open_store(run)
    with pytest.raises(ValueError, match="there is no token for the hub.* Run `hf auth login` or set HF_TOKEN"):
        export_pairs(store, None, "owner/name", False, Console(file=open("/dev/null", "w")))
    store.close()


class Hub:
    """Stands in for the hub's client and keeps what it is told."""

    def __init__(self, *failures):
        self.failures, self.calls, self.files = list(failures), [], {}

    def create_repo(self, name, **options):
        self.calls.append(("create_repo", name, options))

    def upload_folder(self, *, folder_path, **options):
        if self.failures:
            raise self.failures.pop()
        self.calls.append(("upload_folder", options.pop("repo_id"), options))
        self.files = {str(file.relative_to(folder_path)): file.read_bytes() for file in sorted(folder_path.rglob("*")) if file.is_file()}


def test_what_the_hub_is_given(run, monkeypatch, tmp_path):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    store = open_store(run)
    export_pairs(store, None, "team/pairs", False, console)
    store.close()
    (create, name, options), (upload, to, more) = hub.calls
    assert (create, name, upload, to) == ("create_repo", "team/pairs", "upload_folder", "team/pairs")
    assert options == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert more["repo_type"] == "dataset" and more["delete_patterns"] == "data/train-*.parquet", "no old pairs beside the new ones"
    assert list(hub.files) == ["README.md", "data/train-00000-of-00001.parquet"]
    (tmp_path / "sent.parquet").write_bytes(hub.files["data/train-00000-of-00001.parquet"])
    assert read_parquet(tmp_path / "sent.parquet") == [
        {name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs_of(run)]
    assert "https://huggingface.co/datasets/team/pairs" in console.export_text()


def test_a_hub_that_refuses_or_is_not_reached(run, monkeypatch, tmp_path):
    """The hub's own client against a server that is not there, and one that says no."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from huggingface_hub import HfApi as client

    class No(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b'{"error": "you may not"}')

        def log_message(self, *_):
            pass

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    server = HTTPServer(("127.0.0.1", 0), No)
    Thread(target=server.serve_forever, daemon=True).start()
    store = open_store(run)
    try:
        for name, port in (("team/pairs", server.server_port), ("team/pairs", 9), ("no name of a repository", 9)):
            monkeypatch.setattr("huggingface_hub.HfApi", partial(client, endpoint=f"http://127.0.0.1:{port}", token="hf_token"))
            with pytest.raises(ValueError, match=f"the hub did not take '{name}': .*Needed are a name OWNER/NAME"):
                export_pairs(store, None, name, False, Console(file=open("/dev/null", "w")))
    finally:
        server.shutdown()
        server.server_close()
        store.close()
