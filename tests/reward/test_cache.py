"""Suites on disk: read as they were written, by many at once, and never in the way."""

import pickle
import sqlite3
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest

import reward.cache
from reward.audit import audit
from reward.cache import SuiteCache, default_folder, pack, source_hash, unpack
from reward.compare import Denotation
from reward.judge import Judge
from reward.sandbox import Database, Sandbox
from reward.suite import Member, Suite

DDL = "CREATE TABLE city (city_id INTEGER, name VARCHAR, people VARCHAR); CREATE TABLE host (city_id INTEGER, year INT)"
GOLDS = [
    "SELECT name FROM city WHERE people > 1000",
    "SELECT c.name, COUNT(*) FROM city c JOIN host h ON c.city_id = h.city_id GROUP BY c.city_id",
    "SELECT name FROM city ORDER BY people DESC LIMIT 3",
    "SELECT oops FROM city",
    "SELECT name FROM city WHERE 1 = 2",
]
PROJECT = Path(__file__).parents[2]


class Counting:
    """A builder that makes a suite of every gold and counts how often it is asked."""

    def __init__(self, size: int = 10):
        self.sandbox = Sandbox()  # not started: only its count of restarts is read
        self.size = size
        self.asked: list[str] = []

    def build(self, gold: str, path: str | None, context: str | None) -> Suite:
        self.asked.append(gold)
        rows = [(number, f"{gold} {number * 7919 % 1000}", None, 0.5, b"\x00") for number in range(self.size)]
        database = Database("key", "tidy-1", "tidy", None, ("CREATE TABLE t (a)",), (("t", 5, rows),))
        member = Member(database, Denotation(5, [rows], 0, len(rows), False))
        return Suite("ok", "", "", gold, (member,), False, "hash", 9, 8)


def opened(folder, builder=None, limit_mib=64, **settings):
    return SuiteCache(folder, builder or Counting(), {"seed": 0, **settings}, limit_mib)


def test_real_suites_survive_packing(shop):
    with Judge() as judge:
        suites = [judge.suite(gold, None, DDL) for gold in GOLDS]
        suites.append(judge.suite("SELECT name, city FROM shop ORDER BY city", shop))
    assert [suite.status for suite in suites] == ["ok", "ok", "ok", "gold_bad", "ok", "ok"]
    assert len(suites[-1].members) > 1
    for suite in suites:
        read = unpack(pack(suite))
        assert read == suite and repr(read) == repr(suite)


def test_verdicts_and_audit_are_the_same_with_and_without_a_cache(tmp_path, shop):
    tasks = [{"id": i, "gold": gold, "candidates": [*GOLDS], "context": DDL} for i, gold in enumerate(GOLDS)]
    file = {"id": "file", "gold": "SELECT name FROM shop", "candidates": ["SELECT city FROM shop"], "database": shop}
    tasks.append(file)
    with Judge() as without, Judge(cache=tmp_path) as writes, Judge(cache=tmp_path) as reads:
        expected = list(without.stream(tasks))
        assert list(writes.stream(tasks)) == expected
        made = reads._builder.build
        reads._builder.build = None  # whatever is not read fails
        assert list(reads.stream(tasks)) == expected
        reads._builder.build = made
    assert list(audit(tasks, progress=False, cache=tmp_path)) == list(audit(tasks, progress=False))


def test_a_suite_is_made_once_and_what_it_follows_from_makes_another(tmp_path, monkeypatch):
    builder = Counting()
    cache = opened(tmp_path, builder)
    assert cache.build("a", None, DDL) == cache.build("a", None, DDL) and builder.asked == ["a"]
    cache.build("b", None, DDL)
    cache.build("a", None, DDL + ";")
    opened(tmp_path, builder, seed=1).build("a", None, DDL)
    opened(tmp_path, builder).build("a", None, DDL)
    opened(tmp_path, builder, cpu_limit_s=9.0).build("a", None, DDL)  # this one decides nothing
    assert builder.asked == ["a", "b", "a", "a"]
    monkeypatch.setattr(reward.cache, "source_hash", lambda excluded: "other code")
    opened(tmp_path, builder).build("a", None, DDL)
    assert len(builder.asked) == 5


def test_the_code_that_makes_suites_is_part_of_the_key():
    script = "import sys, reward.suite, reward.worker\nprint(*(n for n in sys.modules if n.startswith('reward.')))"
    imported = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT).stdout.split()
    making = {name.removeprefix("reward.") + ".py" for name in imported}
    files = {path.name for path in (PROJECT / "reward").glob("*.py")}
    assert {"suite.py", "databases.py", "worker.py"} <= making <= files - reward.cache._NOT_MAKING_SUITES
    assert reward.cache._NOT_MAKING_SUITES < files
    assert source_hash() != source_hash(reward.cache._NOT_MAKING_SUITES)


def test_a_database_counts_by_its_content(tmp_path):
    builder = Counting()
    database = tmp_path / "x.sqlite"
    database.write_bytes(b"one")
    opened(tmp_path, builder).build("a", str(database), None)
    first = opened(tmp_path, builder)
    first.build("a", str(database), None)
    assert len(builder.asked) == 1
    database.write_bytes(b"another")
    opened(tmp_path, builder).build("a", str(database), None)
    assert len(builder.asked) == 2
    # Under its own eyes: which content a suite saw cannot be told, so none is read or kept.
    first.build("a", str(database), None)
    first.build("a", str(database), None)
    assert len(builder.asked) == 4
    with pytest.raises(OSError):
        first.build("a", str(tmp_path / "absent.sqlite"), None)


def test_a_suite_that_lost_a_worker_is_not_kept(tmp_path):
    builder = Counting()
    cache = opened(tmp_path, builder)
    build = builder.build

    def losing(*question):
        builder.sandbox.restarts += 1
        return build(*question)

    builder.build = losing
    cache.build("a", None, DDL)
    builder.build = build
    cache.build("a", None, DDL)
    cache.build("a", None, DDL)
    assert builder.asked == ["a", "a"]


def test_the_file_stays_bounded_and_the_oldest_use_goes_first(tmp_path, monkeypatch):
    builder = Counting(size=2000)
    cache = opened(tmp_path, builder, limit_mib=1)
    clock = [0.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for number in range(300):
        clock[0] += 7200
        cache.build(f"gold {number}", None, DDL)
        cache.build("gold 0", None, DDL)  # always in use
    assert builder.asked.count("gold 0") == 1
    before = len(builder.asked)
    cache.build("gold 299", None, DDL)
    assert len(builder.asked) == before
    cache.build("gold 1", None, DDL)
    assert len(builder.asked) == before + 1
    size = len(pack(builder.build("x", None, DDL)))
    assert size * 300 > 2 << 20  # it would not have fitted
    assert cache._used_bytes() < (1 << 20) + 40 * size
    cache.close()
    assert cache.path.stat().st_size < (1 << 20) + 80 * size


@pytest.mark.parametrize("damage", ["text", "middle", "folder", "other table", "no folder"])
def test_a_file_that_cannot_be_used_costs_one_warning(tmp_path, damage):
    folder = tmp_path / "cache"
    cache = opened(folder)
    for number in range(40):
        cache.build(f"gold {number}", None, DDL)
    cache.close()
    if damage == "text":
        cache.path.write_text("this is no database" * 100)
    elif damage == "middle":
        data = bytearray(cache.path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        cache.path.write_bytes(data)
    elif damage == "folder":
        cache.path.unlink()
        cache.path.mkdir()
    elif damage == "other table":
        connection = sqlite3.connect(cache.path)
        connection.executescript("DROP TABLE suite; CREATE TABLE suite (key)")
        connection.close()
    else:
        folder = tmp_path / "file" / "cache"
        folder.parent.write_text("a file where the folder should be")
    builder = Counting()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        broken = opened(folder, builder)
        suites = [broken.build(f"gold {number}", None, DDL) for number in range(40)]
        broken.close()
    assert suites == [Counting().build(f"gold {number}", None, DDL) for number in range(40)]
    assert len(told) == 1 and "cannot be used" in str(told[0].message) and not broken.usable


def test_a_value_that_is_no_suite_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    for value in (Evil(), Suite("ok", detail=Evil()), ("ok",), Sandbox.close):
        with pytest.raises(ValueError):
            unpack(zlib.compress(pickle.dumps(value)))
    assert not (tmp_path / "run").exists()


def test_a_damaged_value_is_made_anew(tmp_path):
    builder = Counting()
    cache = opened(tmp_path, builder)
    expected = cache.build("a", None, DDL)
    cache._connection.execute("UPDATE suite SET value = zeroblob(100)")
    assert cache.build("a", None, DDL) == expected and len(builder.asked) == 2
    assert cache.build("a", None, DDL) == expected and len(builder.asked) == 2


def test_a_locked_file_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(reward.cache, "_BUSY_S", 0.05)
    cache = opened(tmp_path)
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.build("a", None, DDL)
        other.execute("ROLLBACK")
        cache.build("a", None, DDL)
        cache.build("a", None, DDL)
    assert cache.builder.asked == ["a", "a"] and cache.usable


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from tests.reward.test_cache import Counting, opened
cache = opened(sys.argv[1], Counting(size=200))
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    cache.build(f"gold {number % 500}", None, None)
    if number == 0:
        print("begun", flush=True)
"""


def test_many_writers_and_one_that_is_killed(tmp_path):
    def start(count):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(count), str(PROJECT)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    writers = [start(400) for _ in range(2)]
    doomed = start(10**9)
    assert [doomed.stdout.readline(), doomed.stdout.readline()] == ["ready\n", "begun\n"]
    doomed.kill()
    doomed.communicate()
    for writer in writers:
        assert writer.communicate()[1] == "" and writer.returncode == 0
    cache = opened(tmp_path, builder := Counting(size=200))
    for number in range(400):
        assert cache.build(f"gold {number}", None, None) == Counting(size=200).build(f"gold {number}", None, None)
    assert builder.asked == []
    assert cache._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("TEXT_TO_SQL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "text-to-sql-preference"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home/.cache/text-to-sql-preference"
    monkeypatch.setenv("TEXT_TO_SQL_CACHE", "~/chosen")
    assert default_folder() == tmp_path / "home/chosen"
