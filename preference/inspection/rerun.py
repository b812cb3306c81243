"""Runs a pair's queries again, and what a person types, on every database of the question, inside the reward's sandbox."""

from __future__ import annotations

import os
import threading

from reward.compare import Denotation, compare, unmatched
from reward.gate import gate
from reward.judge import Judge
from reward.sandbox import Database, DatabaseError, Outcome, Sandbox
from reward.schema import read_schema
from reward.suite import Member, Suite
from reward.verdicts import run_as_judged

SIDES = ("gold", "chosen", "rejected")
SHOWN_ROWS = 50
_KEPT_ROWS = 1000  # a side's rows that are compared; more are counted only
_SHOWN_CELL_CHARACTERS = 300
# A person waits for what was typed, and it may be an attack: less is allowed than to a model's query.
_TYPED_LIMITS = {"vm_step_budget": 4_000_000, "cpu_limit_s": 3.0, "wall_limit_s": 20.0, "row_limit": 20_000}
_ENDLESS = ("timeout", "memory", "lost", "rows_limit")
_lock = threading.Lock()
_judges: dict[tuple, Judge] = {}  # at most one: its worker and the suites of the questions seen last stay open
_typed = Sandbox(**_TYPED_LIMITS)  # starts no process before its first query


def run_pair(pair: dict, edited: dict[str, str] | None = None) -> dict:
    """What gold, chosen and rejected answer on each database: `{"databases": [...], "message", "queries"}`.

    edited: other text for `gold`, `chosen` or `rejected` than the pair's own. Each database is {"name", "tier",
    "told_apart", "tables": {side: {"columns", "rows", "row_count", "differs", "missing", "status", "message",
    "difference"}}}. `rows` are at most SHOWN_ROWS, differing ones first kept; `differs[i]`: row i is not in gold's
    answer (for gold: not in that of chosen or rejected); `missing`: gold's rows that a side lacks; `difference`: what
    the judge calls it (columns, rows, duplicates, order), None where equal. Never raises for what a query does.
    """
    own = {side: pair.get("gold_sql" if side == "gold" else f"{side}_sql") for side in SIDES}
    queries = own | {side: text for side, text in (edited or {}).items() if side in SIDES}
    with _lock:
        try:
            judge = _judge(pair)
            suite, message = _suite(judge, pair, own, queries)
            sandboxes = {side: judge.sandbox if queries[side] == own[side] else _typed for side in SIDES}
            databases, stopped = [], {}
            for member in suite.members:
                outcomes = {side: stopped.get(side) or _run(sandboxes[side], member, queries[side]) for side in SIDES}
                stopped |= {side: Outcome("not_run", message=f"not run here: {outcome.status} on {member.database.name}")
                            for side, outcome in outcomes.items() if outcome.status in _ENDLESS}
                databases.append(_compared(member, outcomes))
        except (OSError, RuntimeError, ValueError) as error:  # DatabaseError is a ValueError
            return {"databases": [], "message": f"the queries cannot be run: {error}", "queries": queries}
    return {"databases": databases, "message": message, "queries": queries}


def schema_of(pair: dict) -> dict:
    """The tables of a pair's database: {"tables": [{"name", "columns": [{"name", "type", "key"}], "links": [(column,
    table, column)]}], "message"}; `message` says why there are none.
    """
    database, problem = _database(pair)
    if database is None:
        return {"tables": [], "message": problem}
    with _lock:
        try:
            schema = read_schema(_judge(pair).sandbox.describe(database))
        except (OSError, RuntimeError, ValueError) as error:
            return {"tables": [], "message": f"the schema cannot be read: {error}"}
    tables = [{
        "name": table.name,
        "columns": [{"name": column.name, "type": column.declared, "key": any(name in key for key in table.keys)}
                    for name, column in table.columns.items()],
        "links": [(table.columns[child].name, schema.tables[parent].name, schema.tables[parent].columns[target].name)
                  for child, parent, target in table.foreign_keys],
    } for table in schema.tables.values()]
    return {"tables": tables, "message": problem}


def close() -> None:
    """End the worker processes."""
    with _lock:
        _typed.close()
        while _judges:
            _judges.popitem()[1].close()


def _judge(pair: dict) -> Judge:
    """The judge with the settings of the pair's run, so that it makes the same databases."""
    seed = pair.get("seed")
    databases = pair.get("judge_databases") or "both"
    key = (seed if isinstance(seed, int) else 0, databases)
    if key not in _judges:
        while _judges:
            _judges.popitem()[1].close()
        _judges[key] = Judge(seed=key[0], databases=databases)
    return _judges[key]


def _database(pair: dict) -> tuple[Database | None, str | None]:
    """The database that a pair names or its schema makes, and what is wrong with it."""
    path, context = pair.get("database"), pair.get("context")
    problem = None
    if path:
        if os.path.isfile(path):
            path = os.path.realpath(path)
            return Database(f"{path}-{os.stat(path).st_mtime_ns}", "given", "given", path), None
        problem = f"the database {path!r:.300} is gone"
    if isinstance(context, str) and context.strip():
        if problem:
            problem += "; shown is the schema, filled with generated rows"
        return Database(f"schema-{hash(context)}", "schema", "schema", None, (context,)), problem
    return None, f"{problem or 'the pair names no database'} and it has no schema (column `context`)"


def _suite(judge: Judge, pair: dict, own: dict[str, str | None], queries: dict[str, str | None]) -> tuple[Suite, str | None]:
    """The question's databases; ones made for the chosen query where gold is missing or cannot be judged by."""
    database, problem = _database(pair)
    if database is None:
        return Suite("gold_bad"), problem
    messages = [problem] if problem else []
    # Typed gold makes databases of its own only after the pair's gold, under which the verdict was reached.
    for side, sql in [("gold", own["gold"]), *queries.items()]:
        if not (isinstance(sql, str) and sql.strip()):
            continue
        suite = judge.suite(sql, database.path, None if database.path else pair["context"])
        if suite.status == "ok":
            if side != "gold":
                messages.append(f"the databases are made for the {side} query")
            elif sql == own["gold"] and pair.get("suite_hash") not in (None, suite.suite_hash):
                messages.append("the databases differ from those of the stored verdict (suite_hash): the data, the schema "
                                "or the judge have changed since")
            return suite, "; ".join(messages) or None
        messages.append(f"{side} makes no databases to judge on: {suite.reason} {suite.detail}".strip())
    if not own["gold"]:
        messages.insert(0, "there is no gold query")
    if database.path:  # the file itself is there even when no query of the three runs on it
        empty = Member(database, Denotation(0, [], 0, 0, False))
        return Suite("ok", members=(empty,)), "; ".join(messages)
    return Suite("gold_bad"), "; ".join(messages)


def _compared(member: Member, outcomes: dict[str, Outcome]) -> dict:
    """One database's tables, with the rows that differ marked."""
    reference = "gold" if outcomes["gold"].status == "ok" else "chosen"
    denotation = _denotation(member, outcomes[reference])
    found = {side: _difference(denotation, outcome) for side, outcome in outcomes.items()}
    tables = {}
    for side, outcome in outcomes.items():
        marks, missing = _marks(side, reference, outcomes, found)
        tables[side] = _table(outcome, marks, missing, found[side])
    chosen, rejected = outcomes["chosen"], outcomes["rejected"]
    if found["chosen"] is None or found["rejected"] is None:
        told_apart = found["chosen"] != found["rejected"]
    else:
        told_apart = chosen.status != rejected.status or len(chosen.columns) != len(rejected.columns) or any(
            unmatched(chosen.rows, rejected.rows))
    return {"name": member.database.name, "tier": member.database.tier, "told_apart": told_apart, "tables": tables}


def _run(sandbox: Sandbox, member: Member, sql: str | None) -> Outcome:
    """What a query does on a database; texts that the gate stops never reach the worker."""
    if not isinstance(sql, str) or not sql.strip():
        return Outcome("none", message="there is no query")
    gated = gate(sql)
    if gated.sql is None:
        return Outcome(gated.reason or "refused", message=gated.message or "")
    try:
        return run_as_judged(sandbox, member.database, gated.sql, _KEPT_ROWS)[1]
    except DatabaseError as error:
        return Outcome("sql_error", message=f"the database does not open: {error}")


def _denotation(member: Member, outcome: Outcome) -> Denotation | None:
    """Gold's answer with its allowed orders where it is the suite's own, else the rows as a bag."""
    if outcome.status != "ok" or outcome.row_count > len(outcome.rows):
        return None
    known = member.denotation
    if known.column_count == len(outcome.columns) and compare(known, known.column_count, outcome.rows) is None:
        return known
    return Denotation(len(outcome.columns), [outcome.rows], 0, len(outcome.rows), False)


def _difference(denotation: Denotation | None, outcome: Outcome) -> str | None:
    """What the judge would call the difference to the reference; `unknown` where there is nothing to compare with."""
    if outcome.status != "ok":
        return outcome.status
    if denotation is None:
        return "unknown"
    if outcome.row_count > len(outcome.rows):
        return "rows"
    return compare(denotation, len(outcome.columns), outcome.rows)


def _marks(side: str, reference: str, outcomes: dict[str, Outcome], found: dict) -> tuple[list[bool], int]:
    """(which rows of a side differ, how many of the reference's rows it lacks)."""
    outcome = outcomes[side]
    if outcome.status != "ok":
        return [], 0
    others = [name for name in ("chosen", "rejected") if name != side] if side == reference else [reference]
    marked = [False] * len(outcome.rows)
    missing = 0
    for other in others:
        if outcomes[other].status != "ok" or found[other if side == reference else side] is None:
            continue
        theirs = outcomes[other].rows
        lacking, extra = unmatched(theirs, outcome.rows)
        missing = max(missing, 0 if side == reference else len(lacking))
        left = list(extra)
        for index in range(len(outcome.rows) - 1, -1, -1):  # of equal rows the last ones are too many
            if outcome.rows[index] in left:
                left.remove(outcome.rows[index])
                marked[index] = True
        if not lacking and not extra:  # the same rows in another order
            marked = [mark or index >= len(theirs) or row != theirs[index]
                      for index, (row, mark) in enumerate(zip(outcome.rows, marked, strict=True))]
    return marked, missing


def _table(outcome: Outcome, marks: list[bool], missing: int, difference: str | None) -> dict:
    """An outcome as it is shown: few rows, short cells; a differing row is never left out for an equal one."""
    order = sorted(range(len(outcome.rows)), key=lambda index: (not marks[index], index))[:SHOWN_ROWS]
    order.sort()
    return {
        "columns": list(outcome.columns),
        "rows": [[_cell(cell) for cell in outcome.rows[index]] for index in order],
        "row_count": outcome.row_count, "differs": [marks[index] for index in order], "missing": missing,
        "status": outcome.status, "message": outcome.message, "difference": difference,
    }


def _cell(cell: object) -> object:
    """A value of a result, cut to what a table can hold, as JSON can carry it."""
    if isinstance(cell, bytes):
        cell = f"x'{cell[:_SHOWN_CELL_CHARACTERS].hex()}'"
    if isinstance(cell, float):
        return cell if cell - cell == 0 else str(cell)
    if isinstance(cell, str) and len(cell) > _SHOWN_CELL_CHARACTERS:
        return f"{cell[:_SHOWN_CELL_CHARACTERS]} … ({len(cell) - _SHOWN_CELL_CHARACTERS:,} more characters)"
    return cell
