"""Audits gold before anything trains on it: it parses, its schema loads, it is one SELECT, runs, has rows and is
stable.

    python -m reward.audit --input rows.jsonl --output audit.jsonl [--workers N] [--seed S]
"""

from collections.abc import Iterable, Iterator

from reward.judge import Judge
from reward.pool import map_in_processes, with_progress
from reward.queries import parse, query_kinds


def audit(examples: Iterable[dict], workers: int = 1, seed: int = 0, progress: bool = True) -> Iterator[dict]:
    """One line for each example, in order: `{"status", "reason", "detail", "gold_sql", "kinds"}`.

    An example has `gold` (or `answer`; null: unanswerable) and `database` (a file) or `context` (CREATE TABLE text).
    `status` is ok, gold_bad or unanswerable; `reason` of gold_bad: parse, schema, not_select, sql_error, empty,
    unstable, timeout, memory, rows_limit. `gold_sql` is gold with its double-quoted literals in single quotes, null
    unless ok. With a database file, gold must have rows there; else on a generated database.
    """
    arguments = {"databases": "given", "seed": seed, "mutants": 0}
    if workers > 1:
        yield from with_progress(map_in_processes("audit", arguments, examples, workers), examples, "audit", progress)
        return
    with Judge(**arguments) as judge:
        yield from with_progress((audit_example(judge, example) for example in examples), examples, "audit", progress)


def audit_example(judge: Judge, example: dict) -> dict:
    """The audit line of one example."""
    gold = example["gold"] if "gold" in example else example.get("answer")
    if gold is None:
        return _line("unanswerable", None, None, None, [])
    context, database = example.get("context"), example.get("database")
    if context is None and database is None:
        return _line("gold_bad", "schema", "the example has neither context nor database", None, [])
    try:
        suite = judge.suite(gold, database, context)
    except OSError as error:
        return _line("gold_bad", "schema", f"database {database!r} cannot be read: {error.strerror}", None, [])
    if suite.status != "ok":
        return _line("gold_bad", suite.reason, suite.detail, None, [])
    if suite.empty:
        where = "on its database" if database else "on every generated database"
        return _line("gold_bad", "empty", f"gold has no rows {where}", None, [])
    if parse(suite.gold_sql) is None:
        return _line("gold_bad", "parse", "SQLite runs it, but sqlglot cannot parse it", None, [])
    return _line("ok", None, None, suite.gold_sql, query_kinds(suite.gold_sql))


def _line(status: str, reason: str | None, detail: str | None, gold_sql: str | None, kinds: list[str]) -> dict:
    return {"status": status, "reason": reason, "detail": detail, "gold_sql": gold_sql, "kinds": kinds}


if __name__ == "__main__":
    from reward.command import main_audit

    main_audit()
