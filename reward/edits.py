"""The rules that make mutants: for one node of gold's tree, the small edits of it that change the meaning."""

from collections.abc import Iterator
from typing import NamedTuple

from sqlglot import exp

from reward.conditions import literal_value
from reward.names import Names
from reward.values import DATE, near_misses

_ORDERED = {
    exp.GT: (exp.GTE, exp.LT),
    exp.GTE: (exp.GT, exp.LTE),
    exp.LT: (exp.LTE, exp.GT),
    exp.LTE: (exp.LT, exp.GTE),
}
_EQUAL = {exp.EQ: exp.NEQ, exp.NEQ: exp.EQ}
_AGGREGATES = {
    exp.Min: (exp.Max, exp.Avg),
    exp.Max: (exp.Min, exp.Sum),
    exp.Sum: (exp.Avg, exp.Max),
    exp.Avg: (exp.Sum, exp.Min),
}
_ARITHMETIC = {exp.Add: exp.Sub, exp.Sub: exp.Add, exp.Mul: exp.Div, exp.Div: exp.Mul}
_SETS = {
    exp.Union: (exp.Intersect, exp.Except),
    exp.Intersect: (exp.Union, exp.Except),
    exp.Except: (exp.Union, exp.Intersect),
}
_NEGATED_KINDS = {exp.In: "in_list", exp.Is: "null", exp.Between: "between"}


class Edit(NamedTuple):
    """One edit, not yet made: `owner.args[key]` becomes `value`; an `owner` of None: `value` is the whole query."""

    kind: str
    owner: exp.Expression | None
    key: str
    value: object


def _instead(kind: str, node: exp.Expression, *others: exp.Expression) -> Edit:
    """Other expressions (or none) in the node's place."""
    owner, key = node.parent, node.arg_key
    if owner is None:
        return Edit(kind, None, "", others[0])
    old = owner.args[key]
    if isinstance(old, list):
        value: object = [new for item in old for new in (others if item is node else (item,))]
    else:
        value = others[0] if others else None
    return Edit(kind, owner, key, value)


def _as(other: type, node: exp.Expression) -> exp.Expression:
    """A copy of the node as one of another type with the same operands."""
    operands = {key: value.copy() if isinstance(value, exp.Expression) else value for key, value in node.args.items()}
    return other(**operands)


def _comparisons(node: exp.Expression, names: Names) -> Iterator[Edit]:
    nested = isinstance(node.args.get("expression"), exp.Subquery)
    for other in _ORDERED.get(type(node), ()):
        yield _instead("subquery" if nested else "comparison", node, _as(other, node))
    joined = isinstance(node.this, exp.Column) and isinstance(node.args.get("expression"), exp.Column)
    if type(node) in _EQUAL and not joined:
        yield _instead("subquery" if nested else "equality", node, _as(_EQUAL[type(node)], node))


def _literals(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if not isinstance(node, exp.Literal) or isinstance(node.parent, (exp.Limit, exp.Offset, exp.Ordered, exp.Group)):
        return
    value = literal_value(node)
    if isinstance(node.parent, exp.Like):
        for pattern in dict.fromkeys((value[1:], value[:-1]) if isinstance(value, str) and "%" in value else ()):
            if pattern.count("%") < value.count("%"):
                yield _instead("like_pattern", node, exp.Literal.string(pattern))
    elif isinstance(value, str):
        if value.isdecimal() or DATE.fullmatch(value):
            others = near_misses(value, near=False)[:2]
        else:
            others = [value[:-1], value.swapcase()]
        for other in others:
            yield _instead("text", node, exp.Literal.string(other))
    else:
        for other in (value + 1, value - 1):
            yield _instead("number", node, exp.Literal.number(other))


def _predicates(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if isinstance(node, exp.Not):
        inner = node.this.unnest()
        kind = "subquery" if inner.find(exp.Select) else _NEGATED_KINDS.get(type(inner), "condition")
        yield _instead(kind, node, node.this.copy())
        return
    if type(node) in _NEGATED_KINDS and not isinstance(node.parent, exp.Not):
        kind = "subquery" if node.args.get("query") is not None else _NEGATED_KINDS[type(node)]
        yield _instead(kind, node, exp.Not(this=node.copy()))
    if isinstance(node, exp.Exists) and not isinstance(node.parent, exp.Not):
        yield _instead("subquery", node, exp.Not(this=node.copy()))
    if isinstance(node, exp.Like):
        if not isinstance(node.parent, exp.Not):
            yield Edit("like_equal", node, "negate", not node.args.get("negate"))
        if isinstance(node.expression, exp.Literal):
            equal = exp.NEQ if node.args.get("negate") else exp.EQ
            plain = exp.Literal.string(node.expression.this.strip("%"))
            yield _instead("like_equal", node, equal(this=node.this.copy(), expression=plain))
    if isinstance(node, exp.Between):
        for low, high in ((exp.GT, exp.LTE), (exp.GTE, exp.LT), (exp.GTE, None), (None, exp.LTE)):
            bounds = [
                bound(this=node.this.copy(), expression=node.args[key].copy())
                for bound, key in ((low, "low"), (high, "high"))
                if bound is not None
            ]
            both = len(bounds) == 2
            new = exp.Paren(this=exp.And(this=bounds[0], expression=bounds[1])) if both else bounds[0]
            yield _instead("between", node, new)
    if isinstance(node, exp.In) and len(node.expressions) > 1:
        for member in (node.expressions[0], node.expressions[-1]):
            yield _instead("in_list", member)
    if type(node) in _ARITHMETIC:
        other = _ARITHMETIC[type(node)]
        new = other(this=node.this.copy(), expression=node.expression.copy())
        if other is exp.Div:
            new.args.update(typed=True, safe=True)  # SQLite's own division, written without a CAST
        yield _instead("arithmetic", node, new)


def _connectives(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if isinstance(node, (exp.And, exp.Or)):
        for side in (node.left, node.right):
            yield _instead("condition", node, side.copy())
        yield _instead("connective", node, _as(exp.Or if isinstance(node, exp.And) else exp.And, node))
    if isinstance(node, exp.Where):
        yield _instead("where", node)
    if isinstance(node, exp.Having):
        yield _instead("having", node)


def _distincts(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if isinstance(node, exp.Select):
        yield Edit("distinct", node, "distinct", None if node.args.get("distinct") else exp.Distinct())
    if not isinstance(node, exp.Count):
        return
    inner = node.this
    if isinstance(inner, exp.Distinct):
        yield Edit("count_distinct", node, "this", inner.expressions[0].copy())
    elif isinstance(inner, exp.Column):
        yield Edit("count_distinct", node, "this", exp.Distinct(expressions=[inner.copy()]))
        yield Edit("count_star", node, "this", exp.Star())
    elif isinstance(inner, exp.Star) and node.parent_select is not None:
        tables = names.tables(node.parent_select)
        # The table that was joined last, a column of it that may be empty: where COUNT(column) differs first.
        for alias, table in reversed(tables.items()):
            columns = names.schema.tables[table].columns
            chosen = next((name for name, column in columns.items() if not column.required), None)
            if chosen is not None:
                yield Edit("count_star", node, "this", exp.column(chosen, alias, quoted=True))
                return


def _aggregates(node: exp.Expression, names: Names) -> Iterator[Edit]:
    for other in _AGGREGATES.get(type(node), ()):
        yield _instead("aggregate", node, other(this=node.this.copy()))


def _clauses(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if isinstance(node, exp.Group):
        for key in node.expressions if len(node.expressions) > 1 else ():
            yield _instead("group", key)
        yield _instead("group", node)
    if isinstance(node, exp.Ordered) and isinstance(node.parent, exp.Order):
        turned = node.copy()
        turned.set("desc", not node.args.get("desc"))
        turned.set("nulls_first", bool(node.args.get("desc")))  # SQLite's own place for NULL, so nothing is written
        yield _instead("direction", node, turned)
        if len(node.parent.expressions) > 1:
            yield _instead("order", node)
    if isinstance(node, exp.Order) and isinstance(node.parent, exp.Query):
        yield _instead("order", node)
    if isinstance(node, exp.Limit):
        value = literal_value(node.expression)
        if not node.parent.args.get("offset"):
            yield _instead("limit", node)
        for other in (value + 1, value - 1) if isinstance(value, int) else ():
            if other > 0:
                yield _instead("limit", node.expression, exp.Literal.number(other))


def _joins(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if isinstance(node, exp.Join) and node.args.get("on") is not None:
        yield Edit("left_join", node, "side", None if node.args.get("side") else "LEFT")
    if not isinstance(node, exp.Select) or not node.args.get("joins"):
        return
    if any(item.find(exp.Star) for item in node.expressions if not isinstance(item, exp.Count)):
        return
    found = ((column, names.place(column)) for column in node.find_all(exp.Column))
    places = [(column, place[1][0]) for column, place in found if place and place[0] is node]
    joins = node.args["joins"]
    for join in joins:
        alias = join.this.alias_or_name.lower()
        if not any(owner == alias and column.find_ancestor(exp.Join) is not join for column, owner in places):
            yield _instead("join", join)
    first = node.args["from_"].this
    alias = first.alias_or_name.lower()
    if len(joins) == 1 and not any(owner == alias and not column.find_ancestor(exp.Join) for column, owner in places):
        select = node.copy()
        select.args["from_"].set("this", select.args["joins"][0].this)
        select.set("joins", [])
        yield _instead("join", node, select)


def _columns(node: exp.Expression, names: Names) -> Iterator[Edit]:
    found = names.place(node) if isinstance(node, exp.Column) else None
    if found is None:
        return
    select, (alias, name), table = found
    kind = "join_key" if node.find_ancestor(exp.Join, exp.Select) is not select else "column"
    known = names.schema.tables[table].columns
    order = list(known)
    at = order.index(name)
    others = order[at + 1 :] + order[:at]
    similar = next((other for other in others if known[other].affinity == known[name].affinity), None)
    for other in dict.fromkeys((*others[:1], similar)):
        if other is not None:
            yield _instead(kind, node, _column(known[other].name, node))
    if kind == "join_key":
        return
    for other_alias, other_table in names.tables(select).items():
        columns = names.schema.tables[other_table].columns
        if other_alias == alias or not node.table:
            continue
        similar = next((other for other in columns if columns[other].affinity == known[name].affinity), None)
        fitting = name if name in columns else similar
        if fitting is not None:
            yield _instead("other_table", node, exp.column(columns[fitting].name, other_alias, quoted=True))


def _column(name: str, like: exp.Column) -> exp.Column:
    new = like.copy()
    new.set("this", exp.to_identifier(name, quoted=True))
    return new


def _sets(node: exp.Expression, names: Names) -> Iterator[Edit]:
    if not isinstance(node, exp.SetOperation):
        return
    for other in _SETS.get(type(node), ()):
        new = _as(other, node)
        new.set("distinct", True)  # SQLite has no INTERSECT ALL
        yield _instead("set_operation", node, new)
    if isinstance(node, exp.Union):
        yield Edit("union_all", node, "distinct", not node.args.get("distinct"))
    for side in (node.left, node.right):
        yield _instead("set_side", node, side.copy())


RULES = (
    _comparisons,
    _literals,
    _predicates,
    _connectives,
    _distincts,
    _aggregates,
    _clauses,
    _joins,
    _columns,
    _sets,
)
