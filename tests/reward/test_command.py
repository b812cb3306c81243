"""The command lines: streaming, bad lines, resuming, interrupting. What one is told of holds for both."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward import command
from reward.judge import DATABASES, Judge
from reward.json_lines import MAX_LINE_MIB, numbered_lines, parsed, survey, whole_lines

PROJECT = Path(__file__).parents[2]
DDL = "CREATE TABLE city (name VARCHAR, people INTEGER)"
GOLD = "SELECT name FROM city WHERE people > 5"


def task(number, **more):
    return {"id": number, "gold": GOLD, "candidates": [GOLD, "SELECT name FROM city"], "context": DDL, **more}


def packed(*lines) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with tasks.jsonl and verdicts.jsonl, and a cache of its own."""
    monkeypatch.setenv("TEXT_TO_SQL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def arguments(place, *more, kind="judge", source="tasks.jsonl"):
    files = ["--input", str(place / source), "--output", str(place / "out.jsonl")]
    return [sys.executable, "-m", f"reward.{kind}", *files, *map(str, more)]


def run(place, *more, expect=0, **named):
    done = subprocess.run(arguments(place, *more, **named), capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == expect, done.stderr
    return done


def written(place) -> list[dict]:
    return [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["judge", "audit"])
def test_help_is_instant_and_says_what_becomes_of_bad_lines(kind):
    script = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\n"
        f"try:\n    runpy.run_module('reward.{kind}', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'sqlglot', 'apsw', 'tqdm'} & sys.modules.keys()\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT)
    assert shown.returncode == 0, shown.stderr
    for words in ("has no line in the output", "exit status: 0", "--no-cache", ".gz", "goes on with the same command"):
        assert words in shown.stdout


def test_the_choices_are_those_of_the_judge():
    assert command._DATABASES == DATABASES


def test_whatever_a_line_holds_the_rest_goes_on(place, shop):
    surrogate = task("surrogate", context='CREATE TABLE t ("\ud800" INTEGER)', gold="SELECT * FROM t")
    good = [
        task("first"),
        task("first"),  # the same id again
        task(None),
        task([1, {"a": 2}]),
        task(1.5, candidates=[]),
        task("x" * 1000, gold=None),
        task("\ud800", candidates=["SELECT '\ud800'"]),
        surrogate,
        task("file", database=shop, gold="SELECT name FROM shop"),
        task("last"),
    ]
    bad = [
        b"{broken",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b"{}",
        b'{"id": NaN, "gold": null, "candidates": []}',
        b'{"id": 1, "gold": null, "candidates": [], "x": -Infinity}',
        b'{"id": 1e999, "gold": null, "candidates": []}',
        b'{"id": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"id": "\xe9"}',
        b"\x00\x01\x02",
        packed(task(1)).strip() * 2,
        {"gold": GOLD, "candidates": [], "context": DDL},
        {"id": 1, "candidates": [], "context": DDL},
        {"id": 1, "gold": GOLD, "context": DDL},
        {"id": 1, "gold": GOLD, "candidates": []},
        *(task(1, gold=value) for value in (1, True, [], {})),
        *(task(1, candidates=value) for value in (None, "SELECT 1", {}, [1], [["SELECT 1"]])),
        *(task(1, context=value) for value in (1, None, [DDL])),
        *(task(1, database=value) for value in (1, [], "", "absent.sqlite", "\0", str(place))),
    ]
    (place / "tasks.jsonl").write_bytes(packed(*bad, b"", good[0], b"  \t", *good[1:-1]) + packed(good[-1]).strip())
    done = run(place, "--workers", 2)
    assert [line["id"] for line in written(place)] == [line["id"] for line in good]
    told = [line for line in done.stderr.splitlines() if "tasks.jsonl, line " in line]
    assert [int(line.split("line ")[1].split(":")[0]) for line in told] == list(range(1, len(bad) + 1))
    assert all(line.count("; ") == 2 for line in told), told  # found; allowed; what to do
    assert f"{len(good) + len(bad)} lines read, {len(bad)} bad; {len(good)} are in" in done.stderr
    with Judge() as judge:
        assert written(place) == [json.loads(json.dumps(judge.question(line))) for line in good]


@pytest.mark.parametrize("kind", ["plain", "byte order mark", "windows", "gzip", "no final newline"])
def test_encodings_of_the_same_lines(place, kind):
    data = packed(*(task(number, gold=f"SELECT name FROM city WHERE name = 'Zürich{number}'") for number in range(3)))
    source = "tasks.jsonl.gz" if kind == "gzip" else "tasks.jsonl"
    forms = {
        "plain": data,
        "byte order mark": b"\xef\xbb\xbf" + data,
        "windows": data.replace(b"\n", b"\r\n"),
        "gzip": gzip.compress(data),
        "no final newline": data.strip(),
    }
    (place / source).write_bytes(forms[kind])
    assert survey(place / source).lines == 3
    assert [number for number, _ in numbered_lines(place / source)] == [1, 2, 3]
    assert [parsed(line)["id"] for _, line in numbered_lines(place / source)] == [0, 1, 2]


def test_an_empty_file_gives_an_empty_file(place):
    (place / "tasks.jsonl").write_bytes(b"")
    assert "0 lines read, 0 bad" in run(place).stderr
    assert (place / "out.jsonl").read_bytes() == b""
    run(place)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: (place / "tasks.jsonl").write_bytes("[1]\n".encode("utf-16")), "UTF-16"),
        (lambda place: (place / "tasks.jsonl").unlink(), "is no file"),
        (lambda place: (place / "out.jsonl").mkdir(), "cannot be written"),
        (lambda place: (place / "out.jsonl").write_text("{}\n"), "another input"),
        (lambda place: (place / "out.jsonl").symlink_to(place / "tasks.jsonl"), "is the input"),
    ],
)
def test_wrong_usage(place, change, words, capsys):
    (place / "tasks.jsonl").write_bytes(packed(task(1)))
    change(place)
    with pytest.raises(SystemExit) as end:
        command.main_judge(arguments(place)[3:])
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_a_damaged_gzip_is_told_before_anything_is_written(place, capsys):
    (place / "tasks.jsonl.gz").write_bytes(gzip.compress(packed(*map(task, range(50))))[:-20])
    with pytest.raises(SystemExit):
        command.main_judge(arguments(place, source="tasks.jsonl.gz")[3:])
    assert "cannot be read" in capsys.readouterr().err and not (place / "out.jsonl").exists()


def test_a_line_of_50_mb_and_one_that_is_too_long(place):
    long = json.dumps(task("long", evidence="x" * 50_000_000)).encode()
    # Compressed: nothing here writes 120 MB to the disk.
    with gzip.open(place / "tasks.jsonl.gz", "wb", 1) as file:
        file.write(long + b"\n" + b'{"id": "' + b"y" * (MAX_LINE_MIB << 20) + b'"}\n' + packed(task("after")))
    done = run(place, source="tasks.jsonl.gz")
    assert [line["id"] for line in written(place)] == ["long", "after"]
    assert "line 2: the line is longer than" in done.stderr and len(done.stderr) < 2000


def test_whole_lines_cuts_what_a_killed_run_left(tmp_path):
    for data, lines, kept in ((b"", 0, 0), (b"a", 0, 0), (b"a\nb", 1, 2), (b"a\nbc\n", 2, 5)):
        path = tmp_path / "x"
        path.write_bytes(data)
        with path.open("r+b") as file:
            assert whole_lines(file) == lines and file.tell() == kept
        assert path.read_bytes() == data[:kept]


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(place, shop):
    lines = []
    for number in range(60):
        lines.append(task(number, gold=f"SELECT name FROM city WHERE people > {number}"))
        if number % 7 == 3:
            lines.append(b"{broken")
    (place / "tasks.jsonl").write_bytes(packed(*lines))
    run(place, "--no-cache", "--workers", 2)
    whole = (place / "out.jsonl").read_bytes()
    (place / "out.jsonl").unlink()
    (place / "out.jsonl.run").unlink()
    kills = 0
    for number in range(40):
        going = subprocess.Popen(
            arguments(place, "--no-cache", "--workers", 1 + number % 2), stderr=subprocess.PIPE, text=True, cwd=PROJECT
        )
        begun = time.monotonic()
        size = (place / "out.jsonl").stat().st_size if (place / "out.jsonl").exists() else 0
        while going.poll() is None:
            # Sometimes at once, sometimes after some lines, in the middle of whatever it does.
            some = (place / "out.jsonl").exists() and (place / "out.jsonl").stat().st_size > size + 5000 * (number + 1)
            if some or (number % 3 == 0 and time.monotonic() - begun > 0.06 * number):
                going.kill()
                kills += 1
                break
            time.sleep(0.002)
        told = going.communicate()[1]
        if going.returncode == 0:
            break
    assert going.returncode == 0 and kills >= 3, told
    assert (place / "out.jsonl").read_bytes() == whole
    assert f"{len(lines)} lines read, 9 bad; 60 are in" in told
    again = run(place, "--no-cache")
    assert "already holds 60 lines" in again.stderr and (place / "out.jsonl").read_bytes() == whole


def test_a_database_that_vanishes_between_two_runs_moves_no_line(place, make_database):
    database = Path(make_database("CREATE TABLE city (name, people)", "city"))
    gone = place / "gone.sqlite"
    gone.write_bytes(database.read_bytes())
    lines = [task(0), task(1, database="gone.sqlite"), b"{broken", task(2), task(3, database="late.sqlite"), task(4)]
    (place / "tasks.jsonl").write_bytes(packed(*lines))
    run(place)
    whole = (place / "out.jsonl").read_bytes()
    assert [line["id"] for line in written(place)] == [0, 1, 2, 4]
    for cut, expected in ((0, [0, 1, 2, 4]), (2, [0, 1, 2, 4]), (3, [0, 1, 2, 3, 4])):
        kept = whole.splitlines(keepends=True)[:cut]
        (place / "out.jsonl").write_bytes(b"".join(kept) + b'{"id": half a li')
        if cut == 2:
            gone.unlink()  # its line is answered already
        if cut == 3:
            (place / "late.sqlite").write_bytes(database.read_bytes())  # its line was bad, and is good now
        run(place)
        assert [line["id"] for line in written(place)] == expected


def test_a_database_that_vanishes_while_it_is_judged(shop, tmp_path):
    database = tmp_path / "gone.sqlite"
    database.write_bytes(Path(shop).read_bytes())
    with Judge() as judge:
        database.unlink()
        suite = judge.suite("SELECT name FROM shop", str(database))
        assert (suite.status, suite.reason) == ("gold_bad", "schema") and "gone.sqlite" in suite.detail
        database.write_bytes(Path(shop).read_bytes())
        assert judge.suite("SELECT name FROM shop", str(database)).status == "ok"


def test_only_the_same_run_goes_on_and_only_one_at_a_time(place):
    (place / "tasks.jsonl").write_bytes(packed(task(1), task(2)))
    run(place)
    whole = (place / "out.jsonl").read_bytes()
    for more in (["--seed", 5], ["--databases", "given"]):
        assert "other settings" in run(place, *more, expect=2).stderr
    assert "another input" in run(place, kind="audit", expect=2).stderr
    (place / "tasks.jsonl").write_bytes(packed(task(1), task(3)))
    assert "another input" in run(place, expect=2).stderr
    assert (place / "out.jsonl").read_bytes() == whole


def test_ctrl_c_is_short_and_the_run_goes_on(place):
    (place / "tasks.jsonl").write_bytes(packed(*(task(n, gold=f"{GOLD} OR people = {n}") for n in range(400))))
    going = subprocess.Popen(
        arguments(place, "--workers", 2, "--no-cache"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        start_new_session=True,
    )
    while not (place / "out.jsonl").exists() or (place / "out.jsonl").stat().st_size < 5000:
        assert going.poll() is None, going.stderr.read()
        time.sleep(0.01)
    second = subprocess.run(arguments(place, "--no-cache"), capture_output=True, text=True, cwd=PROJECT)
    assert second.returncode == 2 and "another run" in second.stderr
    os.killpg(going.pid, signal.SIGINT)  # as a terminal does: to all of them
    told = going.communicate(timeout=20)[1]
    assert going.returncode == 130 and "Traceback" not in told and "the same command goes on" in told
    lines = written(place)
    assert 0 < len(lines) < 400 and f"{len(lines)} lines are in" in told
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-s", str(going.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline, "processes outlive the run"
        time.sleep(0.05)


def test_a_full_disk_stops_the_run_with_a_word(place):
    (place / "tasks.jsonl").write_bytes(packed(task(1)))
    script = (  # a limit on the size of files fails like a full disk
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from reward import command\nimport reward.judge\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "sys.exit(command.main_judge(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments(place, "--no-cache")[3:]], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 1 and "stopped:" in done.stderr and "Traceback" not in done.stderr


def test_the_python_example_of_the_readme_runs_and_prints_what_it_says(tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    first, *streamed = done.stdout.splitlines()
    assert f"# {first}\n" in example and len(streamed) == 3, done.stderr
    assert (tmp_path / "suites").is_dir()
