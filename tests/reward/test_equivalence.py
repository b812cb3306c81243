"""The prover: cases of each rule and of its limits, and random databases that must never refute a proof."""

import json
import random
from pathlib import Path

import pytest

from reward.compare import compare
from reward.denote import denote
from reward.equivalence import provably_equal
from reward.mutants import make_mutants
from reward.sandbox import Database, Outcome, Sandbox
from reward.schema import read_schema
from reward.ties import read_ordering

DDL = """CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INT, c INT);
CREATE TABLE u (uid INTEGER PRIMARY KEY, tid INTEGER NOT NULL, d TEXT, code TEXT UNIQUE)"""
CASES = [json.loads(line) for line in (Path(__file__).parent / "equivalence.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def schema(sandbox):
    return read_schema(sandbox.describe(Database("ddl", "ddl", "schema", None, (DDL,))))


@pytest.fixture(scope="module")
def databases():
    """Random rows that keep DDL and nothing else: many NULLs, repeated values, references to nothing."""
    made = []
    for seed in range(12):
        rng = random.Random(seed)
        values, texts = [None, 0, 1, 2, 3, 5, 6], [None, "x", "X", "y", "rome"]
        size = rng.choice((0, 1, 2, 5, 9))
        t = [(i, rng.choice(texts), rng.choice(values), rng.choice(values)) for i in range(1, size + 1)]
        u = [(i, rng.randint(0, 6), rng.choice(texts), rng.choice((None, f"c{i}"))) for i in range(1, size + 3)]
        made.append(Database(f"random-{seed}", f"random-{seed}", "near", None, (DDL,), (("t", 4, t), ("u", 4, u))))
    return made


@pytest.mark.parametrize("case", CASES, ids=[f"{case['first']} | {case['second']}" for case in CASES])
def test_case(case, schema):
    assert provably_equal(case["first"], [case["second"]], schema) == [case["equal"]]
    assert provably_equal(case["second"], [case["first"]], schema) == [case["equal"]]


def differs(sandbox, database, first, second):
    """Whether two queries differ on a database; None where one of them does not run."""
    gold, [other] = denote(sandbox, database, first, read_ordering(first), [second], 1000)
    if isinstance(gold, Outcome) or other.status != "ok":
        return None
    return compare(gold, len(other.columns), other.rows) is not None


def test_order_that_gold_leaves_open_does_not_count(schema):
    gold = "SELECT a FROM t WHERE b = 3 ORDER BY b"
    assert provably_equal(gold, ["SELECT a FROM t WHERE b = 3 ORDER BY c"], schema) == [True]
    assert provably_equal("SELECT a FROM t ORDER BY b", ["SELECT a FROM t ORDER BY c"], schema) == [False]


def test_random_databases_refute_no_case(sandbox, databases):
    for case in CASES:
        told_apart = [differs(sandbox, database, case["first"], case["second"]) for database in databases]
        if case["equal"]:
            assert not any(told_apart), case
    found = [any(differs(sandbox, d, c["first"], c["second"]) for d in databases) for c in CASES if not c["equal"]]
    assert sum(found) > len(found) / 2, "the databases tell too little apart to refute anything"


def test_random_databases_refute_no_proof_of_a_mutant(sandbox, databases, schema):
    proofs = 0
    for gold in dict.fromkeys(case[side] for case in CASES for side in ("first", "second")):
        mutants = make_mutants(gold, schema, 1000)
        for mutant, proven in zip(mutants, provably_equal(gold, [mutant.sql for mutant in mutants], schema)):
            if proven:
                proofs += 1
                for database in databases:
                    assert not differs(sandbox, database, gold, mutant.sql), (gold, mutant)
    assert proofs > 100


def test_collations_equate_nothing(sandbox):
    ddl = "CREATE TABLE t (a TEXT COLLATE NOCASE, b TEXT)"
    schema = read_schema(sandbox.describe(Database("c", "c", "schema", None, (ddl,))))
    for first, second in (
        ("SELECT a FROM t WHERE a = b", "SELECT b FROM t WHERE a = b"),
        ("SELECT b FROM t WHERE a = 'x' ORDER BY a", "SELECT b FROM t WHERE a = 'x'"),
    ):
        assert provably_equal(first, [second], schema) == [False]


def test_what_sqlglot_cannot_read_proves_nothing(schema):
    assert provably_equal("SELECT ((", ["SELECT (("], schema) == [False]
    assert provably_equal("SELECT a FROM t", ["SELECT (("], schema) == [False]
