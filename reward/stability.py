"""Variants of gold that differ from it only in choices that SQL leaves open: gold whose answer they change depends on
chance.

SQLite takes some row for a bare column of a group, for the hidden sort key of DISTINCT, for a scalar subquery with
many rows, and for a LIMIT inside gold that cuts a tie. The first variant takes the least value there, the second one
the greatest.
"""

from functools import lru_cache

from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from reward.queries import parse


@lru_cache(maxsize=64)
def open_choices(sql: str) -> tuple[str, ...]:
    """Two variants of the query, or none where it leaves no such choice or sqlglot cannot read it."""
    words = sql.upper()
    grouped = any(word in words for word in ("GROUP", "HAVING", "DISTINCT")) or words.count("SELECT") > 1
    if not grouped and ("(" not in words or "," not in words.partition("FROM")[0]):
        return ()  # one SELECT without groups, and no column beside an aggregate: most golds
    tree = parse(sql)
    if tree is None:
        return ()
    variants = []
    for greatest in (False, True):
        variant = tree.copy()
        subqueries = [query for query in variant.find_all(exp.Query) if _may_choose(query)]
        grouped = [select for select in variant.find_all(exp.Select) if _is_grouped(select)]
        changed = [_settle_group(select, greatest) for select in grouped]
        changed += [_settle_distinct(select, greatest) for select in variant.find_all(exp.Select)]
        changed += [_settle_cut(query, greatest) for query in subqueries]
        if not any(changed):
            return ()
        try:
            variants.append(variant.sql(dialect="sqlite", comments=False, unsupported_level=ErrorLevel.IGNORE))
        except (SqlglotError, RecursionError, ValueError):
            return ()
    return tuple(variants)


def _may_choose(query: exp.Expression) -> bool:
    """Whether it is a nested query that shows only some of its rows: cut by LIMIT, or used as one value."""
    if isinstance(query, exp.Subquery) or query.parent is None or isinstance(query.parent, exp.SetOperation):
        return False
    return query.args.get("limit") is not None or _is_scalar(query)


def _is_scalar(query: exp.Expression) -> bool:
    above = query.parent
    if not isinstance(above, exp.Subquery):
        return False
    holder = above.parent
    while isinstance(holder, exp.Paren):
        holder = holder.parent
    return not isinstance(holder, (exp.From, exp.Join, exp.In, exp.Exists, exp.SetOperation, exp.CTE, exp.Subquery))


def _settle_cut(query: exp.Expression, greatest: bool) -> bool:
    """Sorts a nested query by its output too, so that what it shows is settled."""
    single = isinstance(query, exp.Select) and not query.args.get("group")
    if single and all(item.find(exp.AggFunc) and not item.find(exp.Window) for item in query.expressions):
        return False
    shown = query.selects
    starred = any(isinstance(item, exp.Star) or item.find(exp.Star) for item in shown)
    order = query.args.get("order") or exp.Order(expressions=[])
    for number in range(1, 2 if starred else len(shown) + 1):
        # SQLite's own place for NULL, so that nothing is written about it.
        order.append(
            "expressions",
            exp.Ordered(this=exp.Literal.number(number), desc=greatest or None, nulls_first=not greatest),
        )
    query.set("order", order)
    if query.args.get("limit") is None:
        query.set("limit", exp.Limit(expression=exp.Literal.number(1)))
    return True


def _is_grouped(select: exp.Select) -> bool:
    """Whether rows are grouped and no MIN or MAX settles which row of a group bare columns come from."""
    own = [node for node in select.find_all(exp.AggFunc) if node.parent_select is select]
    if any(isinstance(node, (exp.Min, exp.Max)) for node in own):
        return False
    plain = [node for node in own if not isinstance(node.parent, (exp.Window, exp.Filter))]
    return bool(select.args.get("group") or plain)


def _settle_group(select: exp.Select, greatest: bool) -> bool:
    """Puts MIN or MAX around the columns that are neither a group's key nor inside an aggregate."""
    group = select.args.get("group")
    named = {item.alias.lower(): item.this for item in select.expressions if isinstance(item, exp.Alias)}
    keys = []
    for key in group.expressions if group else ():
        if isinstance(key, exp.Literal) and key.name.isdigit() and int(key.name) <= len(select.expressions):
            key = select.expressions[int(key.name) - 1].unalias()
        elif isinstance(key, exp.Column) and not key.table:
            key = named.get(key.name.lower(), key)
        keys.append(key)
    parts = list(select.expressions) + [select.args[name] for name in ("having", "order") if select.args.get(name)]
    changed = False
    for part in parts:
        if part.unalias() in keys:
            continue
        for column in list(part.find_all(exp.Column)):
            if column.parent_select is not select or isinstance(column.this, exp.Star):
                continue
            inside = column.find_ancestor(exp.AggFunc, exp.Select)
            aliased = not column.table and column.name.lower() in named and part not in select.expressions
            if isinstance(inside, exp.AggFunc) or aliased or any(_same_column(column, key) for key in keys):
                continue
            column.replace((exp.Max if greatest else exp.Min)(this=column.copy()))
            changed = True
    return changed


def _settle_distinct(select: exp.Select, greatest: bool) -> bool:
    """DISTINCT sorted by what it does not show, as groups that are sorted by their least or greatest key."""
    shown = [item.unalias() for item in select.expressions]
    order = select.args.get("order")
    if not select.args.get("distinct") or order is None or select.args.get("group") or select.find(exp.AggFunc):
        return False
    if any(item.find(exp.Star) for item in shown) or all(ordered.this in shown for ordered in order.expressions):
        return False
    select.set("distinct", None)
    select.set("group", exp.Group(expressions=[item.copy() for item in shown]))
    return _settle_group(select, greatest)


def _same_column(column: exp.Column, key: exp.Expression) -> bool:
    if not isinstance(key, exp.Column) or key.name.lower() != column.name.lower():
        return False
    return not key.table or not column.table or key.table.lower() == column.table.lower()
