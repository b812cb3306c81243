"""The prover: whether two queries have the same answer on every database that keeps the schema's declared constraints.

Both queries are brought into a normal form by the rules below; equal forms prove equal answers, different ones prove
nothing. Declared constraints are NOT NULL, PRIMARY KEY (never NULL, as in the SQL standard) and UNIQUE; foreign
keys prove nothing here, because SQLite does not enforce them. The rules, for each SELECT:

- conditions: NOT moved inwards, AND and OR without order and repetition, sides of = and <> without order, > as <;
  conditions of inner joins stand in WHERE;
- columns that inner conditions equate, of one declared type class, are one column;
- `x >= (SELECT MAX(x) FROM t)` over the same stored column is `=`, `<>` is `<`; likewise for MIN;
- LEFT JOIN is INNER where a later condition fails for NULLs of the joined table, or where the SELECT has nothing but
  aggregates of its columns, in one group;
- DISTINCT is idle where the shown columns determine the rows by declared keys, constants and equalities, where all
  keys of GROUP BY are shown, with one row at most, and where duplicates do not count: in IN, EXISTS and below a set
  operation that removes them; it is idle before LIMIT 1 if only shown columns sort;
- UNION ALL is UNION where duplicates do not count;
- a key of GROUP BY that the others determine goes; all of it where every group is one row and nothing is aggregated;
- COUNT(column) is COUNT(*) where the column is never NULL, COUNT(DISTINCT column) is COUNT(column) where it determines
  the row within its group; DISTINCT in MIN and MAX goes; MAX is MIN where the group determines the column;
- `COUNT(*) > 0`, `>= 1` (or less) and `<> 0` hold in every group;
- a key of ORDER BY goes where constants and the keys before it determine it; all of it with one row at most and in
  IN, EXISTS and FROM where no LIMIT cuts;
- LIMIT goes with one row at most, in EXISTS, and in a subquery of which SQLite takes one value.

A SELECT with NATURAL, USING, RIGHT or FULL joins or window functions is left as it stands, and a schema with COLLATE
has no equal columns.
"""

from sqlglot import exp
from sqlglot.errors import ErrorLevel

from reward.facts import Facts
from reward.names import Names, Place
from reward.predicates import holds_in_every_group, joined, operands, simplify
from reward.queries import parse
from reward.roles import duplicates_ignored, order_forgotten, user_and_role
from reward.schema import Schema

_AGGREGATES = (exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max)


def provably_equal(gold: str, others: list[str], schema: Schema) -> list[bool]:
    """For each of other queries whether the rules of this module prove that it answers as gold does on every database.

    Where gold's form has no ORDER BY, an ORDER BY of the other one's whole answer does not count either.
    """
    tree = _normal_form(gold, schema)
    if tree is None:
        return [False] * len(others)
    text, ordered = _text(tree), tree.args.get("order") is not None
    found = []
    for other in others:
        form = _normal_form(other, schema)
        if form is not None and not ordered:
            form.set("order", None)
        found.append(form is not None and _text(form) == text)
    return found


def _normal_form(sql: str, schema: Schema) -> exp.Expression | None:
    """The tree of a query in normal form; None where sqlglot cannot read it or it is nested too deeply."""
    tree = parse(sql)
    try:
        return _normalised(tree, schema) if tree is not None else None
    except RecursionError:
        return None


def _normalised(tree: exp.Expression, schema: Schema) -> exp.Expression:
    # Columns find their tables by the tree as written: all are asked before anything is moved.
    names, columns = Names(schema), list(tree.find_all(exp.Column))
    places = {id(column): names.place(column) for column in columns}
    _fold_names(tree)
    for operation in tree.find_all(exp.SetOperation):
        if duplicates_ignored(operation):
            operation.set("distinct", True)
    for select in reversed(list(tree.find_all(exp.Select))):
        _normalise(Facts(select, names, places))
    return tree


def _text(tree: exp.Expression) -> str:
    return tree.sql(dialect="sqlite", comments=False, unsupported_level=ErrorLevel.IGNORE)


def _normalise(facts: Facts) -> None:
    """Rewrites one SELECT; the SELECTs inside it are in normal form already."""
    select = facts.select
    if any(join.args.get("using") or join.args.get("method") or join.side in ("RIGHT", "FULL") for join in facts.joins):
        return
    # A function that is not known could be an aggregate; MIN and MAX of several values are none.
    if select.find(exp.Window, exp.Anonymous) or any(
        not isinstance(node, _AGGREGATES) or node.expressions for node in select.find_all(exp.AggFunc)
    ):
        return
    _write_aliases(facts)
    _move_conditions(facts)
    _find_equalities(facts)
    _reduce_group(facts)
    _reduce_aggregates(facts)
    _reduce_having(facts)
    _reduce_distinct(facts)
    _reduce_order(facts)
    _reduce_limit(facts)


def _write_aliases(facts: Facts) -> None:
    """Every column with its table; in ORDER BY a bare name that is an output column's stays one."""
    shown = {item.alias for item in facts.select.expressions if isinstance(item, exp.Alias)}
    for column in facts.own(exp.Column):
        place = facts.place(column)
        if place is None:
            continue
        ordered = column.find_ancestor(exp.Order, exp.Select) is not facts.select
        if ordered and not column.table and column.name in shown:
            facts.found[id(column)] = None
        else:
            column.set("table", exp.to_identifier(place[0], quoted=True))


def _move_conditions(facts: Facts) -> None:
    """Inner joins' conditions into WHERE; LEFT joins that add no row become inner ones."""
    where = facts.select.args.get("where")
    facts.conjuncts = operands(simplify(where.this, facts.found), exp.And) if where else []
    for join in facts.joins:
        join.set("kind", None)
        if join.args.get("on"):
            join.set("on", simplify(join.args["on"], facts.found))
    facts.write_where()
    changed = True
    while changed:
        changed = False
        for index, join in enumerate(facts.joins):
            if join.side == "LEFT" and _left_is_idle(facts, index, join):
                join.set("side", None)
                changed = True
    facts.inner = not any(join.side for join in facts.joins)
    for join in facts.joins if facts.inner else ():
        facts.conjuncts += operands(join.args["on"], exp.And) if join.args.get("on") else []
        join.set("on", None)
    facts.write_where()


def _left_is_idle(facts: Facts, index: int, join: exp.Join) -> bool:
    alias = join.this.alias_or_name.lower()
    later = [other.args["on"] for other in facts.joins[index + 1 :] if not other.side and other.args.get("on")]
    if any(facts.fails_for_null(part, lambda node: facts.of_table(node, alias)) for part in [*facts.conjuncts, *later]):
        return True
    items = [item.unalias() for item in facts.select.expressions]
    one_group = not any(facts.select.args.get(key) for key in ("group", "having", "order"))
    return one_group and all(
        isinstance(item, _AGGREGATES) and facts.of_table(_argument(item), alias) for item in items
    )


def _find_equalities(facts: Facts) -> None:
    """Columns that must be equal become one, and the equality itself stands once, in one way."""
    if not facts.inner or facts.collated:
        return
    leader: dict[Place, Place] = {}

    def lead(place: Place) -> Place:
        while leader.get(place, place) != place:
            place = leader[place]
        return place

    others = []
    for part in facts.conjuncts:
        pair = (facts.place(part.this), facts.place(part.expression)) if isinstance(part, exp.EQ) else (None, None)
        if None in pair or len(kinds := {facts.affinity(place) for place in pair}) > 1 or "blob" in kinds:
            others.append(part)
            continue
        first, second = sorted((lead(pair[0]), lead(pair[1])))
        leader[second] = first
    # The output columns of a derived table keep their names.
    named = facts.select.find_ancestor(exp.CTE, exp.From, exp.Join) is not None
    for column in facts.own(exp.Column):
        place = facts.place(column)
        if place is None or lead(place) == place or (named and column.parent is facts.select):
            continue
        first = lead(place)
        column.set("this", exp.to_identifier(first[1], quoted=True))
        column.set("table", exp.to_identifier(first[0], quoted=True))
        facts.found[id(column)] = (facts.select, first, facts.tables[first[0]])
    facts.equal = [(place, lead(place)) for place in sorted(leader) if lead(place) != place]
    facts.conjuncts = others + [exp.EQ(this=_column(first), expression=_column(place)) for place, first in facts.equal]
    facts.write_where()


def _reduce_group(facts: Facts) -> None:
    group = facts.select.args.get("group")
    if not group:
        return
    keys = sorted(group.expressions, key=lambda key: key.sql())
    for key in reversed(list(keys)):
        others = [other for other in keys if other is not key]
        places = {facts.place(other) for other in others} - {None}
        if others and facts.place(key) in facts.determined(places):
            keys = others
    group.set("expressions", keys)
    aggregated = facts.own(exp.AggFunc) or facts.select.args.get("having")
    if not aggregated and facts.rows_determined(facts.group_places()):
        facts.select.set("group", None)


def _reduce_aggregates(facts: Facts) -> None:
    determined = facts.determined(facts.group_places())
    for node in facts.own(exp.AggFunc):
        place = facts.place(_argument(node))
        if isinstance(node, exp.Count) and place:
            if isinstance(node.this, exp.Distinct) and facts.rows_determined(facts.group_places() | {place}):
                node.set("this", _argument(node))
            if not isinstance(node.this, exp.Distinct) and facts.never_null(place):
                node.set("this", exp.Star())
        elif isinstance(node, (exp.Min, exp.Max)) and place:
            node.set("this", _argument(node))
            if isinstance(node, exp.Max) and place in determined:
                node.replace(exp.Min(this=node.this))


def _reduce_having(facts: Facts) -> None:
    having = facts.select.args.get("having")
    if not having:
        return
    parts = operands(simplify(having.this, facts.found), exp.And)
    if facts.select.args.get("group"):
        parts = [part for part in parts if not holds_in_every_group(part)]
    facts.select.set("having", exp.Having(this=joined(exp.And, parts)) if parts else None)


def _reduce_distinct(facts: Facts) -> None:
    if not facts.select.args.get("distinct"):
        return
    limit, order = facts.select.args.get("limit"), facts.select.args.get("order")
    texts = {item.unalias().sql() for item in facts.select.expressions} | {i.alias for i in facts.select.expressions}
    idle = facts.one_row() or duplicates_ignored(facts.select)
    if facts.select.args.get("group"):
        determined = facts.determined(facts.shown())
        idle = idle or all(key.sql() in texts or facts.place(key) in determined for key in facts.keys())
    else:
        idle = idle or facts.rows_determined(facts.shown())
    if limit and limit.expression.name == "1" and not facts.select.args.get("offset"):
        idle = idle or all(term.this.sql() in texts for term in (order.expressions if order else ()))
    if idle:
        facts.select.set("distinct", None)


def _reduce_order(facts: Facts) -> None:
    order = facts.select.args.get("order")
    if not order:
        return
    if facts.one_row() or (not facts.select.args.get("limit") and order_forgotten(facts.select)):
        facts.select.set("order", None)
        return
    known: set[Place] = set()
    kept = []
    for term in order.expressions:
        place = facts.place(term.this)
        if place is None or place not in facts.determined(known):
            kept.append(term)
        known |= {place} - {None}
    if kept:
        order.set("expressions", kept)
    else:
        facts.select.set("order", None)


def _reduce_limit(facts: Facts) -> None:
    limit = facts.select.args.get("limit")
    if not limit or facts.select.args.get("offset") or not limit.expression.name.isdecimal():
        return
    if int(limit.expression.name) >= 1 and (facts.one_row() or user_and_role(facts.select)[1] in ("exists", "value")):
        facts.select.set("limit", None)


def _column(place: Place) -> exp.Column:
    return exp.column(place[1], place[0], quoted=True)


def _argument(node: exp.Expression) -> exp.Expression | None:
    """The single argument of an aggregate, with or without DISTINCT."""
    inner = node.this
    if isinstance(inner, exp.Distinct):
        return inner.expressions[0] if len(inner.expressions) == 1 else None
    return inner


def _fold_names(tree: exp.Expression) -> None:
    for identifier in tree.find_all(exp.Identifier):
        identifier.set("this", identifier.name.lower())
        identifier.set("quoted", True)
