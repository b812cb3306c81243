"""True rewrites of what a query makes of its rows: aggregates, groups, order, cuts and set operations.

A rule is made as in rewrites_of_conditions.py. ALWAYS holds on every database, as far as the rows are determined:
another cut through a tie is as good.
"""

from sqlglot import exp

from reward.queries import parse
from reward.schema import Schema
from rewrites_of_conditions import render, wrapped
from select_parts import base_table, has_order, is_cut, is_plain, is_plain_but_for_limit, items_in_from, output_aliases


def _literally(sql: str) -> exp.Expression:
    return parse("SELECT " + sql).expressions[0]


def count_one(tree: exp.Expression, schema: Schema) -> str | None:
    return counted(tree, lambda node: exp.Count(this=exp.Literal.number(1)))


def count_as_sum(tree: exp.Expression, schema: Schema) -> str | None:
    """COUNT(*) as SUM(1) where there are groups: none of them is empty."""
    return counted(
        tree, lambda node: exp.Sum(this=exp.Literal.number(1)) if node.parent_select.args.get("group") else None
    )


def counted(tree: exp.Expression, edit) -> str | None:
    changed = False
    for node in list(tree.find_all(exp.Count)):
        if isinstance(node.this, exp.Star) and not isinstance(node.parent, exp.Window) and (new := edit(node)):
            node.replace(new)
            changed = True
    return render(tree) if changed else None


def count_over_subquery(tree: exp.Expression, schema: Schema) -> str | None:
    """SELECT COUNT(*) or COUNT(DISTINCT a) FROM .. as a count of the rows of a subquery."""
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or tree.args.get("group") or has_order(tree):
        return None
    count = tree.expressions[0].unalias()
    if not isinstance(count, exp.Count) or tree.args.get("having") or is_cut(tree) or tree.args.get("with_"):
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
    if not isinstance(tree, exp.Select) or not tree.args.get("having") or has_order(tree) or is_cut(tree):
        return None
    condition = tree.args["having"].this.copy()
    if tree.args.get("distinct") or condition.find(exp.Select) or tree.args.get("with_"):
        return None
    if any(item.find(exp.Star) and not item.find(exp.Count) for item in tree.expressions) or output_aliases(tree):
        return None
    shown = [exp.alias_(item.copy(), f"zh{index}") for index, item in enumerate(tree.expressions)]
    tested = [
        node for node in condition.find_all(exp.AggFunc) if not node.parent or not node.find_ancestor(exp.AggFunc)
    ]
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


def ordered_by_ordinal(tree: exp.Expression, schema: Schema) -> str | None:
    order = tree.args.get("order") if isinstance(tree, exp.Select) else None
    if order is None or any(isinstance(item, exp.Star) for item in tree.expressions):
        return None
    changed = False
    shown = [item.unalias() for item in tree.expressions]
    for ordered in order.expressions:
        named = isinstance(ordered.this, exp.Column) and ordered.this.name.lower() in output_aliases(tree)
        if ordered.this in shown and not isinstance(ordered.this, exp.Literal) and not named:
            ordered.set("this", exp.Literal.number(shown.index(ordered.this) + 1))
            changed = True
    return render(tree) if changed else None


def ordered_by_alias(tree: exp.Expression, schema: Schema) -> str | None:
    order = tree.args.get("order") if isinstance(tree, exp.Select) else None
    if order is None or output_aliases(tree):
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
    if not isinstance(tree, exp.Select) or not has_order(tree) or not is_plain_but_for_limit(tree):
        return None
    items = items_in_from(tree)
    if not items or not all(base_table(item, schema) for item in items):
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


def commuted_sets(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, (exp.Union, exp.Intersect)) or has_order(tree) or is_cut(tree) or tree.args.get("with_"):
        return None
    if isinstance(tree.left, exp.SetOperation) or isinstance(tree.right, exp.SetOperation):
        return None  # SQLite reads a chain from the left and has no parentheses for it
    left, right = tree.left.copy(), tree.right.copy()
    tree.set("this", right)
    tree.set("expression", left)
    return render(tree)


def union_as_or(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Union) or not tree.args.get("distinct") or has_order(tree) or is_cut(tree):
        return None
    left, right = tree.left, tree.right
    if not all(isinstance(side, exp.Select) and is_plain(side) and side.args.get("where") for side in (left, right)):
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
    if not isinstance(tree, kind) or has_order(tree) or is_cut(tree) or tree.args.get("with_"):
        return None
    left, right = tree.left, tree.right
    if not isinstance(left, exp.Select) or not isinstance(right, exp.Select) or len(left.expressions) != 1:
        return None
    shown = [left.expressions[0].unalias(), right.expressions[0].unalias()]
    if not all(isinstance(column, exp.Column) for column in shown) or not is_plain(left):
        return None
    kinds = [
        {
            table.columns[column.name.lower()].affinity
            for table in schema.tables.values()
            if column.name.lower() in table.columns
        }
        for column in shown
    ]
    if len(kinds[0] | kinds[1]) != 1:  # IN converts types, INTERSECT does not
        return None
    inside = exp.In(this=shown[0].copy(), query=right.copy().subquery())
    left.where(exp.Not(this=inside) if kind is exp.Except else inside, copy=False)
    left.set("distinct", exp.Distinct())
    return render(left)


def distinct_as_union(tree: exp.Expression, schema: Schema) -> str | None:
    if not isinstance(tree, exp.Select) or not tree.args.get("distinct") or has_order(tree) or is_cut(tree):
        return None
    if tree.args.get("with_"):
        return None
    tree.set("distinct", None)
    return f"{render(tree)} UNION {render(tree)}"


ALWAYS = (
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
)
NATURAL = (
    intersect_as_in,
    except_as_not_in,
)
