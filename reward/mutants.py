"""Small meaningful edits of gold: what a nearly right query looks like. A suite of databases is as good as it tells
them apart.
"""

from collections.abc import Callable, Iterator

from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from reward.conditions import literal_value
from reward.queries import canonical_sql, parse
from reward.schema import Schema

_COMPARISONS = {
    exp.GT: (exp.GTE, exp.LT),
    exp.GTE: (exp.GT, exp.LTE),
    exp.LT: (exp.LTE, exp.GT),
    exp.LTE: (exp.LT, exp.GTE),
    exp.EQ: (exp.NEQ,),
    exp.NEQ: (exp.EQ,),
}
_AGGREGATES = {exp.Min: (exp.Max,), exp.Max: (exp.Min,), exp.Sum: (exp.Avg,), exp.Avg: (exp.Sum,)}
_SETS = {exp.Intersect: (exp.Union,), exp.Except: (exp.Union, exp.Intersect), exp.Union: (exp.Intersect,)}


def make_mutants(sql: str, schema: Schema, at_most: int = 24) -> list[str]:
    """Distinct edits of gold as SQL texts, spread evenly over the kinds when there are more than `at_most`.

    Edits that are provably equal are left out. The prover: the canonical text, and the rules below for idle DISTINCT,
    LEFT and ORDER BY.
    """
    tree = parse(sql)
    if tree is None:
        return []
    seen = {tree.sql(dialect="sqlite", unsupported_level=ErrorLevel.IGNORE), canonical_sql(sql)}
    waiting: list[Iterator[exp.Expression]] = [kind(tree, schema) for kind in _KINDS]
    mutants: list[str] = []
    while waiting and len(mutants) < at_most:
        for kind in list(waiting):
            mutant = next(kind, None)
            if mutant is None:
                waiting.remove(kind)
                continue
            try:
                text = mutant.sql(dialect="sqlite", unsupported_level=ErrorLevel.IGNORE)
            except (SqlglotError, RecursionError, ValueError):
                continue
            if text not in seen and len(mutants) < at_most:
                seen.add(text)
                mutants.append(text)
    return mutants


def _each(
    tree: exp.Expression, kind: type | tuple, edit: Callable[[exp.Expression], object]
) -> Iterator[exp.Expression]:
    """A copy of the tree for each node of the kind, with that node edited or replaced by the expression that `edit`
    returns.
    """
    for index in range(len(list(tree.find_all(kind)))):
        copy = tree.copy()
        node = next(node for position, node in enumerate(copy.find_all(kind)) if position == index)
        replacement = edit(node)
        if replacement is False:
            continue
        if isinstance(replacement, exp.Expression):
            if node is copy:
                copy = replacement
            else:
                node.replace(replacement)
        yield copy


def _replaced(tree: exp.Expression, table: dict[type, tuple]) -> Iterator[exp.Expression]:
    for kind, others in table.items():
        for other in others:
            yield from _each(tree, kind, lambda node, other=other: other(**dict(node.args)))


def _distinct_changes_nothing(select: exp.Select) -> bool:
    """Proves that DISTINCT is idle: one row at most, all group keys shown, or a set that forgets duplicates anyway."""
    group = select.args.get("group")
    limit = select.args.get("limit")
    outer = select.parent.parent if isinstance(select.parent, exp.Subquery) else select.parent
    if isinstance(outer, (exp.SetOperation, exp.In, exp.Exists)) or (
        limit is not None and limit.expression.name == "1"
    ):
        return True
    if group is None:
        return all(item.find(exp.AggFunc) for item in select.expressions)
    return all(key in [item.unalias() for item in select.expressions] for key in group.expressions)


def _left_join_changes_nothing(join: exp.Join) -> bool:
    """Proves that LEFT is idle: a later condition on the joined table removes the rows that LEFT would add."""
    select, alias = join.parent, join.this.alias_or_name.lower()
    conditions = [select.args["where"]] if select.args.get("where") else []
    joins = select.args["joins"]
    later = next(index for index, other in enumerate(joins) if other is join) + 1
    conditions += [other.args["on"] for other in joins[later:] if other.args.get("on")]
    return any(column.table.lower() == alias for condition in conditions for column in condition.find_all(exp.Column))


def _order_changes_nothing(order: exp.Order) -> bool:
    """Proves that ORDER BY is idle: it stands in a subquery that cuts nothing off."""
    query = order.parent
    return isinstance(query, exp.Query) and query.parent is not None and not query.args.get("limit")


def _remove(node: exp.Expression) -> None:
    node.pop()


def _dropped_conditions(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    for side in ("left", "right"):
        yield from _each(tree, (exp.And, exp.Or), lambda node, side=side: getattr(node, side))
    yield from _each(tree, (exp.Where, exp.Having), _remove)


def _changed_comparisons(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    yield from _replaced(tree, _COMPARISONS)


def _changed_connectives(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    yield from _replaced(tree, {exp.And: (exp.Or,), exp.Or: (exp.And,)})
    yield from _each(tree, exp.Not, lambda node: node.this)


def _changed_literals(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    def change(node: exp.Expression) -> exp.Expression:
        value = literal_value(node)
        if isinstance(value, str):
            return exp.Literal.string(value.strip("%") if "%" in value else value + " x")
        return exp.Literal.number(value + 1)

    yield from _each(tree, exp.Literal, change)


def _toggled_distinct(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    def toggle(node: exp.Expression) -> object:
        if _distinct_changes_nothing(node):
            return False
        node.set("distinct", None if node.args.get("distinct") else exp.Distinct())
        return None

    yield from _each(tree, exp.Select, toggle)

    def count(node: exp.Expression) -> None:
        if isinstance(node.this, exp.Distinct):
            node.set("this", node.this.expressions[0])
        elif isinstance(node.this, exp.Column):
            node.set("this", exp.Distinct(expressions=[node.this.copy()]))

    yield from _each(tree, exp.Count, count)
    yield from _each(tree, exp.Union, lambda node: node.set("distinct", not node.args.get("distinct")))


def _changed_aggregates(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    yield from _replaced(tree, _AGGREGATES)


def _changed_sets(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    for mutant in _replaced(tree, _SETS):
        for operation in mutant.find_all(exp.Intersect, exp.Except):
            operation.set("distinct", True)  # SQLite has no INTERSECT ALL
        yield mutant
    yield from _each(tree, exp.SetOperation, lambda node: node.left)


def _changed_order(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    def turn(node: exp.Expression) -> object:
        if isinstance(node.parent, exp.Order) and _order_changes_nothing(node.parent):
            return False
        node.set("desc", not node.args.get("desc"))
        node.set("nulls_first", not node.args.get("desc"))  # SQLite's own place for NULL, so nothing is written
        return None

    yield from _each(tree, exp.Ordered, turn)
    yield from _each(tree, exp.Order, lambda node: False if _order_changes_nothing(node) else _remove(node))
    yield from _each(tree, exp.Limit, _remove)


def _changed_joins(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    def toggle(node: exp.Expression) -> object:
        if not node.args.get("side") and (node.args.get("on") is None or _left_join_changes_nothing(node)):
            return False
        node.set("side", None if node.args.get("side") else "LEFT")
        return None

    yield from _each(tree, exp.Join, toggle)
    yield from _each(tree, exp.Group, _remove)


def _changed_columns(tree: exp.Expression, schema: Schema) -> Iterator[exp.Expression]:
    """Each column replaced by its neighbour in the same table, where the table is clear from the name."""

    def change(node: exp.Expression) -> None:
        name = node.name.lower()
        for table in schema.tables.values():
            columns = list(table.columns)
            if name in columns and len(columns) > 1:
                node.set("this", exp.to_identifier(columns[(columns.index(name) + 1) % len(columns)], quoted=True))
                return

    yield from _each(tree, exp.Column, change)


_KINDS = (
    _dropped_conditions,
    _changed_comparisons,
    _changed_connectives,
    _changed_literals,
    _toggled_distinct,
    _changed_aggregates,
    _changed_sets,
    _changed_order,
    _changed_joins,
    _changed_columns,
)
