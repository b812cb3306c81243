"""Rewrites that are true where keys are unique and foreign keys valid."""

from sqlglot import exp

from reward.schema import Schema
from rewrites_of_conditions import render
from select_parts import base_table, has_order, inner_joins, is_plain, is_plain_but_for_limit, items_in_from, only_table
from rewrites_of_results import counted


def key_as_extreme(tree: exp.Expression, schema: Schema) -> str | None:
    """ORDER BY key LIMIT 1 as key = (SELECT MAX(key) ..)."""
    table, limit = only_table(tree, schema), tree.args.get("limit")
    if not table or not has_order(tree) or limit is None or limit.expression.name != "1" or tree.args.get("offset"):
        return None
    keys = tree.args["order"].expressions
    if len(keys) != 1 or not isinstance(keys[0].this, exp.Column) or not table.is_key(keys[0].this.name.lower()):
        return None
    if not is_plain_but_for_limit(tree):
        return None
    inner = tree.copy()
    function = exp.Max if keys[0].args.get("desc") else exp.Min
    inner.set("expressions", [function(this=keys[0].this.copy())])
    for part in (inner, tree):
        part.set("order", None)
        part.set("limit", None)
    tree.where(exp.EQ(this=keys[0].this.copy(), expression=inner.subquery()), copy=False)
    return render(tree)


def count_key(tree: exp.Expression, schema: Schema) -> str | None:
    def edit(node: exp.Count) -> exp.Expression | None:
        table = only_table(node.parent_select, schema)
        keys = [name for name in table.columns if table.is_key(name)] if table else []
        return exp.Count(this=exp.column(table.columns[keys[0]].name, quoted=True)) if keys else None

    return counted(tree, edit)


def distinct_key(tree: exp.Expression, schema: Schema) -> str | None:
    table = only_table(tree, schema)
    if not table or not is_plain(tree) or has_order(tree):
        return None
    if not any(isinstance(item, exp.Column) and table.is_key(item.name.lower()) for item in tree.expressions):
        return None
    tree.set("distinct", exp.Distinct())
    return render(tree)


def child_left_join_parent(tree: exp.Expression, schema: Schema) -> str | None:
    """child JOIN parent as child LEFT JOIN parent over a declared foreign key."""
    items, joins = items_in_from(tree) if isinstance(tree, exp.Select) else [], None
    if len(items) == 2:
        joins = inner_joins(tree)
    on = joins[0].args.get("on") if joins else None
    tables = [base_table(item, schema) for item in items]
    if (
        not isinstance(on, exp.EQ)
        or None in tables
        or not all(isinstance(s, exp.Column) for s in (on.this, on.expression))
    ):
        return None
    columns = {side.table.lower(): side.name.lower() for side in (on.this, on.expression)}
    child, parent = (columns.get(item.alias_or_name.lower()) for item in items)
    if (child, tables[1].name.lower(), parent) not in tables[0].foreign_keys:
        return None
    joins[0].set("side", "LEFT")
    joins[0].set("kind", None)
    return render(tree)


NATURAL = (
    key_as_extreme,
    count_key,
    distinct_key,
    child_left_join_parent,
)
