"""True rewrites of what a query reads from: names, joins and subqueries.

A rule is made as in rewrites_of_conditions.py; ALWAYS holds on every database, NATURAL where there are no NULLs.
"""

from sqlglot import exp

from reward.schema import Schema
from rewrites_of_conditions import render, wrapped
from select_parts import (
    base_table,
    has_order,
    inner_joins,
    is_plain,
    is_plain_but_for_limit,
    items_in_from,
    only_table,
    output_aliases,
    own_columns,
    selects,
)


def renamed_tables(tree: exp.Expression, schema: Schema) -> str | None:
    """Every table gets a fresh alias; only where no two tables of the query answer to the same name."""
    tables = list(tree.find_all(exp.Table))
    names = [table.alias_or_name.lower() for table in tables]
    if len(set(names)) != len(names) or not all(base_table(table, schema) for table in tables) or not names:
        return None
    fresh = {name: f"zq{index}" for index, name in enumerate(names)}
    for column in tree.find_all(exp.Column):
        if column.table.lower() in fresh:
            column.set("table", exp.to_identifier(fresh[column.table.lower()]))
    for table in tables:
        table.set("alias", exp.TableAlias(this=exp.to_identifier(fresh[table.alias_or_name.lower()])))
    return render(tree)


def qualified_columns(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in selects(tree):
        table = only_table(select, schema)
        for column in own_columns(select) if table else ():
            name = column.name.lower()
            if not column.table and name in table.columns and name not in output_aliases(select):
                if isinstance(select.parent, exp.SetOperation) and column.find_ancestor(exp.Order):
                    continue
                column.set("table", exp.to_identifier(items_in_from(select)[0].alias_or_name))
                changed = True
    return render(tree) if changed else None


def expanded_star(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in selects(tree):
        table = only_table(select, schema)
        if table and len(select.expressions) == 1 and isinstance(select.expressions[0], exp.Star):
            select.set("expressions", [exp.column(column.name, quoted=True) for column in table.columns.values()])
            changed = True
    return render(tree) if changed else None


def named_outputs(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Select) or any(
        item.find(exp.Star) and not item.find(exp.Count) for item in tree.expressions
    ):
        return None
    if output_aliases(tree):
        return None
    tree.set("expressions", [exp.alias_(item.copy(), f"zn{index}") for index, item in enumerate(tree.expressions)])
    return render(tree)


def comma_joins(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in selects(tree):
        joins = inner_joins(select)
        if not joins or not any(join.args.get("on") for join in joins):
            continue
        for join in joins:
            condition = join.args.get("on")
            join.set("on", None)
            join.set("kind", None)
            if condition is not None:
                select.where(wrapped(condition), copy=False)
        changed = True
    return render(tree) if changed else None


def conditions_moved_into_on(tree: exp.Expression, schema: Schema) -> str | None:
    """WHERE of an inner join as a part of the last ON."""
    changed = False
    for select in selects(tree):
        joins, where = inner_joins(select), select.args.get("where")
        if not joins or where is None:
            continue
        on = joins[-1].args.get("on")
        joins[-1].set("on", exp.And(this=wrapped(on), expression=wrapped(where.this)) if on else where.this.copy())
        joins[-1].set("kind", "INNER")
        select.set("where", None)
        changed = True
    return render(tree) if changed else None


def swapped_joins(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in selects(tree):
        joins = inner_joins(select)
        starred = any(isinstance(item, exp.Star) for item in select.expressions)
        if not joins or len(joins) != 1 or starred:
            continue
        first, second = select.args["from_"].this.copy(), joins[0].this.copy()
        select.args["from_"].set("this", second)
        joins[0].set("this", first)
        changed = True
    return render(tree) if changed else None


def joins_with_using(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in selects(tree):
        joins = inner_joins(select)
        on = joins[0].args.get("on") if joins and len(joins) == 1 else None
        if not isinstance(on, exp.EQ) or any(
            item.find(exp.Star) and not item.find(exp.Count) for item in select.expressions
        ):
            continue
        sides = on.this, on.expression
        if not all(isinstance(side, exp.Column) and side.table for side in sides):
            continue
        if sides[0].name.lower() != sides[1].name.lower() or sides[0].table.lower() == sides[1].table.lower():
            continue
        joins[0].set("using", [exp.to_identifier(sides[0].name)])
        joins[0].set("on", None)
        changed = True
    return render(tree) if changed else None


def filtered_table_as_subquery(tree: exp.Expression, schema: Schema) -> str | None:
    """FROM t WHERE p as FROM (SELECT * FROM t WHERE p) AS t."""
    changed = False
    for select in selects(tree):
        where = select.args.get("where")
        if not only_table(select, schema) or where is None or where.find(exp.Select):
            continue
        if any(column.name.lower() == "rowid" for column in select.find_all(exp.Column)):
            continue
        item = items_in_from(select)[0]
        if any(
            column.table and column.table.lower() != item.alias_or_name.lower() for column in where.find_all(exp.Column)
        ):
            continue
        inner = exp.select("*").from_(item.copy()).where(where.this.copy())
        select.args["from_"].set("this", inner.subquery(item.alias_or_name))
        select.set("where", None)
        changed = True
    return render(tree) if changed else None


def in_subquery_as_exists(tree: exp.Expression, schema: Schema) -> str | None:
    """a IN (SELECT b FROM u WHERE p) as a correlated EXISTS, where only true counts: in a WHERE joined by AND."""
    return _as_exists(tree, schema, negated=False)


def not_in_as_not_exists(tree: exp.Expression, schema: Schema) -> str | None:
    return _as_exists(tree, schema, negated=True)


def _as_exists(tree: exp.Expression, schema: Schema, negated: bool) -> str | None:
    for node in tree.find_all(exp.In):
        outer, query = node.parent_select, node.args.get("query")
        inner = query.this if isinstance(query, exp.Subquery) else None
        place = node.parent if negated else node
        if negated != isinstance(node.parent, exp.Not) or not isinstance(inner, exp.Select) or not is_plain(inner):
            continue
        above = place.parent
        while isinstance(above, (exp.And, exp.Paren)):
            above = above.parent
        left, table = node.this, only_table(outer, schema)
        other = only_table(inner, schema)
        if not isinstance(above, exp.Where) or not isinstance(left, exp.Column) or not table or not other:
            continue
        projected = inner.expressions[0]
        if not isinstance(projected, exp.Column) or inner.find(exp.Subquery, exp.Exists, exp.In):
            continue
        columns = list(own_columns(inner))
        here = items_in_from(inner)[0].alias_or_name.lower()
        if any(
            column.name.lower() not in other.columns or column.table.lower() not in ("", here) for column in columns
        ):
            continue
        for column in columns:
            column.set("table", exp.to_identifier("zi"))
        items_in_from(inner)[0].set("alias", exp.TableAlias(this=exp.to_identifier("zi")))
        key = exp.column(left.name, table=items_in_from(outer)[0].alias_or_name, quoted=True)
        inner.where(exp.EQ(this=inner.expressions[0].copy(), expression=key), copy=False)
        inner.set("expressions", [exp.Literal.number(1)])
        node.replace(exp.Exists(this=inner.copy()))
        return render(tree)
    return None


def whole_query_as_subquery(tree: exp.Expression, schema: Schema) -> str | None:
    return None if has_order(tree) else f"SELECT * FROM ({render(tree)}) AS zd"


def whole_query_as_cte(tree: exp.Expression, schema: Schema) -> str | None:
    return None if has_order(tree) else f"WITH zc AS ({render(tree)}) SELECT * FROM zc"


def limited_by_rowid(tree: exp.Expression, schema: Schema) -> str | None:
    """ORDER BY .. LIMIT 1 of one table as the row whose rowid comes first: one of the rows that gold allows."""
    limit = tree.args.get("limit")
    if not only_table(tree, schema) or not has_order(tree) or limit is None or limit.expression.name != "1":
        return None
    if not is_plain_but_for_limit(tree) or tree.args.get("offset"):
        return None
    if any(
        not isinstance(ordered.this, exp.Column) or ordered.this.name.lower() in output_aliases(tree)
        for ordered in tree.args["order"].expressions
    ):
        return None
    inner = tree.copy()
    inner.set("expressions", [exp.column("rowid")])
    tree.set("where", exp.Where(this=exp.EQ(this=exp.column("rowid"), expression=inner.subquery())))
    tree.set("order", None)
    tree.set("limit", None)
    return render(tree)


ALWAYS = (
    renamed_tables,
    qualified_columns,
    expanded_star,
    named_outputs,
    comma_joins,
    conditions_moved_into_on,
    swapped_joins,
    joins_with_using,
    filtered_table_as_subquery,
    in_subquery_as_exists,
    whole_query_as_subquery,
    whole_query_as_cte,
    limited_by_rowid,
)
NATURAL = (not_in_as_not_exists,)
