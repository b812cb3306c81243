"""Mutants: cases of each kind stand in mutants.jsonl, a line each."""

import json
import os
from pathlib import Path

import pytest

from reward.mutants import KINDS, Mutant, make_mutants
from reward.sandbox import Database, Sandbox
from reward.schema import Schema, read_schema

DDL = """CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INT, c INT);
CREATE TABLE u (uid INTEGER PRIMARY KEY, tid INTEGER NOT NULL, d TEXT, code TEXT UNIQUE)"""
CASES = [json.loads(line) for line in (Path(__file__).parent / "mutants.jsonl").read_text().splitlines()]
EMPTY = Schema([], {})


@pytest.fixture(scope="module")
def schema():
    with Sandbox() as sandbox:
        yield read_schema(sandbox.describe(Database("ddl", "ddl", "schema", None, (DDL,))))


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}: {case['mutant']}" for case in CASES])
def test_case(case, schema):
    assert Mutant(case["kind"], case["mutant"]) in make_mutants(case["gold"], schema, 1000)


def test_every_kind_has_a_case():
    assert {case["kind"] for case in CASES} == set(KINDS)


def test_the_tree_is_mended_after_each_edit(schema):
    """Of one long query each mutant is what the rule alone makes: it differs from gold in one place."""
    gold = "SELECT DISTINCT a FROM t WHERE b > 5 AND c = 1 GROUP BY a ORDER BY a LIMIT 3"
    mutants = make_mutants(gold, schema, 1000)
    for mutant in mutants:
        same_start = len(os.path.commonprefix([gold, mutant.sql]))
        same_end = len(os.path.commonprefix([gold[same_start:][::-1], mutant.sql[same_start:][::-1]]))
        assert len(gold) - same_start - same_end <= len(" WHERE b > 5 AND c = 1"), mutant
    assert len({mutant.sql for mutant in mutants}) == len(mutants) > 20


def test_few_mutants_are_spread_over_the_kinds():
    gold = "SELECT DISTINCT a FROM t WHERE b > 5 AND c = 1 ORDER BY a LIMIT 3"
    few = make_mutants(gold, EMPTY, at_most=6)
    assert len(few) == 6 and len({mutant.kind for mutant in few}) == 6


def test_sql_that_sqlglot_cannot_read_has_none():
    assert make_mutants("SELECT ((", EMPTY) == []
