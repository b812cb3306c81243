"""How often the judge rejects a true rewrite of gold: real golds, rewritten by the rules beside this file.

A rule of class `always` holds on every database, one of class `natural` on those without NULLs, with unique keys and
valid foreign keys: not on real files, which may break them. A rewrite that plain SQLite cannot prepare is left out.
"""

import json
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import rewrites_by_sqlglot
import rewrites_of_conditions
import rewrites_of_keys
import rewrites_of_results
import rewrites_of_tables
from reward.judge import Judge
from reward.queries import parse
from reward.sandbox import Database
from reward.schema import Schema, read_schema

_GOLDS = {"sql_create_context": 450, "spider schema": 250, "spider file": 250}
_COMPOSED = 2  # rewrites of a rewrite, for each gold
_SPELLING = rewrites_of_conditions.SPELLING
_ALWAYS = (
    *rewrites_of_conditions.ALWAYS,
    *rewrites_of_tables.ALWAYS,
    *rewrites_of_results.ALWAYS,
    *rewrites_by_sqlglot.ALWAYS,
)
_NATURAL = (
    *rewrites_of_conditions.NATURAL,
    *rewrites_of_tables.NATURAL,
    *rewrites_of_results.NATURAL,
    *rewrites_of_keys.NATURAL,
)


class Judged(NamedTuple):
    """One rewrite and what the judge says of it; `rule` is one name or two joined by `+`, `natural` its class."""

    source: str
    rule: str
    natural: bool
    gold: str
    rewrite: str
    verdict: dict


def measure(shared: Path, quick: bool) -> list[dict]:
    """Shares of true rewrites that are called wrong or unclear, of all and by class; the table by rule on stderr."""
    found = list(judge_rewrites(shared, 0.1 if quick else 1.0))
    counts: dict[str, Counter] = {}
    for judged in found:
        kind = judged.rule if "+" not in judged.rule else "two rules"
        counts.setdefault(kind, Counter())[judged.verdict["verdict"]] += 1
    for rule, verdicts in sorted(counts.items()):
        print(f"{rule:44}", dict(verdicts), file=sys.stderr)
    for judged in found:
        if judged.verdict["verdict"] == "wrong":
            print(judged.source, judged.rule, judged.gold, judged.rewrite, judged.verdict, sep="\n  ", file=sys.stderr)
    rows = []
    for name, chosen in (
        ("always true", [judged for judged in found if not judged.natural]),
        ("true under natural constraints", [judged for judged in found if judged.natural]),
        ("all", found),
    ):
        wrong = sum(judged.verdict["verdict"] == "wrong" for judged in chosen)
        unclear = sum(judged.verdict["verdict"] != "correct" for judged in chosen) - wrong
        total = len(chosen)
        strict = name != "true under natural constraints"
        rows.append(
            {"measure": f"rewrites {name}: wrong", "value": wrong, "target": "0", "n": total, "holds": wrong == 0}
        )
        rows.append(
            {
                "measure": f"rewrites {name}: unclear",
                "value": round(unclear / max(total, 1), 5),
                "target": "<= 0.01" if strict else "none",
                "n": total,
                "holds": unclear <= 0.01 * total if strict else None,
            }
        )
    return rows


def judge_rewrites(shared: Path, share: float = 1.0, seed: int = 0) -> Iterator[Judged]:
    """Judges rewrites of `share` of the chosen golds; golds that the judge does not trust or that are empty are left
    out.
    """
    tasks = list(_golds(shared, share, seed))
    with Judge(seed=seed) as judge:
        for source, gold, place in tqdm(tasks, desc="rewrites", file=sys.stderr, mininterval=2):
            suite = judge.suite(gold, place.get("database"), place.get("context"))
            tree = parse(suite.gold_sql) if suite.status == "ok" and not suite.empty else None
            if tree is None:
                continue
            schema = _schema(judge, place)
            rewrites = _rewrites(suite.gold_sql, schema, "database" in place, random.Random(f"{seed}/{gold}"))
            line = judge.question({"id": 0, "gold": gold, "candidates": [sql for _, _, sql in rewrites], **place})
            for (rule, natural, sql), verdict in zip(rewrites, line["verdicts"]):
                yield Judged(source, rule, natural, suite.gold_sql, sql, verdict)


def _golds(shared: Path, share: float, seed: int) -> Iterator[tuple[str, str, dict]]:
    """(source, gold, its database or context), drawn by the seed and one of each text."""
    rows = []
    for name in ("train", "dev"):
        rows += _lines(shared / f"data/sql_create_context/{name}.jsonl")
    for row in _drawn({row["answer"]: row for row in rows}, _GOLDS["sql_create_context"] * share, seed):
        yield "sql_create_context", row["answer"], {"context": row["context"]}
    rows = _lines(shared / "data/spider/train.jsonl")
    for row in _drawn({row["query"]: row for row in rows}, _GOLDS["spider schema"] * share, seed):
        path = shared / f"data/spider/database/{row['db_id']}.sqlite"
        yield "spider schema", row["query"], {"context": _ddl(path)}
    for row in _drawn({row["query"]: row for row in rows}, _GOLDS["spider file"] * share, seed + 1):
        yield "spider file", row["query"], {"database": str(shared / f"data/spider/database/{row['db_id']}.sqlite")}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _drawn(rows: dict[str, dict], count: float, seed: int) -> list[dict]:
    """A sample of which half has a join, a subquery, a group or a set operation."""
    words = ("JOIN", "GROUP BY", "INTERSECT", "EXCEPT", "UNION", "(SELECT", "ORDER BY")
    ordered = sorted(rows)
    random.Random(seed).shuffle(ordered)
    complex_ = [text for text in ordered if any(word in text.upper() for word in words)]
    simple = [text for text in ordered if not any(word in text.upper() for word in words)]
    half = int(count / 2) + 1
    return [rows[text] for text in complex_[:half] + simple[: int(count) - half]]


def _ddl(path: Path) -> str:
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    query = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    statements = [sql for (sql,) in connection.execute(query)]
    connection.close()
    return ";\n".join(statements)


def _schema(judge: Judge, place: dict) -> Schema:
    if "database" in place:
        database = Database(f"file-{place['database']}", "given", "given", place["database"])
    else:
        database = Database(f"ddl-{place['context']}", "schema", "schema", None, (place["context"],))
    return read_schema(judge.sandbox.describe(database))


def _rewrites(gold: str, schema: Schema, on_file: bool, rng: random.Random) -> list[tuple[str, bool, str]]:
    """(rule, whether it needs natural constraints, text): one spelling, all rules that apply, some of two rules."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(";\n".join(schema.ddl))
    # COLLATE makes the sides of a comparison unlike each other; no rule claims to hold then.
    rules = _ALWAYS if on_file else (*_ALWAYS, *_NATURAL)
    if "COLLATE" in "".join(schema.ddl).upper():
        rules = ()
    found: dict[str, tuple[str, bool]] = {}

    def add(name: str, natural: bool, text: str | None) -> None:
        if text is None or text == gold or text in found:
            return
        try:
            connection.execute("EXPLAIN " + text)
        except sqlite3.Error:
            return
        found[text] = (name, natural)

    for rule in [rng.choice(_SPELLING), *rules]:
        add(rule.__name__, rule in _NATURAL, rule(parse(gold), schema))
    first = list(found.items())
    for text, (name, natural) in rng.sample(first, min(_COMPOSED, len(first))):
        tree = parse(text)
        for rule in rng.sample(rules, len(rules)) if tree is not None else ():
            twice = rule(tree.copy(), schema)
            if twice not in (None, text):
                add(f"{name}+{rule.__name__}", natural or rule in _NATURAL, twice)
                break
    connection.close()
    return [(name, natural, text) for text, (name, natural) in found.items()]
