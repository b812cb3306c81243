"""prepare and load: what is kept, what goes to quarantine, limits with refill, and when a step is skipped."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import sft.examples
from sft.artefacts import file_hash, mark_path
from sft.examples import EXAMPLES_SCHEMA, load, prepare, prepare_questions

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "sql_create_context" / "train.jsonl"
CONTEXT = "CREATE TABLE cake (name VARCHAR, price INTEGER, baker VARCHAR)"
NOTHING = {"dev": None, "test": None, "columns": {}, "limits": {}, "seed": 0}


def record(question, gold="SELECT name FROM cake"):
    return {"question": question, "context": CONTEXT, "answer": gold}


def write(path, records):
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return str(path)


def quarantined(folder):
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def audited(monkeypatch):
    """An audit that finds every gold with `nothing` in it bad; returns the batches of example ids that it was given."""
    batches = []

    def audit(examples, workers=1, seed=0, progress=None, **judge):
        examples = list(examples)
        batches.append([example["example_id"] for example in examples])
        for example in examples:
            bad = "nothing" in (example["gold"] or "")
            status = "gold_bad" if bad else "ok" if example["gold"] else "unanswerable"
            yield {
                "status": status,
                "reason": "sql_error" if bad else None,
                "detail": "no such column: nothing" if bad else None,
                "gold_sql": example["gold"] if status == "ok" else None,
                "kinds": ["simple"] if status == "ok" else [],
            }

    monkeypatch.setattr(sft.examples, "audit", audit)
    return batches


@pytest.fixture
def files(tmp_path):
    """Train, dev and test files with one bad row each way: 20 train rows, of which rows 3 and 4 fail."""
    train = [record(f"train {number}") for number in range(1, 21)]
    train[2] = record("train 3", "SELECT nothing FROM cake")
    train[3] = record("", "SELECT name FROM cake")
    train[4] = record("train 5", None)
    dev = write(tmp_path / "dev.jsonl", [record("dev 1"), record("dev 2")])
    test = write(tmp_path / "test.jsonl", [record("test 1"), record("train 20")])
    return {"source": write(tmp_path / "train.jsonl", train), "dev": dev, "test": test}


def test_prepare_keeps_quarantines_and_counts(tmp_path, files, audited, capsys):
    folder = tmp_path / "data"
    totals = prepare(folder, **NOTHING | files)
    assert totals == {"train": 17, "dev": 2, "test": 2, "quarantine": 2}
    assert pq.read_schema(folder / "train.parquet").equals(EXAMPLES_SCHEMA)
    train = load(folder, "train")
    assert [row["example_id"] for row in train] == [f"train-{n}" for n in range(1, 20) if n not in (3, 4)]
    assert train[0] == {
        "example_id": "train-1",
        "source": f"{tmp_path.name}/train.jsonl",
        "question": "train 1",
        "context": CONTEXT,
        "gold": "SELECT name FROM cake",
        "gold_sql": "SELECT name FROM cake",
        "database": None,
        "evidence": None,
        "answerable": True,
        "kind": ["simple"],
        "split": "train",
        "license": "unknown",
    }
    unanswerable = [row for row in train if not row["answerable"]]
    assert [(row["example_id"], row["gold"], row["gold_sql"]) for row in unanswerable] == [("train-5", None, None)]
    no_question, bad_gold = quarantined(folder)
    assert (no_question["row"], no_question["reason"]) == (4, "no_question")
    assert bad_gold == {
        "example_id": "train-3",
        "split": "train",
        "file": files["source"],
        "row": 3,
        "reason": "sql_error",
        "detail": "no such column: nothing",
        "content": record("train 3", "SELECT nothing FROM cake"),
    }
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:5]] for line in lines]
    numbers = {label: columns for label, *columns in cells}
    assert numbers["read"] == ["20", "2", "2"] and numbers["kept"] == ["17", "2", "2"]
    assert numbers["quarantine: sql_error"] == numbers["quarantine: no_question"] == ["1", "-", "-"]
    assert numbers["question of another split"] == ["1", "-", "-"] and numbers["unanswerable"] == ["1", "-", "-"]


def test_a_share_of_the_questions_is_left_to_stage_two(tmp_path, files, audited, capsys):
    rows = [record(f"train {number}", f"SELECT name FROM cake LIMIT {number}") for number in range(1, 41)]
    rows[4] = record("train 5", None)
    files = files | {"source": write(tmp_path / "train.jsonl", rows)}
    folder = tmp_path / "data"
    totals = prepare(folder, **NOTHING | files, preference_share=0.5)
    train, held = (load(folder, split) for split in ("train", "preference"))
    assert totals == {"train": len(train), "dev": 2, "test": 2, "preference": len(held), "quarantine": 0}
    assert len(train) + len(held) == 39 and min(len(train), len(held)) > 10, "train 20 is a question of test"
    assert {row["split"] for row in held} == {"preference"} and pq.read_schema(folder / "preference.parquet").equals(EXAMPLES_SCHEMA)
    assert not {row["question"] for row in train} & {row["question"] for row in held}
    assert [row["question"] for row in train if not row["answerable"]] == ["train 5"] and all(row["answerable"] for row in held)
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    read = next([int(cell) for cell in line.split("│")[2:6]] for line in lines if "read" in line)
    assert read[0] + read[3] == 40 and read[1:3] == [2, 2]
    (folder / "preference.parquet").unlink()
    assert prepare(folder, **NOTHING | files, preference_share=0.5) == totals and (folder / "preference.parquet").exists()

    # The limit is stage one's: all that is held out stays.
    limited = prepare(tmp_path / "limited", **NOTHING | files | {"limits": {"train": 2}}, preference_share=0.5)
    assert (limited["train"], limited["preference"]) == (2, len(held))


def test_a_limit_counts_audited_rows_and_audits_no_more_than_it_needs(tmp_path, audited):
    # Every second gold is bad: 8 good ones need about 16 audits, in ever smaller batches.
    gold = ["SELECT name FROM cake", "SELECT nothing FROM cake"]
    source = write(tmp_path / "train.jsonl", [record(f"train {n}", gold[n % 2]) for n in range(200)])
    files = {name: write(tmp_path / f"{name}.jsonl", [record(name)]) for name in ("dev", "test")}
    limits = {"train": 8, "dev": None, "test": 5}
    totals = prepare(tmp_path / "a", **NOTHING | files | {"source": source, "limits": limits, "seed": 3})
    bad = totals["quarantine"]
    assert totals == {"train": 8, "dev": 1, "test": 1, "quarantine": bad}
    batches = audited[:-2]  # the last two are dev's and test's
    assert len(batches[0]) == 8 and len(batches) > 1 and sum(map(len, batches)) == 8 + bad < 40
    first = [row["example_id"] for row in load(tmp_path / "a", "train")]
    assert first == sorted(first, key=lambda name: int(name.split("-")[1]))

    prepare(tmp_path / "b", **NOTHING | files | {"source": source, "limits": limits, "seed": 3})
    prepare(tmp_path / "c", **NOTHING | files | {"source": source, "limits": limits, "seed": 4})
    assert (tmp_path / "b" / "train.parquet").read_bytes() == (tmp_path / "a" / "train.parquet").read_bytes()
    assert [row["example_id"] for row in load(tmp_path / "c", "train")] != first


def test_a_limit_larger_than_what_is_there_takes_all(tmp_path, files, audited):
    totals = prepare(tmp_path / "data", **NOTHING | files | {"limits": {"train": 1000}})
    assert totals["train"] == 17


def test_a_complete_step_is_skipped_and_other_inputs_are_refused(tmp_path, files, audited):
    folder = tmp_path / "data"
    totals = prepare(folder, **NOTHING | files)
    calls = len(audited)
    assert prepare(folder, **NOTHING | files) == totals and len(audited) == calls
    for other in ({"seed": 1}, {"limits": {"train": 3}}, {"distractors": 0.5}, {"dev": None}, {"preference_share": 0.5}):
        with pytest.raises(ValueError, match="Finished work is not overwritten"):
            prepare(folder, **NOTHING | files | other)
    Path(files["source"]).write_text(json.dumps(record("another row")) + "\n")
    with pytest.raises(ValueError, match="Finished work is not overwritten"):
        prepare(folder, **NOTHING | files)


def test_a_step_that_lost_a_file_or_its_mark_runs_again(tmp_path, files, audited):
    folder = tmp_path / "data"
    totals = prepare(folder, **NOTHING | files)
    for lost in (folder / "dev.parquet", mark_path(folder)):
        lost.unlink()
        assert prepare(folder, **NOTHING | files) == totals
        assert lost.exists()


def test_overwrite_makes_the_folder_anew(tmp_path, files, audited):
    folder = tmp_path / "data"
    prepare(folder, **NOTHING | files)
    assert prepare(folder, **NOTHING | files | {"limits": {"train": 3}}, overwrite=True)["train"] == 3
    assert len(load(folder, "train")) == 3


def test_a_mistake_in_the_settings_can_be_corrected_in_the_same_folder(tmp_path, files, audited):
    with pytest.raises(ValueError, match="lacks the column sql"):
        prepare(tmp_path / "data", **NOTHING | files | {"columns": {"gold": "sql"}})
    assert prepare(tmp_path / "data", **NOTHING | files)["train"] == 17


def test_prepare_questions_takes_every_row_of_a_file_or_folder(tmp_path, files, audited):
    choice = {"columns": {}, "limit": None, "seed": 0}
    totals = prepare_questions(tmp_path / "one", files["source"], **choice)
    assert totals == {"questions": 18, "quarantine": 2}
    examples = load(tmp_path / "one", "questions")
    assert {row["split"] for row in examples} == {"questions"} and examples[-1]["question"] == "train 20"
    assert prepare_questions(tmp_path / "all", str(tmp_path), **choice) == {"questions": 22, "quarantine": 2}
    assert prepare_questions(tmp_path / "few", files["source"], **choice | {"limit": 5})["questions"] == 5
    with pytest.raises(ValueError, match="Finished work is not overwritten"):
        prepare_questions(tmp_path / "one", files["dev"], **choice)
    assert prepare_questions(tmp_path / "one", files["dev"], **choice, overwrite=True)["questions"] == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no questions. A folder needs a file train_spider"):
        prepare_questions(tmp_path / "none", str(tmp_path / "empty"), **choice)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("source", "the train split is empty: 0 rows read. .*Add rows to data.source"),
        ("dev", "the dev split is empty: 0 rows read. .*Name a file with rows in data.dev"),
    ],
)
def test_a_split_without_rows_is_an_error_before_any_audit(tmp_path, files, audited, split, message):
    Path(files[split]).write_text("\n")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", **NOTHING | files)
    assert audited == []


def test_a_split_without_sound_rows_is_an_error_that_leaves_the_quarantine(tmp_path, files, audited):
    write(Path(files["test"]), [record("q", "SELECT nothing FROM cake"), record("")])
    with pytest.raises(ValueError, match=r"the test split is empty: all 2 rows read were dropped, .*sql_error \(1\)"):
        prepare(tmp_path / "data", **NOTHING | files)
    assert not mark_path(tmp_path / "data").exists()
    assert len(quarantined(tmp_path / "data")) == 4


def test_databases_inside_the_folder_move_with_it(tmp_path, audited, monkeypatch):
    def build(seed, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(folder / "bakery.sqlite")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS cake (name TEXT)")
        row = {name: None for name in EXAMPLES_SCHEMA.names} | {
            "context": CONTEXT, "gold": "SELECT name FROM cake", "database": str(folder / "bakery.sqlite")
        }  # fmt: skip
        return {
            split: [row | {"example_id": f"{split}-{seed}", "question": split, "split": split}]
            for split in ("train", "dev", "test")
        }

    monkeypatch.setattr("sft.embedded.questions.build", build)
    prepare(tmp_path / "data", **NOTHING | {"source": "embedded", "seed": 7})
    assert pq.read_table(tmp_path / "data" / "dev.parquet").to_pylist()[0]["database"] == "databases/bakery.sqlite"
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    (example,) = load(moved, "dev")
    assert example["database"] == str(moved / "databases" / "bakery.sqlite") and Path(example["database"]).exists()
    assert example["example_id"] == "dev-7"


def test_distractors_reach_what_is_trained_on_only(tmp_path, audited, capsys):
    contexts = [f"CREATE TABLE t_{n} (a_{n} TEXT, b_{n} INT)" for n in range(30)]
    rows = [
        {"question": f"q {n}", "context": context, "answer": f"SELECT a_{n} FROM t_{n}"}
        for n, context in enumerate(contexts)
    ]
    files = {
        "source": write(tmp_path / "train.jsonl", rows),
        "dev": write(tmp_path / "dev.jsonl", [row | {"question": "dev"} for row in rows[:1]]),
        "test": write(tmp_path / "test.jsonl", [row | {"question": "test"} for row in rows[:1]]),
    }
    prepare(tmp_path / "data", **NOTHING | files, distractors=1.0)
    found = [row["context"] for row in load(tmp_path / "data", "train")]
    assert sum(new != old for new, old in zip(found, contexts, strict=True)) == 30
    prepare(tmp_path / "held", **NOTHING | files, distractors=1.0, preference_share=0.5)
    held = load(tmp_path / "held", "preference")
    assert 5 < len(held) < 25 and not {row["context"] for row in held} & set(contexts)
    assert load(tmp_path / "data", "dev")[0]["context"] == contexts[0]
    assert "with distractors" in capsys.readouterr().out


def test_the_real_audit_normalises_and_rejects(tmp_path):
    train = [
        record("Which cakes bakes Zoë?", 'SELECT name FROM cake WHERE baker = "Zoë"'),
        record("Which are free?", "SELECT flavour FROM cake"),
        record("Drop them all", "DELETE FROM cake"),
        record("How many cakes does each baker bake?", "SELECT baker, COUNT(*) FROM cake GROUP BY baker"),
        record("Who loves cakes?", None),
    ]
    files = {name: write(tmp_path / f"{name}.jsonl", [record(name)]) for name in ("dev", "test")}
    folder = tmp_path / "data"
    prepare(folder, **NOTHING | files | {"source": write(tmp_path / "train.jsonl", train)})
    quoted, grouped, unanswerable = load(folder, "train")
    assert quoted["gold_sql"] == "SELECT name FROM cake WHERE baker = 'Zoë'"
    assert quoted["gold"] == 'SELECT name FROM cake WHERE baker = "Zoë"'
    assert {"group", "aggregate"} <= set(grouped["kind"])
    assert (unanswerable["answerable"], unanswerable["gold_sql"]) == (False, None)
    assert [entry["row"] for entry in quarantined(folder)] == [2, 3]


def test_gold_without_rows_on_its_own_database_is_kept_where_generated_ones_have_some(tmp_path):
    (tmp_path / "database").mkdir()
    with closing(sqlite3.connect(tmp_path / "database" / "d.sqlite")) as connection:
        connection.executescript("CREATE TABLE t (x INT, y TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    queries = ["SELECT x FROM t WHERE y = 'a'", "SELECT x FROM t WHERE y = 'c'", "SELECT x FROM t WHERE 1 = 2"]
    for split in ("train", "dev", "test"):
        rows = [{"db_id": "d", "question": f"{split} {number}", "query": query} for number, query in enumerate(queries)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    prepare(tmp_path / "run", **NOTHING | {"source": str(tmp_path)})
    assert [row["gold_sql"] for row in load(tmp_path / "run", "test")] == queries[:2]
    assert {(entry["row"], entry["reason"]) for entry in quarantined(tmp_path / "run")} == {(3, "empty")}
    prepare(tmp_path / "given", **NOTHING | {"source": str(tmp_path), "databases": "given"})
    assert [row["gold_sql"] for row in load(tmp_path / "given", "test")] == queries[:1], "the judge would call it unclear"


@pytest.mark.parametrize("gold", [7, {"sel": 1}, ["SELECT 1"], True])
def test_gold_that_is_no_text_goes_to_quarantine_as_it_is(tmp_path, files, audited, gold):
    rows = [record(f"train {number}", f"SELECT name FROM cake WHERE price = {number}") for number in range(20)] + [record("odd", gold)] * 2
    folder = tmp_path / "run"
    prepare(folder, **NOTHING | files | {"source": write(tmp_path / "train.jsonl", rows), "preference_share": 0.3})
    odd = [entry for entry in quarantined(folder) if entry["row"] > 20]
    assert [(entry["reason"], entry["content"]["answer"]) for entry in odd] == [("no_gold", gold)] * 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_rows_are_not_read_from_the_folder_that_is_written(tmp_path, audited, monkeypatch, overwrite):
    monkeypatch.setattr("datasets.load_dataset", lambda name: (_ for _ in ()).throw(ConnectionError("no network")))
    folder = tmp_path / "run" / "data"
    folder.mkdir(parents=True)
    own = write(folder / "train.jsonl", [record(f"row {number}") for number in range(30)])
    before = file_hash(folder / "train.jsonl")
    with pytest.raises(ValueError, match=f"data.source: {own} stands in {folder}, which this step writes, and may delete"):
        prepare(folder, **NOTHING | {"source": own}, overwrite=overwrite)
    with pytest.raises(ValueError, match="--data: .* stands in"):
        prepare_questions(folder, own, columns={}, limit=None, seed=0, overwrite=overwrite)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="nobody/rows is no local file"):
        prepare(folder, **NOTHING | {"source": "nobody/rows"}, overwrite=overwrite)  # a name, not a place
    assert file_hash(folder / "train.jsonl") == before and [path.name for path in folder.iterdir()] == ["train.jsonl"]


def test_shared_rows_lose_a_few_percent_to_quarantine(tmp_path):
    if not SHARED.exists():
        pytest.skip("the development data (../shared) is not there")
    lines = SHARED.read_text(encoding="utf-8").splitlines()[::20][:500]
    source = tmp_path / "train.jsonl"
    source.write_text("\n".join(lines))
    totals = prepare(tmp_path / "data", **NOTHING | {"source": str(source)})
    kept = totals["train"] + totals["dev"] + totals["test"]
    assert kept + totals["quarantine"] == 500
    assert 0.02 < totals["quarantine"] / 500 < 0.06
