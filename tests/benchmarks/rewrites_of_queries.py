"""True rewrites of whole queries: joins, subqueries, grouping, sorting, set operations, and sqlglot's optimizer.

A rule takes (tree of gold, schema) and returns SQL text, or None where it does not apply. ALWAYS holds on every
database (as far as the rows are determined: another cut through a tie is as good); NATURAL needs no NULLs, unique
keys or valid foreign keys.
"""

from collections.abc import Iterator

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

from reward.queries import parse
from reward.schema import Schema, Table
from rewrites_of_conditions import render, wrapped


def _selects(tree: exp.Expression) -> list[exp.Select]:
    return list(tree.find_all(exp.Select))


def _items(select: exp.Select) -> list[exp.Expression]:
    """What stands in FROM, in order."""
    source = select.args.get("from_")
    return ([source.this] if source else []) + [join.this for join in select.args.get("joins") or []]


def _inner_joins(select: exp.Select) -> list[exp.Join] | None:
    """The joins of a SELECT where all are INNER with ON or a comma; None where one is not."""
    joins = select.args.get("joins") or []
    for join in joins:
        if join.args.get("side") or join.args.get("using") or join.args.get("method"):
            return None
        if (join.args.get("kind") or "").upper() not in ("", "INNER"):
            return None
    return joins


def _is_plain(select: exp.Select) -> bool:
    """No grouping, no aggregate, no window, no DISTINCT, no LIMIT: one row out for each row in."""
    clauses = ("group", "having", "distinct", "limit", "offset", "windows")
    return not any(select.args.get(clause) for clause in clauses) and not any(
        item.find(exp.AggFunc, exp.Window) for item in select.expressions
    )


def _base_table(item: exp.Expression, schema: Schema) -> Table | None:
    shadowed = {cte.alias.lower() for cte in item.root().find_all(exp.CTE)}
    if not isinstance(item, exp.Table) or item.name.lower() in shadowed or item.args.get("db"):
        return None
    return schema.tables.get(item.name.lower())


def _only_table(select: exp.Expression, schema: Schema) -> Table | None:
    """The one stored table that a SELECT reads from, or None."""
    items = _items(select) if isinstance(select, exp.Select) else []
    return _base_table(items[0], schema) if len(items) == 1 else None


def _has_order(tree: exp.Expression) -> bool:
    return tree.args.get("order") is not None


def _is_cut(tree: exp.Expression) -> bool:
    return tree.args.get("limit") is not None or tree.args.get("offset") is not None


def _aliases(select: exp.Select) -> set[str]:
    return {item.alias.lower() for item in select.expressions if isinstance(item, exp.Alias)}


def _own_columns(select: exp.Select) -> Iterator[exp.Column]:
    """The columns that stand in this SELECT itself, not in a subquery of it."""
    for column in select.find_all(exp.Column):
        if column.parent_select is select:
            yield column


def _literally(sql: str) -> exp.Expression:
    return parse("SELECT " + sql).expressions[0]


# Names and tables


def renamed_tables(tree: exp.Expression, schema: Schema) -> str | None:
    """Every table gets a fresh alias; only where no two tables of the query answer to the same name."""
    tables = list(tree.find_all(exp.Table))
    names = [table.alias_or_name.lower() for table in tables]
    if len(set(names)) != len(names) or not all(_base_table(table, schema) for table in tables) or not names:
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
    for select in _selects(tree):
        table = _only_table(select, schema)
        for column in _own_columns(select) if table else ():
            name = column.name.lower()
            if not column.table and name in table.columns and name not in _aliases(select):
                if isinstance(select.parent, exp.SetOperation) and column.find_ancestor(exp.Order):
                    continue
                column.set("table", exp.to_identifier(_items(select)[0].alias_or_name))
                changed = True
    return render(tree) if changed else None


def expanded_star(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in _selects(tree):
        table = _only_table(select, schema)
        if table and len(select.expressions) == 1 and isinstance(select.expressions[0], exp.Star):
            select.set("expressions", [exp.column(column.name, quoted=True) for column in table.columns.values()])
            changed = True
    return render(tree) if changed else None


def named_outputs(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Select) or any(item.find(exp.Star) and not item.find(exp.Count) for item in tree.expressions):
        return None
    if _aliases(tree):
        return None
    tree.set("expressions", [exp.alias_(item.copy(), f"zn{index}") for index, item in enumerate(tree.expressions)])
    return render(tree)


# Joins


def comma_joins(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for select in _selects(tree):
        joins = _inner_joins(select)
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
    for select in _selects(tree):
        joins, where = _inner_joins(select), select.args.get("where")
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
    for select in _selects(tree):
        joins = _inner_joins(select)
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
    for select in _selects(tree):
        joins = _inner_joins(select)
        on = joins[0].args.get("on") if joins and len(joins) == 1 else None
        if not isinstance(on, exp.EQ) or any(item.find(exp.Star) and not item.find(exp.Count) for item in select.expressions):
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
    for select in _selects(tree):
        where = select.args.get("where")
        if not _only_table(select, schema) or where is None or where.find(exp.Select):
            continue
        if any(column.name.lower() == "rowid" for column in select.find_all(exp.Column)):
            continue
        item = _items(select)[0]
        if any(column.table and column.table.lower() != item.alias_or_name.lower() for column in where.find_all(exp.Column)):
            continue
        inner = exp.select("*").from_(item.copy()).where(where.this.copy())
        select.args["from_"].set("this", inner.subquery(item.alias_or_name))
        select.set("where", None)
        changed = True
    return render(tree) if changed else None


# Subqueries


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
        if negated != isinstance(node.parent, exp.Not) or not isinstance(inner, exp.Select) or not _is_plain(inner):
            continue
        above = place.parent
        while isinstance(above, (exp.And, exp.Paren)):
            above = above.parent
        left, table = node.this, _only_table(outer, schema)
        other = _only_table(inner, schema)
        if not isinstance(above, exp.Where) or not isinstance(left, exp.Column) or not table or not other:
            continue
        projected = inner.expressions[0]
        if not isinstance(projected, exp.Column) or inner.find(exp.Subquery, exp.Exists, exp.In):
            continue
        columns = list(_own_columns(inner))
        here = _items(inner)[0].alias_or_name.lower()
        if any(column.name.lower() not in other.columns or column.table.lower() not in ("", here) for column in columns):
            continue
        for column in columns:
            column.set("table", exp.to_identifier("zi"))
        _items(inner)[0].set("alias", exp.TableAlias(this=exp.to_identifier("zi")))
        key = exp.column(left.name, table=_items(outer)[0].alias_or_name, quoted=True)
        inner.where(exp.EQ(this=inner.expressions[0].copy(), expression=key), copy=False)
        inner.set("expressions", [exp.Literal.number(1)])
        node.replace(exp.Exists(this=inner.copy()))
        return render(tree)
    return None


def whole_query_as_subquery(tree: exp.Expression, schema: Schema) -> str | None:
    return None if _has_order(tree) else f"SELECT * FROM ({render(tree)}) AS zd"


def whole_query_as_cte(tree: exp.Expression, schema: Schema) -> str | None:
    return None if _has_order(tree) else f"WITH zc AS ({render(tree)}) SELECT * FROM zc"


def limited_by_rowid(tree: exp.Expression, schema: Schema) -> str | None:
    """ORDER BY .. LIMIT 1 of one table as the row whose rowid comes first: one of the rows that gold allows."""
    limit = tree.args.get("limit")
    if not _only_table(tree, schema) or not _has_order(tree) or limit is None or limit.expression.name != "1":
        return None
    if not _is_plain_but_for_limit(tree) or tree.args.get("offset"):
        return None
    if any(not isinstance(ordered.this, exp.Column) or ordered.this.name.lower() in _aliases(tree) for ordered in tree.args["order"].expressions):
        return None
    inner = tree.copy()
    inner.set("expressions", [exp.column("rowid")])
    tree.set("where", exp.Where(this=exp.EQ(this=exp.column("rowid"), expression=inner.subquery())))
    tree.set("order", None)
    tree.set("limit", None)
    return render(tree)


def _is_plain_but_for_limit(select: exp.Select) -> bool:
    copy = select.copy()
    copy.set("limit", None)
    return _is_plain(copy)


# Aggregates and grouping


def count_one(tree: exp.Expression, schema: Schema) -> str | None:
    return _counted(tree, lambda node: exp.Count(this=exp.Literal.number(1)))


def count_as_sum(tree: exp.Expression, schema: Schema) -> str | None:
    """COUNT(*) as SUM(1) where there are groups: none of them is empty."""
    return _counted(tree, lambda node: exp.Sum(this=exp.Literal.number(1)) if node.parent_select.args.get("group") else None)


def _counted(tree: exp.Expression, edit) -> str | None:
    changed = False
    for node in list(tree.find_all(exp.Count)):
        if isinstance(node.this, exp.Star) and not isinstance(node.parent, exp.Window) and (new := edit(node)):
            node.replace(new)
            changed = True
    return render(tree) if changed else None


def count_over_subquery(tree: exp.Expression, schema: Schema) -> str | None:
    """SELECT COUNT(*) or COUNT(DISTINCT a) FROM .. as a count of the rows of a subquery."""
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or tree.args.get("group") or _has_order(tree):
        return None
    count = tree.expressions[0].unalias()
    if not isinstance(count, exp.Count) or tree.args.get("having") or _is_cut(tree) or tree.args.get("with_"):
        return None
    if isinstance(count.this, exp.Star):
        tree.set("expressions", [exp.Literal.number(1)])
    elif isinstance(count.this, exp.Distinct) and len(count.this.expressions) == 1:
        column = count.this.expressions[0].copy()
        tree.set("expressions", [column])
        tree.set("distinct", exp.Distinct())
        tree.where(exp.Not(this=exp.Is(this=column.copy(), expression=exp.Null())), copy=False)
    else:
        return None
    return f"SELECT COUNT(*) FROM ({render(tree)})"


def average_as_quotient(tree: exp.Expression, schema: Schema) -> str | None:
    changed = False
    for node in list(tree.find_all(exp.Avg)):
        if isinstance(node.this, exp.Column) and not isinstance(node.parent, exp.Window):
            total = exp.Mul(this=exp.Sum(this=node.this.copy()), expression=exp.Literal.number("1.0"))
            node.replace(exp.Paren(this=_literally(f"{render(total)} / {render(exp.Count(this=node.this.copy()))}")))
            changed = True
    return render(tree) if changed else None


def extreme_as_subquery(tree: exp.Expression, schema: Schema) -> str | None:
    """SELECT MAX(a) FROM .. as SELECT (SELECT a FROM .. ORDER BY a DESC LIMIT 1), MIN with NULLS LAST."""
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or tree.args.get("with_"):
        return None
    extreme = tree.expressions[0].unalias()
    if any(tree.args.get(clause) for clause in ("group", "having", "order", "limit", "distinct")):
        return None
    if not isinstance(extreme, (exp.Max, exp.Min)) or extreme.expressions or not isinstance(extreme.this, exp.Column):
        return None
    name = render(extreme.this)
    direction = "DESC" if isinstance(extreme, exp.Max) else "ASC NULLS LAST"
    tree.set("expressions", [extreme.this.copy()])
    return f"SELECT ({render(tree)} ORDER BY {name} {direction} LIMIT 1)"


def distinct_as_group(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Select) or not tree.args.get("distinct") or tree.args.get("group"):
        return None
    if not all(isinstance(item, exp.Column) and not isinstance(item.this, exp.Star) for item in tree.expressions):
        return None
    order = tree.args.get("order")
    if order and any(ordered.this not in tree.expressions for ordered in order.expressions):
        return None
    tree.set("distinct", None)
    tree.set("group", exp.Group(expressions=[item.copy() for item in tree.expressions]))
    return render(tree)


def group_as_distinct(tree: exp.Expression, schema: Schema) -> str | None:
    group = tree.args.get("group") if isinstance(tree, exp.Select) else None
    if group is None or tree.args.get("having") or tree.args.get("distinct") or tree.find(exp.AggFunc):
        return None
    order = tree.args.get("order")
    if order and any(ordered.this not in tree.expressions for ordered in order.expressions):
        return None
    if set(group.expressions) != set(tree.expressions):
        return None
    tree.set("group", None)
    tree.set("distinct", exp.Distinct())
    return render(tree)


def grouped_by_ordinal(tree: exp.Expression, schema: Schema) -> str | None:
    group = tree.args.get("group") if isinstance(tree, exp.Select) else None
    if group is None or not all(key in tree.expressions for key in group.expressions):
        return None
    if any(isinstance(item, exp.Star) for item in tree.expressions):
        return None
    keys = [exp.Literal.number(tree.expressions.index(key) + 1) for key in group.expressions]
    tree.set("group", exp.Group(expressions=keys))
    return render(tree)


def having_as_where(tree: exp.Expression, schema: Schema) -> str | None:
    """HAVING as WHERE over a subquery that shows what HAVING compares."""
    if not isinstance(tree, exp.Select) or not tree.args.get("having") or _has_order(tree) or _is_cut(tree):
        return None
    condition = tree.args["having"].this.copy()
    if tree.args.get("distinct") or condition.find(exp.Select) or tree.args.get("with_"):
        return None
    if any(item.find(exp.Star) and not item.find(exp.Count) for item in tree.expressions) or _aliases(tree):
        return None
    shown = [exp.alias_(item.copy(), f"zh{index}") for index, item in enumerate(tree.expressions)]
    tested = [node for node in condition.find_all(exp.AggFunc) if not node.parent or not node.find_ancestor(exp.AggFunc)]
    outside = [column for column in condition.find_all(exp.Column) if not column.find_ancestor(exp.AggFunc)]
    if outside or not tested or condition in tested:
        return None
    for index, node in enumerate(tested):
        shown.append(exp.alias_(node.copy(), f"zt{index}"))
        node.replace(exp.column(f"zt{index}"))
    names = ", ".join(f"zh{index}" for index in range(len(tree.expressions)))
    tree.set("expressions", shown)
    tree.set("having", None)
    return f"SELECT {names} FROM ({render(tree)}) WHERE {render(condition)}"


# ORDER BY and LIMIT


def ordered_by_ordinal(tree: exp.Expression, schema: Schema) -> str | None:
    order = tree.args.get("order") if isinstance(tree, exp.Select) else None
    if order is None or any(isinstance(item, exp.Star) for item in tree.expressions):
        return None
    changed = False
    shown = [item.unalias() for item in tree.expressions]
    for ordered in order.expressions:
        named = isinstance(ordered.this, exp.Column) and ordered.this.name.lower() in _aliases(tree)
        if ordered.this in shown and not isinstance(ordered.this, exp.Literal) and not named:
            ordered.set("this", exp.Literal.number(shown.index(ordered.this) + 1))
            changed = True
    return render(tree) if changed else None


def ordered_by_alias(tree: exp.Expression, schema: Schema) -> str | None:
    order = tree.args.get("order") if isinstance(tree, exp.Select) else None
    if order is None or _aliases(tree):
        return None
    changed = False
    for index, item in enumerate(list(tree.expressions)):
        for ordered in order.expressions:
            if ordered.this == item and not isinstance(item, (exp.Literal, exp.Star)):
                ordered.set("this", exp.column(f"zo{index}"))
                changed = True
        if not isinstance(item, exp.Star) and not (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
            item.replace(exp.alias_(item.copy(), f"zo{index}"))
    return render(tree) if changed else None


def ordered_by_one_more_key(tree: exp.Expression, schema: Schema) -> str | None:
    """A last key that only orders what gold leaves open."""
    if not isinstance(tree, exp.Select) or not _has_order(tree) or not _is_plain_but_for_limit(tree):
        return None
    items = _items(tree)
    if not items or not all(_base_table(item, schema) for item in items):
        return None
    last = exp.Ordered(this=exp.column("rowid", table=items[0].alias_or_name), desc=True, nulls_first=False)
    tree.args["order"].append("expressions", last)
    return render(tree)


def offset_zero(tree: exp.Expression, schema: Schema) -> str | None:
    limit = tree.args.get("limit")
    if limit is None or tree.args.get("offset"):
        return None
    count = render(limit.expression)
    tree.set("limit", None)
    return f"{render(tree)} LIMIT 0, {count}"


# Set operations


def commuted_sets(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, (exp.Union, exp.Intersect)) or _has_order(tree) or _is_cut(tree) or tree.args.get("with_"):
        return None
    if isinstance(tree.left, exp.SetOperation) or isinstance(tree.right, exp.SetOperation):
        return None  # SQLite reads a chain from the left and has no parentheses for it
    left, right = tree.left.copy(), tree.right.copy()
    tree.set("this", right)
    tree.set("expression", left)
    return render(tree)


def union_as_or(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Union) or not tree.args.get("distinct") or _has_order(tree) or _is_cut(tree):
        return None
    left, right = tree.left, tree.right
    if not all(isinstance(side, exp.Select) and _is_plain(side) and side.args.get("where") for side in (left, right)):
        return None
    first, second = left.copy(), right.copy()
    conditions = [side.args["where"].this for side in (first, second)]
    for side in (first, second):
        side.set("where", None)
    if first != second:
        return None
    first.set("where", exp.Where(this=exp.Or(this=wrapped(conditions[0]), expression=wrapped(conditions[1]))))
    first.set("distinct", exp.Distinct())
    return render(first)


def intersect_as_in(tree: exp.Expression, schema: Schema) -> str | None:
    return _set_as_in(tree, exp.Intersect, schema)


def except_as_not_in(tree: exp.Expression, schema: Schema) -> str | None:
    return _set_as_in(tree, exp.Except, schema)


def _set_as_in(tree: exp.Expression, kind: type, schema: Schema) -> str | None:
    if not isinstance(tree, kind) or _has_order(tree) or _is_cut(tree) or tree.args.get("with_"):
        return None
    left, right = tree.left, tree.right
    if not isinstance(left, exp.Select) or not isinstance(right, exp.Select) or len(left.expressions) != 1:
        return None
    shown = [left.expressions[0].unalias(), right.expressions[0].unalias()]
    if not all(isinstance(column, exp.Column) for column in shown) or not _is_plain(left):
        return None
    kinds = [
        {table.columns[column.name.lower()].affinity for table in schema.tables.values() if column.name.lower() in table.columns}
        for column in shown
    ]
    if len(kinds[0] | kinds[1]) != 1:  # IN converts types, INTERSECT does not
        return None
    inside = exp.In(this=shown[0].copy(), query=right.copy().subquery())
    left.where(exp.Not(this=inside) if kind is exp.Except else inside, copy=False)
    left.set("distinct", exp.Distinct())
    return render(left)


def distinct_as_union(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Select) or not tree.args.get("distinct") or _has_order(tree) or _is_cut(tree):
        return None
    if tree.args.get("with_"):
        return None
    tree.set("distinct", None)
    return f"{render(tree)} UNION {render(tree)}"


# Rewrites that natural constraints make true


def key_as_extreme(tree: exp.Expression, schema: Schema) -> str | None:
    """ORDER BY key LIMIT 1 as key = (SELECT MAX(key) ..)."""
    table, limit = _only_table(tree, schema), tree.args.get("limit")
    if not table or not _has_order(tree) or limit is None or limit.expression.name != "1" or tree.args.get("offset"):
        return None
    keys = tree.args["order"].expressions
    if len(keys) != 1 or not isinstance(keys[0].this, exp.Column) or not table.is_key(keys[0].this.name.lower()):
        return None
    if not _is_plain_but_for_limit(tree):
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
        table = _only_table(node.parent_select, schema)
        keys = [name for name in table.columns if table.is_key(name)] if table else []
        return exp.Count(this=exp.column(table.columns[keys[0]].name, quoted=True)) if keys else None

    return _counted(tree, edit)


def distinct_key(tree: exp.Expression, schema: Schema) -> str | None:
    table = _only_table(tree, schema)
    if not table or not _is_plain(tree) or _has_order(tree):
        return None
    if not any(isinstance(item, exp.Column) and table.is_key(item.name.lower()) for item in tree.expressions):
        return None
    tree.set("distinct", exp.Distinct())
    return render(tree)


def child_left_join_parent(tree: exp.Expression, schema: Schema) -> str | None:
    """child JOIN parent as child LEFT JOIN parent over a declared foreign key."""
    items, joins = _items(tree) if isinstance(tree, exp.Select) else [], None
    if len(items) == 2:
        joins = _inner_joins(tree)
    on = joins[0].args.get("on") if joins else None
    tables = [_base_table(item, schema) for item in items]
    if not isinstance(on, exp.EQ) or None in tables or not all(isinstance(s, exp.Column) for s in (on.this, on.expression)):
        return None
    columns = {side.table.lower(): side.name.lower() for side in (on.this, on.expression)}
    child, parent = (columns.get(item.alias_or_name.lower()) for item in items)
    if (child, tables[1].name.lower(), parent) not in tables[0].foreign_keys:
        return None
    joins[0].set("side", "LEFT")
    joins[0].set("kind", None)
    return render(tree)


# sqlglot's optimizer


def _optimized(tree: exp.Expression, schema: Schema, *passes) -> str | None:
    names = {table.name: {column.name: "TEXT" for column in table.columns.values()} for table in schema.tables.values()}
    before = render(tree)
    try:
        tree = qualify.qualify(tree, schema=names, dialect="sqlite", validate_qualify_columns=False, quote_identifiers=True)
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
    return _optimized(tree, schema, unnest_subqueries.unnest_subqueries) if tree.find(exp.Subquery, exp.Exists) else None


def subqueries_merged_by_sqlglot(tree: exp.Expression, schema: Schema) -> str | None:
    steps = eliminate_subqueries.eliminate_subqueries, merge_subqueries.merge_subqueries
    return _optimized(tree, schema, *steps) if tree.find(exp.Subquery, exp.CTE) else None


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
    count_one,
    count_as_sum,
    count_over_subquery,
    average_as_quotient,
    extreme_as_subquery,
    distinct_as_group,
    group_as_distinct,
    grouped_by_ordinal,
    having_as_where,
    ordered_by_ordinal,
    ordered_by_alias,
    ordered_by_one_more_key,
    offset_zero,
    commuted_sets,
    union_as_or,
    distinct_as_union,
    qualified_by_sqlglot,
    simplified_by_sqlglot,
    normalized_by_sqlglot,
    predicates_pushed_down_by_sqlglot,
    subqueries_unnested_by_sqlglot,
    subqueries_merged_by_sqlglot,
)
NATURAL = (not_in_as_not_exists, intersect_as_in, except_as_not_in, key_as_extreme, count_key, distinct_key, child_left_join_parent)
