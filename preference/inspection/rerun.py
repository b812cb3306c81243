"""Runs a pair's queries again, and what a person types, on every database of the question, inside the reward's sandbox."""

from __future__ import annotations

import os
import threading

from reward.compare import Denotation, compare, unmatched
from reward.gate import gate
from reward.judge import Judge
from reward.queries import quoted_value_as_string, unknown_quoted_name
from reward.sandbox import Database, DatabaseError, Outcome
from reward.schema import read_schema
from reward.suite import Member, Suite

SIDES = ("gold", "chosen", "rejected")
SHOWN_ROWS = 50
_KEPT_ROWS = 1000  # a side's rows that are compared; more are counted only
_SHOWN_CELL_CHARACTERS = 300
_MAX_QUOTED_NAMES = 20
_lock = threading.Lock()
_judges: dict[tuple, Judge] = {}  # at most one: its worker and the suites of the questions seen last stay open


def run_pair(pair: dict, edited: dict[str, str] | None = None) -> dict:
    """What gold, chosen and rejected answer on each database: `{"databases": [...], "message", "queries"}`.

    edited: other text for `gold`, `chosen` or `rejected` than the pair's own. Each database is {"name", "tier",
    "told_apart", "tables": {side: {"columns", "rows", "row_count", "differs", "missing", "status", "message",
    "difference"}}}. `rows` are at most SHOWN_ROWS, differing ones first kept; `differs[i]`: row i is not in gold's
    answer (for gold: not in that of chosen or rejected); `missing`: gold's rows that a side lacks; `difference`: what
    the judge calls it (columns, rows, duplicates, order), None where equal. Never raises for what a query does.
    """
    queries = {side: (edited or {}).get(side, _sql(pair, side)) for side in SIDES}
    with _lock:
        try:
            judge = _judge(pair)
            suite, message = _suite(judge, pair, queries)
            databases = [_on_database(judge, member, queries) for member in suite.members]
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
    """End the worker process."""
    with _lock:
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


def _sql(pair: dict, side: str) -> str | None:
    return pair.get("gold_sql" if side == "gold" else f"{side}_sql")


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


def _suite(judge: Judge, pair: dict, queries: dict[str, str | None]) -> tuple[Suite, str | None]:
    """The question's databases; ones made for the chosen query where gold is missing or cannot be judged by."""
    database, problem = _database(pair)
    if database is None:
        return Suite("gold_bad"), problem
    messages = [problem] if problem else []
    stored = pair.get("suite_hash")
    for side in SIDES:
        if not (isinstance(sql := queries[side], str) and sql.strip()):
            if side == "gold":
                messages.append("there is no gold query: rows are compared with the chosen query's")
            continue
        suite = judge.suite(sql, database.path, None if database.path else pair["context"])
        if suite.status == "ok":
            if side == "gold" and stored and suite.suite_hash != stored and sql == pair.get("gold_sql"):
                messages.append("the databases differ from those of the stored verdict (suite_hash): the data, the "
                                "schema or the judge's settings have changed since")
            return suite, "; ".join(messages) or None
        messages.append(f"{side} makes no databases to judge on: {suite.reason} {suite.detail}".strip())
    if database.path:  # the file itself is there even when no query of the three runs on it
        empty = Member(database, Denotation(0, [], 0, 0, False))
        return Suite("ok", members=(empty,)), "; ".join(messages)
    return Suite("gold_bad"), "; ".join(messages)


def _on_database(judge: Judge, member: Member, queries: dict[str, str | None]) -> dict:
    """One database's tables, with the rows that differ marked."""
    outcomes = {side: _run(judge, member, queries[side]) for side in SIDES}
    reference = "gold" if outcomes["gold"].status == "ok" else "chosen"
    denotation = _denotation(member, outcomes[reference], queries[reference])
    found = {side: _difference(denotation, outcome) for side, outcome in outcomes.items()}
    tables = {}
    for side, outcome in outcomes.items():
        marks, missing = _marks(side, reference, outcomes, found)
        tables[side] = _table(outcome, marks, missing, found[side])
    sides = [outcomes["chosen"], outcomes["rejected"]]
    if outcomes["gold"].status == "ok" and (found["chosen"] is None) != (found["rejected"] is None):
        told_apart = True
    elif found["chosen"] is None and found["rejected"] is None:
        told_apart = False
    else:
        told_apart = sides[0][:2] != sides[1][:2] or any(unmatched(sides[0].rows, sides[1].rows))
    return {"name": member.database.name, "tier": member.database.tier, "told_apart": told_apart, "tables": tables}


def _run(judge: Judge, member: Member, sql: str | None) -> Outcome:
    """What a query does on a database; texts that the gate stops never reach the worker."""
    if not isinstance(sql, str) or not sql.strip():
        return Outcome("none", message="there is no query")
    gated = gate(sql)
    if gated.sql is None:
        return Outcome(gated.reason or "refused", message=gated.message or "")
    sql = gated.sql
    try:
        [outcome] = judge.sandbox.run(member.database, [sql], _KEPT_ROWS)
        for _ in range(_MAX_QUOTED_NAMES):
            name = unknown_quoted_name(outcome.message) if outcome.status == "sql_error" else None
            changed = quoted_value_as_string(sql, name) if name is not None else sql
            if changed == sql:
                break
            sql = changed
            [outcome] = judge.sandbox.run(member.database, [sql], _KEPT_ROWS)
    except DatabaseError as error:
        return Outcome("sql_error", message=f"the database does not open: {error}")
    return outcome


def _denotation(member: Member, outcome: Outcome, sql: str | None) -> Denotation | None:
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
