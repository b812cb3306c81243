"""What passes of sqlglot's optimizer make of a query: those whose output is true on SQLite."""

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer import (
    eliminate_subqueries,
    merge_subqueries,
    normalize,
    pushdown_predicates,
    qualify,
    simplify,
    unnest_subqueries,
)

from reward.schema import Schema
from rewrites_of_conditions import render


def _optimized(tree: exp.Expression, schema: Schema, *passes) -> str | None:
    names = {table.name: {column.name: "TEXT" for column in table.columns.values()} for table in schema.tables.values()}
    before = render(tree)
    try:
        tree = qualify.qualify(
            tree, schema=names, dialect="sqlite", validate_qualify_columns=False, quote_identifiers=True
        )
        for step in passes:
            tree = step(tree)
        after = render(tree)
    except (SqlglotError, ValueError, KeyError, AttributeError):
        return None
    return after if after != before else None


def qualified_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    return _optimized(tree, schema)


def simplified_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    return _optimized(tree, schema, simplify.simplify)


def normalized_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    return _optimized(tree, schema, normalize.normalize)


def predicates_pushed_down_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    return _optimized(tree, schema, pushdown_predicates.pushdown_predicates)


def subqueries_unnested_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    return (
        _optimized(tree, schema, unnest_subqueries.unnest_subqueries) if tree.find(exp.Subquery, exp.Exists) else None
    )


def subqueries_merged_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    steps = eliminate_subqueries.eliminate_subqueries, merge_subqueries.merge_subqueries
    return _optimized(tree, schema, *steps) if tree.find(exp.Subquery, exp.CTE) else None


ALWAYS = (
    qualified_by_sqlglot,
    simplified_by_sqlglot,
    normalized_by_sqlglot,
    predicates_pushed_down_by_sqlglot,
    subqueries_unnested_by_sqlglot,
    subqueries_merged_by_sqlglot,
)
