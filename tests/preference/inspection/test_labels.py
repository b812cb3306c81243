"""The label file: nothing lost, nothing doubled, whoever writes and whatever is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from preference.inspection.labels import LABELS, LabelFile, Ranking

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def labels(tmp_path):
    file = LabelFile(tmp_path / "labels.sqlite")
    yield file
    file.close()


def stored(path):
    """(pair_id, annotator, label) of every row, as another program sees the file now."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT pair_id, annotator, label FROM labels WHERE undone IS NULL ORDER BY label_id").fetchall()


def test_a_label_is_on_disk_when_add_returns(labels):
    number = labels.add("p1", "ada", "prefer_rejected", "the join is wrong", content_hash="h1")
    assert number == 1 and stored(labels.path) == [("p1", "ada", "prefer_rejected")]
    [label] = labels.of("p1").values()
    assert label[:6] == (1, "p1", "ada", "prefer_rejected", "the join is wrong", "h1")
    age = datetime.now(UTC) - datetime.fromisoformat(label.time)
    assert timedelta(0) <= age < timedelta(minutes=1) and label.time.endswith("+00:00")
    assert labels._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert labels._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_reading_creates_no_file(labels):
    assert labels.latest() == {} and labels.of("p1") == {} and labels.rankings() == {} and labels.undo("ada") is None
    assert not labels.path.exists()


def test_the_newest_word_of_each_annotator_holds_and_undo_walks_back(labels):
    for word in ("tie", "both_wrong"):
        labels.add("p1", "ada", word)
    labels.add("p2", "ada", "skip")
    labels.add("p1", "bo", "prefer_chosen")
    assert {name: label.label for name, label in labels.latest()["p1"].items()} == {"ada": "both_wrong", "bo": "prefer_chosen"}
    assert [labels.undo("ada").label for _ in range(2)] == ["skip", "both_wrong"]
    assert labels.of("p1")["ada"].label == "tie" and "p2" not in labels.latest()
    assert labels.undo("ada").label == "tie" and labels.undo("ada") is None
    assert labels.of("p1").keys() == {"bo"}


def test_the_same_word_sent_twice_is_one(labels):
    assert labels.add("p1", "ada", "tie") == labels.add("p1", "ada", "tie") == 1
    assert labels.add("p1", "ada", "tie", "with a comment") == 2
    assert labels.add("p1", "ada", "tie", "with a comment", content_hash="other texts") == 3
    labels.undo("ada")
    assert labels.add("p1", "ada", "tie", "with a comment", content_hash="other texts") == 4


def test_undo_takes_back_the_word_that_was_said_last(labels):
    labels.add("p1", "ada", "prefer_chosen")
    labels.add("p2", "ada", "tie")
    labels.add("p1", "bo", "skip")
    assert labels.add("p1", "ada", "prefer_chosen") == 4, "said again, after a word on another pair"
    assert labels.undo("ada")[:2] == (4, "p1")
    assert {pair_id: held["ada"].label for pair_id, held in labels.latest().items()} == {"p1": "prefer_chosen", "p2": "tie"}


def test_version_changes_with_every_change(labels):
    seen = [labels.version()]
    for change in (lambda: labels.add("p", "a", "tie"), lambda: labels.add("p", "b", "tie"), lambda: labels.undo("a")):
        change()
        seen.append(labels.version())
    assert len(set(seen)) == 4


def test_ranks_and_comments(labels):
    labels.rank("q1", "ada", {"SELECT 1": 1, "SELECT 2": 2})
    labels.rank("q1", "ada", {"SELECT 1": 2, "SELECT 2": 1, "SELECT 3": 2})
    labels.rank("q1", "bo", {"SELECT 1": 1})
    labels.rank("q2", "bo", {"SELECT 1": 1})
    labels.rank("q2", "bo", {})
    assert labels.rankings() == {"q1": {"ada": ({"SELECT 1": 2, "SELECT 2": 1, "SELECT 3": 2}, ""), "bo": ({"SELECT 1": 1}, "")}}
    labels.rank("q1", "bo", {"SELECT 1": 1}, "5a1f")
    assert labels.rankings()["q1"]["bo"] == Ranking({"SELECT 1": 1}, "5a1f")
    labels.comment("p1", "ada", "look at the \x1b[31mtie\ud800")
    assert [entry["comment"] for entry in labels.comments("p1")] == ["look at the \x1b[31mtie?"]


@pytest.mark.parametrize("arguments", [
    ("p1", "ada", "maybe"), ("p1", "", "tie"), ("p1", "   ", "tie"), ("p1", "a\x1b[2J", "tie"), ("p1", "a" * 101, "tie"),
    ("", "ada", "tie"), ("p1", "ada", "tie", "x" * 10_001), (None, "ada", "tie"), ("p1", None, "tie"),
])
def test_what_is_no_label_is_refused_in_three_parts(labels, arguments):
    with pytest.raises(ValueError, match=r".+; allowed (is|are) .+; .+"):
        labels.add(*arguments)
    assert labels.latest() == {}


@pytest.mark.parametrize("ranks", [{"SELECT 1": 0}, {"SELECT 1": True}, {"SELECT 1": "1"}, {1: 1}, ["SELECT 1"], {"a": 1001}])
def test_what_are_no_ranks_is_refused(labels, ranks):
    with pytest.raises(ValueError, match="places from 1 to 1000"):
        labels.rank("q1", "ada", ranks)


def test_a_file_whose_rankings_name_no_question_yet(tmp_path):
    with closing(sqlite3.connect(tmp_path / "labels.sqlite")) as connection:
        connection.executescript("""CREATE TABLE rankings (ranking_id INTEGER PRIMARY KEY AUTOINCREMENT, example_id TEXT NOT NULL,
          annotator TEXT NOT NULL, ranks TEXT NOT NULL, time TEXT NOT NULL);
          INSERT INTO rankings (example_id, annotator, ranks, time) VALUES ('q1', 'ada', '{"SELECT 1": 1}', '2026-01-01')""")
    for _ in range(2):
        file = LabelFile(tmp_path / "labels.sqlite")
        assert file.rankings() == {"q1": {"ada": Ranking({"SELECT 1": 1}, "")}}
        file.close()


def test_hostile_texts_are_values(labels):
    name = "x'); DROP TABLE labels; --"
    labels.add(name, "ada", "tie", "\0\x1b]0;t\x07 \u202e")
    assert labels.of(name)["ada"].comment == "\0\x1b]0;t\x07 \u202e"


def test_a_file_that_is_none_says_so(tmp_path):
    (tmp_path / "labels.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match="is no label file .* Move it away"):
        LabelFile(tmp_path / "labels.sqlite").latest()


def test_threads_of_one_file_and_of_two_lose_nothing(tmp_path):
    files = [LabelFile(tmp_path / "labels.sqlite") for _ in range(2)]

    def work(number):
        for index in range(15):
            files[number % 2].add(f"p{index}", f"annotator {number}", LABELS[(index + number) % len(LABELS)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = files[0].latest()
    assert len(stored(tmp_path / "labels.sqlite")) == 90 and all(len(found[f"p{index}"]) == 6 for index in range(15))
    for number in range(6):
        assert [found[f"p{index}"][f"annotator {number}"].label for index in range(15)] == [
            LABELS[(index + number) % len(LABELS)] for index in range(15)]


WRITER = """
import sys
from preference.inspection.labels import LabelFile

file = LabelFile(sys.argv[1])
for number in range(int(sys.argv[3]), 10**6):
    file.add(f"{sys.argv[2]}-{number}", sys.argv[2], "tie")
    print(number, flush=True)  # only now may the person think that it is kept
"""


def writer(path, name, start):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(start)], cwd=PROJECT, stdout=subprocess.PIPE,
                            text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)})


def test_killed_in_mid_write_nothing_is_lost_or_doubled(tmp_path):
    """Two processes write at once and are killed, again and again; each goes on after the last label it was told of."""
    path = tmp_path / "labels.sqlite"
    told = {"ada": -1, "bo": -1}
    for attempt in range(6):
        processes = {name: writer(path, name, told[name] + 1) for name in told}
        for process in processes.values():
            process.stdout.readline()
        time.sleep(0.03 * attempt)
        for name, process in processes.items():
            process.send_signal(signal.SIGKILL)
            lines = process.communicate()[0].splitlines()
            told[name] = max([told[name] + 1, *(int(line) for line in lines if line)])
    rows = stored(path)
    assert len(rows) == len(set(rows)), "a label stands there twice"
    for name, last in told.items():
        kept = {int(pair_id.split("-")[1]) for pair_id, annotator, _ in rows if annotator == name}
        assert set(range(last + 1)) <= kept, "a label that was confirmed is gone"
        # At most one for each kill was written and not yet confirmed; told again it was not doubled.
        assert kept <= set(range(last + 2))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
