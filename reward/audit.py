"""Audits gold before anything trains on it: it parses, its schema loads, it is one SELECT, runs, has rows, is stable,
and its databases tell it from nearly right queries.

    python -m reward.audit --input rows.jsonl --output audit.jsonl [--table bad.csv] [--workers N] [--seed S]
"""

import sys

if __name__ == "__main__":  # before the imports below, which take a third of a second: --help is to be instant
    from reward.command import main_audit

    sys.exit(main_audit())

from collections.abc import Iterable, Iterator

from reward.answering import Each, Lost
from reward.judge import Judge
from reward.progress import with_progress
from reward.queries import parse, query_kinds
from reward.suite import Suite

EMPTY_ON_ITS_OWN = "gold has no rows on its own database, only on generated ones"


def audit(
    examples: Iterable[dict], workers: int = 1, seed: int = 0, progress: bool = True, **judge: object
) -> Iterator[dict]:
    """One line for each example, in order; any iterable, read only a little ahead:
    `{"status", "reason", "detail", "gold_sql", "kinds", "kill_score", "mutants", "killed"}`.

    An example has `gold` (or `answer`; null: unanswerable) and `database` (a file) or `context` (CREATE TABLE text).
    `status` is ok, gold_bad or unanswerable; `reason` of gold_bad: parse, schema, not_select, sql_error, empty,
    unstable, timeout, memory, rows_limit, undiscriminated, worker. `gold_sql` is gold with its double-quoted literals
    in single quotes, null unless ok. Gold must have rows on one of its databases; has it none on its own file, only on
    generated ones, it is ok with a `detail` that says so.
    `judge`: further arguments of `Judge`; without mutants (`mutants=0`) it is several times faster and nothing is
    undiscriminated. Raises ValueError at a malformed example.
    """
    with Judge(workers=workers, seed=seed, **judge) as judging:
        answers = judging.answers(Each(audit_example), map(checked_example, examples))
        lines = (lost_line(line.detail) if isinstance(line, Lost) else line for _, line in answers)
        yield from with_progress(lines, examples, "audit", progress)


def audit_example(judge: Judge, example: dict) -> dict:
    """The audit line of one example."""
    gold = _gold(example)
    if gold is None:
        return _line("unanswerable")
    context, database = example.get("context"), example.get("database")
    if context is None and database is None:
        return _line("gold_bad", "schema", "the example has neither context nor database")
    suite = judge.suite(gold, database, context)
    score = {"mutants": suite.mutants, "killed": suite.killed}
    if suite.empty:  # said first: it is why few mutants are told apart
        where = "on its database" if [m.database.tier for m in suite.members] == ["given"] else "on any database made"
        return _line("gold_bad", "empty", f"gold has no rows {where}", **score)
    if suite.status != "ok":
        return _line("gold_bad", suite.reason, _detail(suite), **score)
    if parse(suite.gold_sql) is None:
        return _line("gold_bad", "parse", "SQLite runs it, but sqlglot cannot parse it", **score)
    given_empty = any(m.database.tier == "given" and m.denotation.row_count == 0 for m in suite.members)
    detail = EMPTY_ON_ITS_OWN if given_empty else None
    return _line("ok", None, detail, suite.gold_sql, query_kinds(suite.gold_sql), **score)


def _detail(suite: Suite) -> str:
    """What was found, with one mistake that goes unnoticed where that is what is wrong."""
    if suite.reason == "undiscriminated" and suite.survivors:
        return f"{suite.detail}; the same everywhere: {suite.survivors[0].sql}"[:500]
    return suite.detail


def checked_example(example: dict) -> dict:
    """The example itself. Raises ValueError, in three parts, where it is not as `audit` reads it."""
    if not isinstance(example, dict):
        raise ValueError(f"a row is a {type(example).__name__}; allowed is an object; write one a line")
    if not {"gold", "answer"} & example.keys():
        raise ValueError("the row has neither gold nor answer; one is needed, SQL text or null; add it")
    if not isinstance(gold := _gold(example), (str, type(None))):
        raise ValueError(f"gold is {gold!r:.60}; allowed is SQL text or null; correct it")
    for key in ("context", "database"):
        if not isinstance(value := example.get(key), (str, type(None))):
            raise ValueError(f"{key} is {value!r:.60}; allowed is text; correct it")
    return example


def lost_line(detail: str) -> dict:
    """The line of an example that the judge itself failed at."""
    return _line("gold_bad", "worker", detail)


def _gold(example: dict) -> str | None:
    return example["gold"] if "gold" in example else example.get("answer")


def _line(
    status: str,
    reason: str | None = None,
    detail: str | None = None,
    gold_sql: str | None = None,
    kinds: Iterable[str] = (),
    mutants: int = 0,
    killed: int = 0,
) -> dict:
    return {
        "status": status,
        "reason": reason,
        "detail": detail,
        "gold_sql": gold_sql,
        "kinds": list(kinds),
        "kill_score": round(killed / mutants, 4) if mutants else None,
        "mutants": mutants,
        "killed": killed,
    }
