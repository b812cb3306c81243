"""Splits: given by the source, read from files of their own, or cut by a hash; disjoint and stable."""

import hashlib
import json
import sqlite3
from collections import Counter
from contextlib import closing

import pytest

from sft.splits import SPLITS, gather, hold_out, identity, separate

CONTEXT = "CREATE TABLE t (x INT)"


def record(question, gold="SELECT x FROM t"):
    return {"question": question, "context": CONTEXT, "answer": gold}


def write(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return str(path)


def bucket(text):
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % 10


def questions(rows):
    return [row.example["question"] for row in rows]


def names(count):
    return [f"Question {number}" for number in range(count)]


def test_missing_splits_are_cut_by_the_hash_of_the_question(tmp_path):
    source = write(tmp_path / "rows.jsonl", [record(name) for name in names(60)])
    rows = gather(source, None, None, {}, tmp_path, 0)
    # By the sha1sum command: sha1("question 0") is a number that ends, in decimal, in 5.
    dev, test = (0, 1, 13, 24, 25, 27, 29, 40, 41, 47), (6, 8, 17, 20, 22, 37, 48, 53, 56, 58)
    assert questions(rows["dev"]) == [f"Question {number}" for number in dev]
    assert questions(rows["test"]) == [f"Question {number}" for number in test]
    assert sorted(questions(rows["train"] + rows["dev"] + rows["test"])) == sorted(names(60))
    assert len(rows["train"]) == 40


def test_case_and_space_do_not_change_the_split(tmp_path):
    source = write(tmp_path / "rows.jsonl", [record(f"  {name.upper()} ") for name in names(60)])
    rows = gather(source, None, None, {}, tmp_path, 0)
    assert questions(rows["dev"]) == [name.upper() for name in names(60) if bucket(name.lower()) == 5]


def test_only_the_missing_split_is_cut(tmp_path):
    source = write(tmp_path / "rows.jsonl", [record(name) for name in names(60)])
    dev = write(tmp_path / "own.jsonl", [record("My own question")])
    rows = gather(source, dev, None, {}, tmp_path, 0)
    assert questions(rows["dev"]) == ["My own question"]
    assert questions(rows["test"]) == [name for name in names(60) if bucket(name.lower()) == 6]
    assert len(rows["train"]) == 60 - len(rows["test"])


def test_a_folder_gives_the_splits_that_it_holds(tmp_path):
    write(tmp_path / "data" / "train.jsonl", [record(name) for name in names(60)])
    write(tmp_path / "data" / "dev.jsonl", [record("D")])
    rows = gather(str(tmp_path / "data"), None, None, {}, tmp_path, 0)
    assert questions(rows["dev"]) == ["D"] and rows["dev"][0].example["example_id"] == "dev-1"
    assert questions(rows["test"]) == [name for name in names(60) if bucket(name.lower()) == 6]


def test_spider_is_cut_by_database(tmp_path):
    (tmp_path / "database").mkdir()
    databases = [f"world_{number}" for number in range(40)]
    for name in databases:
        with closing(sqlite3.connect(tmp_path / "database" / f"{name}.sqlite")) as connection:
            connection.execute("CREATE TABLE t (x INT)")
    asked = [(name, f"{kind} of {name}?") for name in databases for kind in ("sum", "mean", "mode")]
    records = [{"db_id": name, "question": question, "query": "SELECT x FROM t"} for name, question in asked]
    write(tmp_path / "train.jsonl", records)
    rows = gather(str(tmp_path), None, None, {}, tmp_path, 0)
    found = {split: {row.example["database"] for row in rows[split]} for split in SPLITS}
    assert found["train"].isdisjoint(found["dev"] | found["test"]) and found["dev"].isdisjoint(found["test"])
    wanted = {str(tmp_path / "database" / f"{name}.sqlite") for name in databases if bucket(name) == 5}
    assert found["dev"] == wanted and len(rows["dev"]) == 3 * len(wanted) > 0


def test_ids_stay_apart_where_files_share_a_name(tmp_path):
    source = write(tmp_path / "a" / "rows.jsonl", [record(name) for name in names(60)])
    dev = write(tmp_path / "b" / "rows.jsonl", [record("D")])
    rows = gather(source, dev, None, {}, tmp_path, 0)
    assert rows["dev"][0].example["example_id"] == "dev-rows-1"
    ids = [row.example["example_id"] for split in SPLITS for row in rows[split]]
    assert len(ids) == len(set(ids)) == 61


def test_errors_of_gather(tmp_path):
    source = write(tmp_path / "data" / "train.jsonl", [record(name) for name in names(60)])
    with pytest.raises(ValueError, match="is named as train and as dev data.*leave data.dev empty"):
        gather(source, str(tmp_path / "data" / ".." / "data" / "train.jsonl"), None, {}, tmp_path, 0)
    with pytest.raises(ValueError, match="data has no dev rows. A folder needs dev with the ending .*in data.dev"):
        gather(source, str(tmp_path / "data"), None, {}, tmp_path, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no train rows. A folder needs train_spider or train_others"):
        gather(str(tmp_path / "empty"), None, None, {}, tmp_path, 0)


def test_separate_drops_duplicates_and_questions_of_other_splits(tmp_path):
    train = [
        record("one"), record("one"), record("one", "SELECT 1"), record("TWO "), record("three"), record(None, "x")
    ]  # fmt: skip
    source = write(tmp_path / "train.jsonl", train)
    dev = write(tmp_path / "dev.jsonl", [record("two"), record("Three"), record("two")])
    test = write(tmp_path / "test.jsonl", [record("three"), record(None, "x")])
    dropped = {split: Counter() for split in SPLITS}
    rows = separate(gather(source, dev, test, {}, tmp_path, 0), dropped)
    assert [row.number for row in rows["train"]] == [1, 3, 6]  # 3 has another gold; 6 has no question: for quarantine
    assert (questions(rows["dev"]), questions(rows["test"])) == (["two"], ["three", None])
    assert dropped["train"] == {"duplicate": 1, "question of another split": 2}
    assert dropped["dev"] == {"duplicate": 1, "question of another split": 1}
    assert dropped["test"] == {}


def test_white_space_and_quotes_make_no_other_question_or_answer(tmp_path):
    asked = [name.replace(" ", gap) for gap in (" ", "  ") for name in names(40)]
    golds = [f"SELECT x FROM t WHERE x = {value}" for value in ("'a'", '"a"')] + ["select x from t where x='a'"]
    rows = gather(write(tmp_path / "rows.jsonl", [record(name) for name in asked]), None, None, {}, tmp_path, 0)
    split = [{" ".join(question.split()) for question in questions(rows[name])} for name in SPLITS]
    assert all(split) and not split[0] & split[1] and not split[1] & split[2] and not split[0] & split[2]
    dropped = {name: Counter() for name in SPLITS}
    dev = write(tmp_path / "dev.jsonl", [record("Question  7"), record("other")])
    source = write(tmp_path / "train.jsonl", [record(name) for name in names(20)])
    test = write(tmp_path / "test.jsonl", [record("last")])
    assert "Question 7" not in questions(separate(gather(source, dev, test, {}, tmp_path, 0), dropped)["train"])
    records = [record(f"{name} {number}", gold) for number, gold in enumerate(golds) for name in ("a", "b")]
    records += [record(name, f"SELECT x + {number} FROM t") for number, name in enumerate(names(60))]
    for share in (0.2, 0.5, 0.8):
        sides = hold_out({"train": gather(write(tmp_path / "gold.jsonl", records), dev, test, {}, tmp_path, 0)["train"]}, share)
        held = [question for question in questions(sides["preference"]) if question.startswith(("a", "b"))]
        assert len(held) in (0, 6)


def test_hold_out_takes_questions_by_a_hash(tmp_path):
    asked = names(200)
    records = [record(name, f"SELECT {number} FROM t") for number, name in enumerate(asked)]
    rows = gather(write(tmp_path / "rows.jsonl", records), None, None, {}, tmp_path, 0)
    sides = hold_out(rows, 0.3)
    assert list(sides) == [*SPLITS, "preference"]
    assert sides["dev"] == rows["dev"] and sides["test"] == rows["test"]
    kept, held = questions(sides["train"]), questions(sides["preference"])
    assert sorted(kept + held) == sorted(questions(rows["train"])) and not set(kept) & set(held)
    wanted = [name for name in questions(rows["train"])
              if int(hashlib.sha1(f"preference:{name.lower()}".encode()).hexdigest(), 16) / 16**40 < 0.3]
    assert held == wanted and 0.2 < len(held) / len(rows["train"]) < 0.4
    # Beside fewer rows each stays where it was; a larger share takes more, and gives none back.
    few = hold_out(rows | {"train": rows["train"][::2]}, 0.3)
    assert questions(few["preference"]) == [name for name in questions(rows["train"])[::2] if name in held]
    assert set(held) < set(questions(hold_out(rows, 0.6)["preference"]))
    assert hold_out(rows, 0.0) == rows


def test_questions_and_answers_that_belong_together_are_held_out_together(tmp_path):
    # Three wordings of each answer, and a question with two answers for every second one.
    records = [record(f"{wording} {number}?", f"SELECT  {number} FROM t") for number in range(60) for wording in ("How", "Which", "Who")]
    records += [record(f" how {number}? ", f"select x from t where x = {number}") for number in range(0, 60, 2)]
    rows = gather(write(tmp_path / "rows.jsonl", records), None, None, {}, tmp_path, 0)
    sides = hold_out(rows, 0.5)
    sides = {split: [row.example for row in sides[split]] for split in ("train", "preference")}
    for key in (lambda example: example["question"].lower(), lambda example: example["gold"].lower().split()):
        assert not {str(key(example)) for example in sides["train"]} & {str(key(example)) for example in sides["preference"]}
    assert min(map(len, sides.values())) > 30


def test_rows_without_an_answer_stay_with_stage_one(tmp_path):
    records = [record(name, None if number % 2 else f"SELECT {number}") for number, name in enumerate(names(60))]
    sides = hold_out(gather(write(tmp_path / "rows.jsonl", records), None, None, {}, tmp_path, 0), 0.5)
    assert all(row.example["gold"] for row in sides["preference"]) and len(sides["preference"]) > 5
    assert sum(row.example["gold"] is None for row in sides["train"]) > 10


def test_a_share_that_leaves_a_side_empty_is_told(tmp_path):
    rows = gather(write(tmp_path / "rows.jsonl", [record(name, name) for name in names(30)]), None, None, {}, tmp_path, 0)
    for share, empty in ((1e-9, "preference"), (1 - 1e-9, "train")):
        with pytest.raises(ValueError, match=f"the {empty} split is empty: data.preference_share=.* leaves it none of .* nearer to"):
            hold_out(rows, share)


def test_identity_changes_with_content_only(tmp_path):
    source = write(tmp_path / "a" / "rows.jsonl", [record("one")])
    before = identity(source, None, None)
    assert before["dev"] is before["test"] is None and list(before["source"]["train"]) == ["rows.jsonl"]
    assert identity(write(tmp_path / "b" / "rows.jsonl", [record("one")]), None, None) == before
    assert identity(write(tmp_path / "b" / "rows.jsonl", [record("two")]), None, None) != before
    assert identity("b-mc2/sql-create-context", None, None)["source"] == "b-mc2/sql-create-context"
    assert identity("embedded", source, None)["dev"] == before["source"]["train"]
