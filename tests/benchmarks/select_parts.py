"""What a SELECT is made of: its tables, joins, columns and clauses, as the rewriting rules ask for them."""

from collections.abc import Iterator

from sqlglot import exp

from reward.schema import Schema, Table


def selects(tree: exp.Expression) -> list[exp.Select]:
    return list(tree.find_all(exp.Select))


def items_in_from(select: exp.Select) -> list[exp.Expression]:
    """What stands in FROM, in order."""
    source = select.args.get("from_")
    return ([source.this] if source else []) + [join.this for join in select.args.get("joins") or []]


def inner_joins(select: exp.Select) -> list[exp.Join] | None:
    """The joins of a SELECT where all are INNER with ON or a comma; None where one is not."""
    joins = select.args.get("joins") or []
    for join in joins:
        if join.args.get("side") or join.args.get("using") or join.args.get("method"):
            return None
        if (join.args.get("kind") or "").upper() not in ("", "INNER"):
            return None
    return joins


def is_plain(select: exp.Select) -> bool:
    """No grouping, no aggregate, no window, no DISTINCT, no LIMIT: one row out for each row in."""
    clauses = ("group", "having", "distinct", "limit", "offset", "windows")
    return not any(select.args.get(clause) for clause in clauses) and not any(
        item.find(exp.AggFunc, exp.Window) for item in select.expressions
    )


def base_table(item: exp.Expression, schema: Schema) -> Table | None:
    shadowed = {cte.alias.lower() for cte in item.root().find_all(exp.CTE)}
    if not isinstance(item, exp.Table) or item.name.lower() in shadowed or item.args.get("db"):
        return None
    return schema.tables.get(item.name.lower())


def only_table(select: exp.Expression, schema: Schema) -> Table | None:
    """The one stored table that a SELECT reads from, or None."""
    items = items_in_from(select) if isinstance(select, exp.Select) else []
    return base_table(items[0], schema) if len(items) == 1 else None


def has_order(tree: exp.Expression) -> bool:
    return tree.args.get("order") is not None


def is_cut(tree: exp.Expression) -> bool:
    return tree.args.get("limit") is not None or tree.args.get("offset") is not None


def output_aliases(select: exp.Select) -> set[str]:
    return {item.alias.lower() for item in select.expressions if isinstance(item, exp.Alias)}


def own_columns(select: exp.Select) -> Iterator[exp.Column]:
    """The columns that stand in this SELECT itself, not in a subquery of it."""
    for column in select.find_all(exp.Column):
        if column.parent_select is select:
            yield column


def is_plain_but_for_limit(select: exp.Select) -> bool:
    copy = select.copy()
    copy.set("limit", None)
    return is_plain(copy)
