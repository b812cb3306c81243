"""Volumes: an audit of all of WikiSQL's questions on two processes, its memory, and the cache of suites."""

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from reward.answering import Each
from reward.audit import audit_example
from reward.cache import SuiteCache, pack, unpack
from reward.judge import Judge

PROJECT = Path(__file__).parents[2]
MOMENTS = (0.1, 0.5, 1.0)
QUESTIONS = 80_381
QUICK = 2000
MEASURED_BY_CHUNK = 400


def measure(shared: Path, quick: bool) -> list[dict]:
    """All figures of this section; `quick` audits 2,000 rows spread over the file and extrapolates."""
    source = shared / "data/wikisql/wikisql_derived.jsonl.gz"
    return [*measure_audit(source, quick), *measure_workers(source), *measure_cache(source)]


def spread(source: Path, count: int) -> list[dict]:
    """`count` rows at even distances through the file."""
    step = QUESTIONS // count
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(islice(lines, 0, None, step), count)]


def measure_audit(source: Path, quick: bool) -> list[dict]:
    """The command line on two processes without a cache: time, rate, resident memory of all its processes."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            given = Path(folder) / "rows.jsonl"
            given.write_text("".join(json.dumps(row) + "\n" for row in spread(source, QUICK)), encoding="utf-8")
            count = QUICK
        else:
            given, count = source, QUESTIONS
        output = Path(folder) / "audit.jsonl"
        command = [sys.executable, "-m", "reward.audit", "--input", given, "--output", output, "--workers", "2"]
        started, used = time.monotonic(), _processor_s()
        run = subprocess.Popen([*map(str, command), "--no-cache"], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        memory, begun = _watch(run, output, count)
        elapsed = time.monotonic() - started
        table = run.stdout.read()
        if run.wait():
            raise RuntimeError(f"the audit ended with status {run.returncode}")
        used = _processor_s() - used
        bad = _share_bad(output)
    print(table, file=sys.stderr)
    rate = (count - begun[1]) / (started + elapsed - begun[0])
    minutes = QUESTIONS / rate / 60 if quick else elapsed / 60
    growth = memory[1.0] / memory[0.1]
    label = f"extrapolated from {count:,} rows" if quick else "measured whole"
    audit = f"audit of {QUESTIONS:,} questions, 2 workers, minutes ({label})"
    return [
        _line(audit, minutes, "at most 45", count, minutes <= 45),
        _line("audit, questions a second, 2 workers", rate, "", count),
        _line("audit, processor ms a question, all processes", 1000 * used / count, "", count),
        _line("audit, gold_bad share", bad, "", count),
        *(
            _line(f"audit, MiB resident in all processes at {moment:.0%} of the rows", memory[moment], "", count)
            for moment in MOMENTS
        ),
        _line("audit, memory at 100 % against 10 %", growth, "at most 1.2", count, growth <= 1.2),
    ]


def measure_workers(source: Path) -> list[dict]:
    """The same rows by one and by two processes, turn about, so that both see the same machine."""
    rows = spread(source, 2 * MEASURED_BY_CHUNK)
    seconds = {1: 0.0, 2: 0.0}
    with Judge() as one, Judge(workers=2) as two:
        for judge in (one, two):
            list(judge.answers(Each(audit_example), rows[:20]))  # start the processes
        for start in range(0, len(rows), 100):
            # Each keeps its own suites, so neither profits from the other.
            for judge in (one, two) if start % 200 else (two, one):
                begun = time.perf_counter()
                list(judge.answers(Each(audit_example), rows[start : start + 100]))
                seconds[judge.workers] += time.perf_counter() - begun
    gain = seconds[1] / seconds[2]
    return [_line("audit, two workers against one", gain, "at least 1.7", len(rows), gain >= 1.7)]


def measure_cache(source: Path) -> list[dict]:
    """What a suite costs to make, to read and to write, and the size it is kept in."""
    rows = spread(source, MEASURED_BY_CHUNK)
    with tempfile.TemporaryDirectory() as folder:
        with Judge(cache=folder) as judge:
            list(judge.answers(Each(audit_example), rows[:5]))
            made = _seconds_each(judge, rows[5:])
        with Judge(cache=folder) as judge:
            judge.suite(rows[0]["answer"], None, rows[0]["context"])
            read = _seconds_each(judge, rows[5:])
            cache: SuiteCache = judge._cache
            sizes = [len(value) for (value,) in cache._connection.execute("SELECT value FROM suite")]
            suite = judge.suite(rows[5]["answer"], None, rows[5]["context"])
        begun = time.perf_counter()
        for _ in range(100):
            unpack(pack(suite))
        packing = (time.perf_counter() - begun) / 100
    count = len(rows) - 5
    return [
        _line("suite made and stored, ms", 1000 * made, "", count),
        _line("suite read from the cache, ms", 1000 * read, "under 2", count, read < 0.002),
        _line("packing and unpacking of that, ms", 1000 * packing, "", 100),
        _line("suite in the cache, KiB", sum(sizes) / len(sizes) / 1024, "", len(sizes)),
    ]


def _seconds_each(judge: Judge, rows: list[dict]) -> float:
    begun = time.perf_counter()
    for row in rows:
        judge.suite(row["answer"], None, row["context"])
    return (time.perf_counter() - begun) / len(rows)


def _watch(run: subprocess.Popen, output: Path, count: int) -> tuple[dict[float, float], tuple[float, int]]:
    """MiB resident at each moment, and when it began to answer: (clock, lines that were there)."""
    memory: dict[float, float] = {}
    begun: tuple[float, int] | None = None
    lines = position = 0
    while run.poll() is None:
        if output.exists():
            with output.open("rb") as file:
                file.seek(position)
                chunk = file.read()
            lines, position = lines + chunk.count(b"\n"), position + len(chunk)
            if lines and begun is None:
                begun = (time.monotonic(), lines)
            now = _resident_mib(run.pid)
            for moment in MOMENTS:
                # The last moment is the last look while all processes still live.
                if lines >= moment * count and moment not in memory or moment == 1.0 and lines > 0.95 * count:
                    memory[moment] = max(now, memory.get(moment, 0.0))
        time.sleep(0.1)
    return memory, begun or (time.monotonic(), 0)


def _resident_mib(root: int) -> float:
    """Of a process and all its descendants, in 2**20 bytes; pages that they share count in each."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            parents.setdefault(int(fields[1]), []).append(int(entry))
    family, pages = [root], 0
    for process in family:
        family += parents.get(process, [])
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _processor_s() -> float:
    """Of all descendants that have ended; unlike the clock it hardly depends on what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _share_bad(output: Path) -> float:
    with output.open(encoding="utf-8") as lines:
        statuses = [json.loads(line)["status"] for line in lines]
    return statuses.count("gold_bad") / len(statuses)


def _line(measure: str, value: float, target: str, n: int, holds: bool | None = None) -> dict:
    return {"measure": measure, "value": round(value, 4), "target": target, "n": n, "holds": holds}
