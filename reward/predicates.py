"""Conditions in one form for all ways to write them: NOT moved inwards, parts and sides sorted.

Three-valued logic allows every step: a condition and its form are true, false or unknown for the same rows.
"""

from sqlglot import exp

from reward.conditions import literal_value

_OPPOSITE = {exp.EQ: exp.NEQ, exp.NEQ: exp.EQ, exp.GT: exp.LTE, exp.LTE: exp.GT, exp.LT: exp.GTE, exp.GTE: exp.LT}
_TURNED = {exp.GT: exp.LT, exp.GTE: exp.LTE}
# What x <comparison> (the greatest or smallest x) comes to.
_AT_THE_END = {exp.Max: {exp.GTE: exp.EQ, exp.NEQ: exp.LT}, exp.Min: {exp.LTE: exp.EQ, exp.NEQ: exp.GT}}
COMPARISONS = tuple(_OPPOSITE)


def simplify(node: exp.Expression, found: dict[int, tuple | None], negated: bool = False) -> exp.Expression:
    """The form of a condition, made of the nodes of the condition itself. `found`: `Names.place` of columns by id."""
    node = node.unnest()
    if isinstance(node, exp.Not):
        return simplify(node.this, found, not negated)
    if isinstance(node, (exp.And, exp.Or)):
        kind = exp.And if isinstance(node, exp.And) != negated else exp.Or
        parts = [simplify(side, found, negated) for side in (node.left, node.right)]
        return joined(kind, [inner for part in parts for inner in operands(part, kind)])
    if node.args.get("negate"):  # NOT LIKE is one node
        node.set("negate", None)
        negated = not negated
    if not isinstance(node, COMPARISONS):
        return exp.Not(this=node) if negated else node
    kind = _OPPOSITE[type(node)] if negated else type(node)
    left, right = node.this, node.expression
    if isinstance(right, exp.Subquery):
        kind = _AT_THE_END.get(_end_of_column(left, right.this, found), {}).get(kind, kind)
    if kind in _TURNED:
        kind, left, right = _TURNED[kind], right, left
    elif kind in (exp.EQ, exp.NEQ) and right.sql() < left.sql():
        left, right = right, left
    return kind(this=left, expression=right)


def operands(part: exp.Expression, kind: type) -> list[exp.Expression]:
    """The parts of a chain of AND (or of OR), whatever parentheses it has."""
    part = part.unnest()
    return operands(part.left, kind) + operands(part.right, kind) if isinstance(part, kind) else [part]


def joined(kind: type, parts: list[exp.Expression]) -> exp.Expression:
    """Distinct parts in the order of their texts, joined by AND or OR."""
    distinct = {part.sql(): exp.Paren(this=part) if isinstance(part, (exp.And, exp.Or)) else part for part in parts}
    ordered = [distinct[text] for text in sorted(distinct)]
    whole = ordered[0]
    for part in ordered[1:]:
        whole = kind(this=whole, expression=part)
    return whole


def holds_in_every_group(part: exp.Expression) -> bool:
    """0 < COUNT(*), 1 <= COUNT(*) or less, or COUNT(*) <> 0: the forms of all that says that a group has a row."""
    sides = part.this, part.args.get("expression")
    for value, count in (sides, sides[::-1]):
        if isinstance(count, exp.Count) and isinstance(count.this, exp.Star):
            if isinstance(part, exp.NEQ):
                return literal_value(value) == 0
            bound = literal_value(value)
            below = count is sides[1] and isinstance(bound, int)
            return below and (isinstance(part, exp.LT) and bound <= 0 or isinstance(part, exp.LTE) and bound <= 1)
    return False


def _end_of_column(column: exp.Expression, query: exp.Expression, found: dict[int, tuple | None]) -> type | None:
    """Max or Min where the query gives the end of all values of the stored column that it is compared with."""
    mine = found.get(id(column)) if isinstance(column, exp.Column) else None
    if not mine or not isinstance(query, exp.Select) or len(query.expressions) != 1:
        return None
    if any(query.args.get(key) for key in ("where", "group", "having", "joins", "limit", "order", "with_")):
        return None
    item = query.expressions[0].unalias()
    inner = found.get(id(item.this)) if type(item) in _AT_THE_END else None
    same = inner and inner[0] is query and (inner[2], inner[1][1]) == (mine[2], mine[1][1])
    return type(item) if same else None
