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

from collections.abc import Callable

from sqlglot import exp
from sqlglot.errors import ErrorLevel

from reward.conditions import literal_value
from reward.names import Names, Place
from reward.predicates import COMPARISONS, holds_in_every_group, joined, operands, simplify
from reward.queries import parse
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
        if _duplicates_ignored(operation):
            operation.set("distinct", True)
    for select in reversed(list(tree.find_all(exp.Select))):
        _Normaliser(select, names, places).normalise()
    return tree


def _text(tree: exp.Expression) -> str:
    return tree.sql(dialect="sqlite", comments=False, unsupported_level=ErrorLevel.IGNORE)


class _Normaliser:
    """Rewrites one SELECT; the SELECTs inside it are in normal form already."""

    def __init__(self, select: exp.Select, names: Names, places: dict[int, tuple | None]):
        self.select = select
        self.names = names
        self.schema = names.schema
        self.tables = names.tables(select)
        self.sources = names.sources(select)
        self.found = places
        self.joins = select.args.get("joins") or []
        self.conjuncts: list[exp.Expression] = []
        self.equal: list[tuple[Place, Place]] = []
        self.inner = False
        self.collated = any("collate" in statement.lower() for statement in self.schema.ddl)

    def normalise(self) -> None:
        select = self.select
        if any(
            join.args.get("using") or join.args.get("method") or join.side in ("RIGHT", "FULL") for join in self.joins
        ):
            return
        # A function that is not known could be an aggregate; MIN and MAX of several values are none.
        if select.find(exp.Window, exp.Anonymous) or any(
            not isinstance(node, _AGGREGATES) or node.expressions for node in select.find_all(exp.AggFunc)
        ):
            return
        self.write_aliases()
        self.move_conditions()
        self.find_equalities()
        self.reduce_group()
        self.reduce_aggregates()
        self.reduce_having()
        self.reduce_distinct()
        self.reduce_order()
        self.reduce_limit()

    def place(self, node: exp.Expression | None) -> Place | None:
        """The place of a column of this SELECT's own stored tables."""
        found = self.found.get(id(node)) if isinstance(node, exp.Column) else None
        return found[1] if found and found[0] is self.select else None

    def own(self, kind: type | tuple) -> list[exp.Expression]:
        """Nodes of the kind that belong to this SELECT and not to one inside it."""
        return [node for node in self.select.find_all(kind) if node.parent_select is self.select]

    def write_aliases(self) -> None:
        """Every column with its table; in ORDER BY a bare name that is an output column's stays one."""
        shown = {item.alias for item in self.select.expressions if isinstance(item, exp.Alias)}
        for column in self.own(exp.Column):
            place = self.place(column)
            if place is None:
                continue
            if not column.table and column.name in shown and column.find_ancestor(exp.Order, exp.Select) is not self.select:
                self.found[id(column)] = None
            else:
                column.set("table", exp.to_identifier(place[0], quoted=True))

    def move_conditions(self) -> None:
        """Inner joins' conditions into WHERE; LEFT joins that add no row become inner ones."""
        where = self.select.args.get("where")
        self.conjuncts = operands(simplify(where.this, self.found), exp.And) if where else []
        for join in self.joins:
            join.set("kind", None)
            if join.args.get("on"):
                join.set("on", simplify(join.args["on"], self.found))
        self.write_where()
        changed = True
        while changed:
            changed = False
            for index, join in enumerate(self.joins):
                if join.side == "LEFT" and self.left_is_idle(index, join):
                    join.set("side", None)
                    changed = True
        self.inner = not any(join.side for join in self.joins)
        for join in self.joins if self.inner else ():
            self.conjuncts += operands(join.args["on"], exp.And) if join.args.get("on") else []
            join.set("on", None)
        self.write_where()

    def write_where(self) -> None:
        self.select.set("where", exp.Where(this=joined(exp.And, self.conjuncts)) if self.conjuncts else None)

    def left_is_idle(self, index: int, join: exp.Join) -> bool:
        alias = join.this.alias_or_name.lower()
        later = [other.args["on"] for other in self.joins[index + 1 :] if not other.side and other.args.get("on")]
        if any(self.fails_for_null(part, lambda node: self.of_table(node, alias)) for part in [*self.conjuncts, *later]):
            return True
        items = [item.unalias() for item in self.select.expressions]
        one_group = not any(self.select.args.get(key) for key in ("group", "having", "order"))
        return one_group and all(
            isinstance(item, _AGGREGATES) and self.of_table(_argument(item), alias)
            for item in items
        )

    def of_table(self, node: exp.Expression | None, alias: str) -> bool:
        place = self.place(node)
        return place is not None and place[0] == alias

    def fails_for_null(self, part: exp.Expression, is_null: Callable[[exp.Expression], bool]) -> bool:
        """Whether a condition is never true for a row in which the columns that `is_null` names are NULL."""
        part = part.unnest()
        if isinstance(part, (exp.And, exp.Or)):
            sides = [self.fails_for_null(side, is_null) for side in (part.left, part.right)]
            return all(sides) if isinstance(part, exp.Or) else any(sides)
        if isinstance(part, exp.Not):
            inner = part.this.unnest()
            if isinstance(inner, exp.Is):
                return isinstance(inner.expression, exp.Null) and is_null(inner.this)
            # NULL NOT IN (no rows) is true.
            unsafe = isinstance(inner, exp.In) and not inner.expressions
            return not unsafe and isinstance(inner, (exp.In, exp.Like, exp.Between)) and is_null(inner.this)
        if isinstance(part, (*COMPARISONS, exp.Like)):
            return is_null(part.this) or is_null(part.expression)
        return isinstance(part, (exp.In, exp.Between)) and is_null(part.this)

    def find_equalities(self) -> None:
        """Columns that must be equal become one, and the equality itself stands once, in one way."""
        if not self.inner or self.collated:
            return
        leader: dict[Place, Place] = {}

        def lead(place: Place) -> Place:
            while leader.get(place, place) != place:
                place = leader[place]
            return place

        others = []
        for part in self.conjuncts:
            pair = (self.place(part.this), self.place(part.expression)) if isinstance(part, exp.EQ) else (None, None)
            if None in pair or len(kinds := {self.affinity(place) for place in pair}) > 1 or "blob" in kinds:
                others.append(part)
                continue
            first, second = sorted((lead(pair[0]), lead(pair[1])))
            leader[second] = first
        # The output columns of a derived table keep their names.
        named = isinstance(self.select.parent, (exp.CTE, exp.Subquery))
        for column in self.own(exp.Column):
            place = self.place(column)
            if place is None or lead(place) == place or (named and column.parent is self.select):
                continue
            first = lead(place)
            column.set("this", exp.to_identifier(first[1], quoted=True))
            column.set("table", exp.to_identifier(first[0], quoted=True))
            self.found[id(column)] = (self.select, first, self.tables[first[0]])
        self.equal = [(place, lead(place)) for place in sorted(leader) if lead(place) != place]
        self.conjuncts = others + [
            exp.EQ(this=_column(first), expression=_column(place)) for place, first in self.equal
        ]
        self.write_where()

    def affinity(self, place: Place) -> str:
        return self.schema.tables[self.tables[place[0]]].columns[place[1]].affinity

    def constants(self) -> set[Place]:
        found = set()
        for part in self.conjuncts if self.inner and not self.collated else ():
            sides = (part.this, part.expression) if isinstance(part, exp.EQ) else (None, None)
            for column, value in (sides, sides[::-1]):
                if literal_value(value) is not None and self.place(column):
                    found.add(self.place(column))
        return found

    def determined(self, known: set[Place]) -> set[Place]:
        """All places with one value for each combination of the known ones; (alias, "") stands for the whole row."""
        known = known | self.constants()
        while True:
            more = {place for pair in self.equal if known & set(pair) for place in pair}
            for alias, name in self.tables.items():
                table = self.schema.tables[name]
                for key in table.keys:
                    sure = all(table.columns[column].required for column in key)
                    if sure and all((alias, column) in known for column in key):
                        more |= {(alias, column) for column in (*table.columns, "")}
            if more <= known:
                return known
            known |= more

    def rows_determined(self, known: set[Place]) -> bool:
        determined = self.determined(known)
        return bool(self.sources) and all((alias, "") in determined for alias in self.sources)

    def never_null(self, place: Place) -> bool:
        outer = {join.this.alias_or_name.lower() for join in self.joins if join.side}
        column = self.schema.tables[self.tables[place[0]]].columns[place[1]]
        if (column.required and place[0] not in outer) or any(place in pair for pair in self.equal):
            return True
        return any(self.fails_for_null(part, lambda node: self.place(node) == place) for part in self.conjuncts)

    def shown(self) -> set[Place]:
        places = {self.place(item.unalias()) for item in self.select.expressions} - {None}
        for item in self.select.expressions:
            if isinstance(item, exp.Star) or isinstance(item, exp.Column) and isinstance(item.this, exp.Star):
                for alias, table in self.tables.items():
                    if isinstance(item, exp.Star) or item.table in ("", alias):
                        places |= {(alias, column) for column in self.schema.tables[table].columns}
        return places

    def keys(self) -> list[exp.Expression]:
        group = self.select.args.get("group")
        return list(group.expressions) if group else []

    def group_places(self) -> set[Place]:
        return {self.place(key) for key in self.keys()} - {None}

    def one_row(self) -> bool:
        """At most one row: aggregates without GROUP BY, or constants that determine a key of every table."""
        if self.select.args.get("group"):
            return False
        if any(node.find_ancestor(exp.Order, exp.Select) is self.select for node in self.own(exp.AggFunc)):
            return True
        return self.rows_determined(set())

    def reduce_group(self) -> None:
        group = self.select.args.get("group")
        if not group:
            return
        keys = sorted(group.expressions, key=lambda key: key.sql())
        for key in reversed(list(keys)):
            others = [other for other in keys if other is not key]
            places = {self.place(other) for other in others} - {None}
            if others and self.place(key) in self.determined(places):
                keys = others
        group.set("expressions", keys)
        if self.rows_determined(self.group_places()) and not self.own(exp.AggFunc) and not self.select.args.get("having"):
            self.select.set("group", None)

    def reduce_aggregates(self) -> None:
        determined = self.determined(self.group_places())
        for node in self.own(exp.AggFunc):
            place = self.place(_argument(node))
            if isinstance(node, exp.Count) and place:
                if isinstance(node.this, exp.Distinct) and self.rows_determined(self.group_places() | {place}):
                    node.set("this", _argument(node))
                if not isinstance(node.this, exp.Distinct) and self.never_null(place):
                    node.set("this", exp.Star())
            elif isinstance(node, (exp.Min, exp.Max)) and place:
                node.set("this", _argument(node))
                if isinstance(node, exp.Max) and place in determined:
                    node.replace(exp.Min(this=node.this))

    def reduce_having(self) -> None:
        having = self.select.args.get("having")
        if not having:
            return
        parts = operands(simplify(having.this, self.found), exp.And)
        if self.select.args.get("group"):
            parts = [part for part in parts if not holds_in_every_group(part)]
        self.select.set("having", exp.Having(this=joined(exp.And, parts)) if parts else None)

    def reduce_distinct(self) -> None:
        if not self.select.args.get("distinct"):
            return
        limit, order = self.select.args.get("limit"), self.select.args.get("order")
        texts = {item.unalias().sql() for item in self.select.expressions} | {i.alias for i in self.select.expressions}
        idle = self.one_row() or _duplicates_ignored(self.select)
        if self.select.args.get("group"):
            determined = self.determined(self.shown())
            idle = idle or all(key.sql() in texts or self.place(key) in determined for key in self.keys())
        else:
            idle = idle or self.rows_determined(self.shown())
        if limit and limit.expression.name == "1" and not self.select.args.get("offset"):
            idle = idle or all(term.this.sql() in texts for term in (order.expressions if order else ()))
        if idle:
            self.select.set("distinct", None)

    def reduce_order(self) -> None:
        order = self.select.args.get("order")
        if not order:
            return
        if self.one_row() or (not self.select.args.get("limit") and _order_forgotten(self.select)):
            self.select.set("order", None)
            return
        known: set[Place] = set()
        kept = []
        for term in order.expressions:
            place = self.place(term.this)
            if place is None or place not in self.determined(known):
                kept.append(term)
            known |= {place} - {None}
        if kept:
            order.set("expressions", kept)
        else:
            self.select.set("order", None)

    def reduce_limit(self) -> None:
        limit = self.select.args.get("limit")
        if not limit or self.select.args.get("offset") or not limit.expression.name.isdecimal():
            return
        if int(limit.expression.name) >= 1 and (self.one_row() or _user(self.select)[1] in ("exists", "value")):
            self.select.set("limit", None)


def _user(query: exp.Expression) -> tuple[exp.Expression | None, str]:
    """What uses a query, and as what: query (the list of IN), exists, side (of a set operation), table, value, or top."""
    inner, user = query, query.parent
    while isinstance(user, (exp.Subquery, exp.Paren)) and not user.args.get("limit"):
        inner, user = user, user.parent
    if user is None:
        return None, "top"
    if isinstance(user, exp.In) and inner.arg_key == "query":
        return user, "query"
    if isinstance(user, exp.Exists):
        return user, "exists"
    if isinstance(user, exp.SetOperation):
        return user, "side"
    return user, "table" if isinstance(user, (exp.From, exp.Join, exp.CTE, exp.Subquery)) else "value"


def _order_forgotten(query: exp.Expression) -> bool:
    """Whether the order of a query's rows changes nothing: in IN and EXISTS, and in FROM of what keeps every row."""
    user, role = _user(query)
    while role == "table" and isinstance(user, (exp.From, exp.Join)) and not user.parent.args.get("limit"):
        user, role = _user(user.parent)
        if role == "top":
            return True
    return role in ("query", "exists")


def _duplicates_ignored(query: exp.Expression) -> bool:
    """Whether repeated rows of a query change nothing where it is used."""
    if query.args.get("limit"):
        return False
    user, role = _user(query)
    if role == "side":
        return bool(user.args.get("distinct")) or not isinstance(user, exp.Union) or _duplicates_ignored(user)
    return role in ("query", "exists")


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
