"""How fast and how small the inspection tool is on 1,000,000 synthetic pairs; writes a table and a JSON file.

    python tests/benchmarks/inspection.py [--pairs N] [--folder FOLDER] [--output FILE.json]

The pairs have all columns of preference.pairs.PAIRS_SCHEMA, in one file as the project writes it. Each measurement runs in a
process of its own, whose peak resident memory is taken; the first start makes the index, later ones find it.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = Path(__file__).parents[2]
WORDS = "order city name price year player team match score school driver race club song album film actor hotel guest".split()
LIMITS = {"summary_s": 5.0, "list_ms": 300.0, "memory_mib": 600.0}


def make_pairs(path: Path, count: int, chunk: int = 50_000) -> None:
    """Write `count` pairs: about 3 a question, every question and most queries different texts."""
    sys.path.insert(0, str(PROJECT))
    from preference.pairs import PAIRS_SCHEMA
    from sft.artefacts import ROW_GROUP_SIZE

    chance = random.Random(0)
    contexts = [f"CREATE TABLE {a} (id INTEGER PRIMARY KEY, {b} TEXT, {c} INTEGER); CREATE TABLE {b}_{c} (id INTEGER, {a}_id "
                f"INTEGER REFERENCES {a}(id), value REAL)" for a in WORDS for b in WORDS[:12] for c in WORDS[:4]]
    with pq.ParquetWriter(path, PAIRS_SCHEMA) as writer:
        for start in range(0, count, chunk):
            rows = [make_pair(number, chance, contexts) for number in range(start, min(start + chunk, count))]
            writer.write_table(pa.Table.from_pylist(rows, PAIRS_SCHEMA), row_group_size=ROW_GROUP_SIZE)


def make_pair(number: int, chance: random.Random, contexts: list[str]) -> dict:
    question_number = number // 3
    a, b, c = chance.choices(WORDS, k=3)
    context = contexts[question_number % len(contexts)]
    question = f"What is the {a} of every {b} whose {c} is above {question_number}, listed by {a}?"
    gold = f"SELECT {a} FROM {b} WHERE {c} > {question_number} ORDER BY {a}"
    chosen = gold if number % 2 else f"SELECT t.{a} FROM {b} AS t WHERE t.{c} > {question_number} ORDER BY t.{a}"
    rejected = f"SELECT {c}{', ' + a if number % 5 == 0 else ''} FROM {b} WHERE {a} > {number} ORDER BY {c} DESC LIMIT {number % 9 + 1}"
    prompt = [{"role": "system", "content": "Answer with one SQLite query."},
              {"role": "user", "content": f"{context}\nQuestion: {question}"}]
    trace = json.dumps({"database": "tidy-1", "gold_rows": number % 7, "rows": number % 9, "gold_only": [[number]],
                        "candidate_only": [[number + 1]]})
    return {
        "pair_id": f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}", "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}], "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_sql": chosen, "chosen_verdict": "correct", "chosen_reason": "equal", "chosen_trace": '{"rows": [3, 4, 2]}',
        "chosen_result_hash": f"{question_number:016x}", "chosen_logp_sum": -chance.random() * 20,
        "chosen_tokens_round_trip": True, "chosen_sample_index": number % 8, "rejected_sql": rejected,
        "rejected_verdict": "wrong", "rejected_reason": ("rows", "columns", "sql_error", "duplicates", "order")[number % 5],
        "rejected_trace": trace, "rejected_result_hash": f"{number:016x}", "rejected_logp_sum": -chance.random() * 30,
        "rejected_tokens_round_trip": True, "rejected_sample_index": (number + 1) % 8, "example_id": f"e{question_number}",
        "source": ("spider", "sql-create-context", "embedded")[number % 3], "question": question, "context": context,
        "database": None, "gold_sql": gold, "kind": [["join"], ["order", "limit"], ["aggregate", "group"], ["simple"]][number % 4],
        "suite_hash": f"{question_number % 997:016x}", "kill_score": 0.5 + (question_number % 51) / 100, "gold_fallback": False,
        "strategy": ("nearest", "hardest")[number % 2], "weight": 1.0, "margin": 0.0, "round": 1, "seed": 0,
        "checkpoint_hash": "c" * 16, "prompt_hash": "p" * 16, "person_label": None,
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_summary(path: Path) -> dict:
    """One `summary --json`, as a person starts it, from the start of the process to its end."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", "from preference.inspection.command import main; main()", "summary",
                                str(path), "--json"], cwd=PROJECT, stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # of this child alone, unlike RUSAGE_CHILDREN
    elapsed = time.perf_counter() - started
    if status:
        raise SystemExit(f"summary of {path} failed")
    return {"summary_s": elapsed, "cpu_s": used.ru_utime + used.ru_stime, "memory_mib": used.ru_maxrss / 1024,
            "pairs": json.loads(output)["total"]}


def measure_lists(path: Path) -> dict:
    """Milliseconds of pages, filters, searches and sorting in one process, as the server answers them."""
    from preference.inspection.store import open_store

    started = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter() - started
    found: dict[str, float] = {"open": opened * 1000}
    processor: dict[str, float] = {}
    _, first = store.page()
    requests = {
        "first page": lambda: store.page(),
        "facets": lambda: store.facets(),
        "verdict": lambda: store.page({"verdict": "wrong"}),
        "reason": lambda: store.page({"reason": "columns"}),
        "source": lambda: store.page({"source": "spider"}),
        "kind": lambda: store.page({"kind": "join"}),
        "length": lambda: store.page({"min_length": "80", "max_length": "90"}),
        "not labelled": lambda: store.page({"labelled": "no"}),
        "one question": lambda: store.page({"example_id": "e1234"}),
        "two filters": lambda: store.page({"reason": "rows", "kind": "aggregate"}),
        "no row": lambda: store.page({"source": "nowhere"}),
        "sort by length": lambda: store.page(sort="chosen_length", descending=True),
        "sort by question": lambda: store.page(sort="question"),
        "deep page": lambda: store.page(sort="kill_score", offset=500_000),
        "search, many rows": lambda: store.page(search="hotel guest"),
        "search, one row": lambda: store.page(search="above 271828,"),
        "search, no row": lambda: store.page(search="zebra"),
        "search and filter": lambda: store.page({"reason": "rows"}, search="album city"),
        "one pair": lambda: store.pair(first[7]["pair_id"]),
        "a late pair": lambda: store.pair(store.page(offset=store.total - 3)[1][0]["pair_id"]),
        "neighbours": lambda: store.neighbours(first[7]["pair_id"], {"reason": "rows"}, sort="kill_score"),
        "question": lambda: store.question("e1234"),
        "mistyped id": lambda: store.nearest("0000xyz"),
    }
    for name, request in requests.items():
        times, cpu = [], []
        for _ in range(5):
            store._counts.clear()
            store._matches.clear()
            store._facets = store._label_facets = None
            begun, used = time.perf_counter(), time.process_time()
            request()
            times.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - used)
        found[name], processor[name] = statistics.median(times) * 1000, statistics.median(cpu) * 1000
    return {"milliseconds": found, "cpu_milliseconds": processor, "memory_mib": peak_mib()}


def measure_pages(path: Path) -> dict:
    """Milliseconds of whole pages over HTTP from `serve`, as a browser waits for them, and the server's peak memory."""
    code = (f"from pathlib import Path\nfrom preference.inspection.server import serve\n"
            f"serve(Path({str(path)!r}), port=0, annotator='benchmark', browser=False)")
    server = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    address = server.stdout.readline().split(" at ")[1].split()[0].rstrip("/")
    with urllib.request.urlopen(f"{address}/list?page=9000") as answer:
        pair = re.search(r'href="(/pair\?[^"]*)"', answer.read().decode())[1].replace("&amp;", "&")
    addresses = {"overview": "/", "list": "/list", "list, verdict": "/list?verdict=wrong", "list, reason": "/list?reason=columns",
                 "list, source": "/list?source=spider", "list, kind": "/list?kind=join", "list, unlabelled": "/list?labelled=no",
                 "list, length": "/list?min_length=80&max_length=90", "list, two filters": "/list?reason=rows&kind=aggregate",
                 "list, search": "/list?search=hotel+guest", "list, search, filter": "/list?search=album+city&reason=rows",
                 "list, sorted": "/list?sort=chosen_length&order=down", "list, deep": "/list?page=15000", "a pair": pair}
    found = {}
    try:
        for name, wanted in addresses.items():
            times = []
            for _ in range(5):
                begun = time.perf_counter()
                with urllib.request.urlopen(address + wanted) as answer:
                    answer.read()
                times.append(time.perf_counter() - begun)
            found[name] = {"median_ms": statistics.median(times) * 1000, "first_ms": times[0] * 1000}
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
    finally:
        server.kill()
        server.communicate()
    return {"milliseconds": found, "memory_mib": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "inspection-benchmark",
                        help="where the pairs are made, and found by a later start")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    parser.add_argument("--measure", choices=("lists", "make"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / f"pairs-{options.pairs}.parquet"
    os.environ["XDG_CACHE_HOME"] = str(options.folder / "cache")
    sys.path.insert(0, str(PROJECT))
    if options.measure == "lists":
        print(json.dumps(measure_lists(path)))
        return
    if options.measure == "make":
        options.folder.mkdir(parents=True, exist_ok=True)
        make_pairs(path, options.pairs)
        return

    def apart(what: str) -> str:
        return subprocess.run([sys.executable, __file__, "--pairs", str(options.pairs), "--folder", str(options.folder),
                               "--measure", what], check=True, stdout=subprocess.PIPE, text=True).stdout

    if not path.exists():
        apart("make")
    for old in (options.folder / "cache").rglob("*.duckdb"):
        old.unlink()
    first = measure_summary(path)
    again = measure_summary(path)
    lists = json.loads(apart("lists"))
    pages = measure_pages(path)
    index = sum(file.stat().st_size for file in (options.folder / "cache").rglob("*.duckdb"))
    figures = {"pairs": options.pairs, "file_mib": path.stat().st_size / 2**20, "index_mib": index / 2**20, "cores": os.cpu_count(),
               "python": platform.python_version(), "summary_first": first, "summary_again": again, "lists": lists, "pages": pages}
    print(f"{options.pairs:,} pairs, {figures['file_mib']:.0f} MiB of Parquet, index {figures['index_mib']:.0f} MiB, "
          f"{os.cpu_count()} cores")
    print(f"{'summary, first start':<24}{first['summary_s']:9.2f} s   ({first['cpu_s']:.2f} s of CPU; limit {LIMITS['summary_s']:.0f} s), peak memory "
          f"{first['memory_mib']:.0f} MiB (limit {LIMITS['memory_mib']:.0f})")
    print(f"{'summary, later':<24}{again['summary_s']:9.2f} s   ({again['cpu_s']:.2f} s of CPU)")
    print(f"{'median of 5 requests':<24}{'wall':>9}{'CPU':>11}")
    for name, milliseconds in lists["milliseconds"].items():
        print(f"{name:<24}{milliseconds:9.0f} ms{lists['cpu_milliseconds'].get(name, 0):8.0f} ms" + ("  over the limit" if milliseconds > LIMITS["list_ms"] else ""))
    print(f"{'memory of lists':<24}{lists['memory_mib']:9.0f} MiB")
    print(f"{'pages over HTTP':<24}{'median':>9}{'first':>11}")
    for name, times in pages["milliseconds"].items():
        print(f"{name:<24}{times['median_ms']:9.0f} ms{times['first_ms']:8.0f} ms")
    print(f"{'memory of the server':<24}{pages['memory_mib']:9.0f} MiB")
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
