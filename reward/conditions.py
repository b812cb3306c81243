"""What gold asks of its rows: literals by column, columns that share values, and the conditions of each SELECT."""

from dataclasses import dataclass, field

from sqlglot import exp

from reward.dates import compared_with_dates, dates_for, is_date, is_named_date, may_hold_dates, read_as_date
from reward.names import Names, Place
from reward.schema import ColumnKey, Schema

COMPARISONS = {exp.EQ: "=", exp.NEQ: "<>", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<=", exp.Like: "like"}
# What x is more than v where x - 1, x + 1, x * 1 or x / 1 is v.
_SOLVED = {exp.Sub: 1, exp.Add: -1, exp.Mul: 0, exp.Div: 0}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "<>": "<>"}
_NEGATED = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "like": "not like", "in": "not in"}
_NEGATED |= {"between": "not between", "null": "not null"} | {"not like": "like", "not in": "in"}


@dataclass
class Condition:
    """`place` `operator` `values`, for example ("t1", "age") ">" [30]."""

    place: Place
    operator: str
    values: list


@dataclass
class Scope:
    """One SELECT: its tables by alias in the order of FROM, its conditions joined by AND, its equal places, what it
    shows, its groups, the sizes (`counts`) and other aggregates (`totals`: column, number) that HAVING compares, and
    the number of rows after which LIMIT cuts (0: nowhere). `first`: the column of ORDER BY, and whether the greatest
    value comes first.

    `choices`: for each OR the conditions of its first branch, which stand in `conditions`, and of the other one.
    `links`: (place, index of a scope, wanted): the place's value must be, or not be, among those of a subquery.
    `output`: the place of the column that an outer query links to. `twin`: for a side of a set operation the index of
    the other side and the pairs of places that both show.
    """

    tables: dict[str, str] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)
    equal: list[tuple[Place, Place]] = field(default_factory=list)
    choices: list[tuple[list[Condition], list[Condition]]] = field(default_factory=list)
    links: list[tuple[Place, int, bool]] = field(default_factory=list)
    output: Place | None = None
    twin: tuple[int, list[tuple[Place, Place]]] | None = None
    shown: list[Place] = field(default_factory=list)
    groups: list[Place] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    totals: list[tuple[Place, int | float]] = field(default_factory=list)
    cut: int = 0
    first: list[tuple[Place, bool]] = field(default_factory=list)


@dataclass
class Reading:
    """All that the databases are made from: scopes, literals by column, pairs of columns that share values, numeric
    columns.

    `grouped`: columns of GROUP BY. `determining`: columns that must settle others of their table because gold groups
    by them and shows the others bare; `keys`: those of them that must be unique, because the group is made by a join.
    `dated`: columns that date functions read as dates, or that are compared with a whole date.
    `single`: values that one row may have, because gold takes the subquery `WHERE column = value` for one value and
    SQLite would take whichever row comes first.
    """

    scopes: list[Scope] = field(default_factory=list)
    literals: dict[ColumnKey, list] = field(default_factory=dict)
    shared: list[tuple[ColumnKey, ColumnKey]] = field(default_factory=list)
    numeric: set[ColumnKey] = field(default_factory=set)
    grouped: set[ColumnKey] = field(default_factory=set)
    determining: dict[ColumnKey, set[str]] = field(default_factory=dict)
    keys: set[ColumnKey] = field(default_factory=set)
    dated: set[ColumnKey] = field(default_factory=set)
    single: list[tuple[ColumnKey, object]] = field(default_factory=list)


def read_conditions(tree: exp.Expression | None, schema: Schema) -> Reading:
    """Reads gold's tree against its schema. A part that is not understood is left out: random rows stand in for it."""
    reading = Reading()
    if tree is None:
        return reading
    selects = list(tree.find_all(exp.Select))
    reader = _Reader(schema, reading, {id(select): index for index, select in enumerate(selects)})
    for call in tree.find_all(exp.TimeToStr, exp.Date, exp.Anonymous):
        value = read_as_date(call)
        key = reader.key(value) if isinstance(value, exp.Column) else None
        if key and (may_hold_dates(schema.column(key)) or is_named_date(schema.column(key))):
            reading.dated.add(key)
    reader.certain = set(reading.dated)
    for key in map(reader.key, compared_with_dates(tree)):
        if key and may_hold_dates(schema.column(key)):
            reading.dated.add(key)
    reading.scopes += [reader.scope(select) for select in selects]
    for index, place in reader.outputs.items():
        reading.scopes[index].output = place
    for operation in tree.find_all(exp.SetOperation):
        left, right = operation.left, operation.right
        if isinstance(left, exp.Select) and isinstance(right, exp.Select):
            pairs = []
            for mine, other in zip(left.expressions, right.expressions):
                reader.share(reader.key(mine), reader.key(other))
                places = reader.place(mine.unalias()), reader.place(other.unalias())
                if all(places) and places[0][0] is left and places[1][0] is right:
                    pairs.append((places[0][1], places[1][1]))
            if pairs:
                reading.scopes[reader.indices[id(left)]].twin = (reader.indices[id(right)], pairs)
    return reading


class _Reader(Names):
    """Fills a Reading; `indices` numbers the SELECTs."""

    def __init__(self, schema: Schema, reading: Reading, indices: dict[int, int]):
        super().__init__(schema)
        self.reading = reading
        self.indices = indices
        self.outputs: dict[int, Place] = {}
        self.certain: set[ColumnKey] = set()  # columns on which gold calls a date function

    def share(self, left: ColumnKey | None, right: ColumnKey | None) -> None:
        if left and right and left != right:
            self.reading.shared.append((left, right))

    def scope(self, select: exp.Select) -> Scope:
        scope = Scope()
        scope.tables.update(self.tables(select))
        predicates = [join.args["on"] for join in select.args.get("joins") or [] if join.args.get("on")]
        predicates += [select.args["where"].this] if select.args.get("where") else []
        for predicate in predicates:
            for part in conjuncts(predicate):
                self.read(part, select, scope, False)
        for join in select.args.get("joins") or []:
            for column in join.args.get("using") or []:
                name = column.name.lower()
                places = [(a, name) for a, t in scope.tables.items() if name in self.schema.tables[t].columns]
                for left, right in zip(places, places[1:]):
                    scope.equal.append((left, right))
                    self.share((scope.tables[left[0]], left[1]), (scope.tables[right[0]], right[1]))
        for expression in select.args["group"].expressions if select.args.get("group") else []:
            found = self.place(expression)
            if found and found[0] is select:
                scope.groups.append(found[1])
                self.reading.grouped.add((found[2], found[1][1]))
        if scope.groups:
            self.read_dependencies(select, scope)
        if select.args.get("having"):
            for part in select.args["having"].find_all(*COMPARISONS, exp.Between):
                for key in ("expression", "low", "high"):
                    self.read_total(part.this, literal_value(part.args.get(key)), select, scope)
        scope.shown += [
            found[1]
            for item in select.expressions
            if (found := self.place(item.unalias())) and found[0] is select and found[1] not in scope.shown
        ]
        for clause in ("limit", "offset"):
            value = literal_value(select.args[clause].expression) if select.args.get(clause) else None
            scope.cut += value if isinstance(value, int) and value > 0 else 0
        for term in select.args["order"].expressions[:1] if select.args.get("order") else []:
            if (found := self.place(term.this)) and found[0] is select:
                scope.first.append((found[1], bool(term.args.get("desc"))))
        for function in select.find_all(exp.Sum, exp.Avg):
            key = self.key(function.this)
            if key:
                self.reading.numeric.add(key)
        for term in select.find_all(exp.Add, exp.Sub, exp.Mul, exp.Div):
            # Small numbers, so that sums and differences meet what they are compared with.
            for side in (term.this, term.expression):
                self.remember(self.key(side), [1, 2])
            if isinstance(term.parent, exp.EQ):
                other = term.parent.this if term.parent.expression is term else term.parent.expression
                self.remember(self.key(other) if isinstance(other, exp.Column) else None, [2, 3])
        return scope

    def read_total(self, aggregate: exp.Expression, value: object, select: exp.Select, scope: Scope) -> None:
        """What HAVING compares an aggregate with."""
        if isinstance(aggregate, exp.Count) and isinstance(value, int):
            scope.counts.append(value)
        elif isinstance(value, (int, float)) and aggregate is not None:
            for column in aggregate.find_all(exp.Column):
                self.remember(self.key(column), [value])
                if (found := self.place(column)) and found[0] is select:
                    scope.totals.append((found[1], value))

    def read_dependencies(self, select: exp.Select, scope: Scope) -> None:
        """Columns shown bare beside GROUP BY have one value a group only if a column of their table settles them."""
        settled = set(scope.groups)
        for _ in scope.equal:
            settled |= {place for pair in scope.equal if settled & set(pair) for place in pair}
        for expression in select.expressions:
            found = self.place(expression.unalias())
            if not found or found[0] is not select or found[1] in settled:
                continue
            for alias, column in sorted(settled):
                if alias == found[1][0]:
                    key = (found[2], column)
                    self.reading.determining.setdefault(key, set()).add(found[1][1])
                    partners = {p for pair in scope.equal if (alias, column) in pair for p in pair if p[0] != alias}
                    refers = any(self.schema.tables[scope.tables[other]].is_key(name) for other, name in partners)
                    if len(scope.tables) > 1 and not refers:
                        self.reading.keys.add(key)

    def remember(self, key: ColumnKey | None, values: list) -> None:
        if key is None:
            return
        known = self.reading.literals.setdefault(key, [])
        known += [value for value in values if value not in known]
        if any(isinstance(value, (int, float)) for value in values):
            self.reading.numeric.add(key)

    def read(self, part: exp.Expression, select: exp.Select, scope: Scope, negated: bool) -> None:
        """Takes one predicate into the scope; of an OR the first branch, which is enough for a row to satisfy it."""
        part = part.unnest()
        if isinstance(part, exp.Not):
            return self.read(part.this, select, scope, not negated)
        if isinstance(part, (exp.Or, exp.And)):
            branches = scope, scope
            if isinstance(part, exp.Or) != negated:
                branches = Scope(scope.tables), Scope(scope.tables)
            self.read(part.left, select, branches[0], negated)
            self.read(part.right, select, branches[1], negated)
            if branches[0] is not scope:
                scope.choices += [*branches[0].choices, (branches[0].conditions, branches[1].conditions)]
                scope.conditions += branches[0].conditions
                scope.equal += branches[0].equal
                scope.links += branches[0].links
            return None
        operator, values, column = None, [], part.this
        if type(part) in COMPARISONS:
            negated = negated != bool(part.args.get("negate"))  # NOT LIKE is one node
            operator = COMPARISONS[type(part)]
            other = part.expression
            if literal_value(column) is not None and operator in _MIRRORED:
                column, other, operator = other, column, _MIRRORED[operator]
            value = literal_value(other)
            values = [value]
            if value is None:
                return self.relate(column, other, operator, select, scope, negated)
        elif isinstance(part, exp.Between):
            operator, values = "between", [literal_value(part.args["low"]), literal_value(part.args["high"])]
            if values.count(None) == 1 and not negated:
                operator = ">=" if values[1] is None else "<="
                values.remove(None)
        elif isinstance(part, exp.In) and part.args.get("query") is not None:
            return self.relate(column, part.args["query"], "in", select, scope, negated)
        elif isinstance(part, exp.In):
            operator, values = "in", [literal_value(value) for value in part.expressions]
        elif isinstance(part, exp.Is) and isinstance(part.expression, exp.Null):
            operator = "null"
        if operator is None or any(value is None for value in values) or column is None:
            return None
        for inner in [column] if isinstance(column, exp.Column) else column.find_all(exp.Column):
            self.remember(self.key(inner), self.dates_of(self.key(inner), values, column, operator))
        if type(column) in _SOLVED and not isinstance(values[0], str):
            # One side set to 1 settles the other.
            second = self.place(column.expression)
            if second and second[0] is select:
                scope.conditions.append(Condition(second[1], "=", [1]))
                column, values = column.this, [value + _SOLVED[type(column)] for value in values]
        found = self.place(column)
        if found and found[0] is select:
            scope.conditions.append(Condition(found[1], _NEGATED[operator] if negated else operator, values))
        return None

    def dates_of(self, key: ColumnKey | None, values: list, compared: exp.Expression, operator: str) -> list:
        """The dates that a column of dates has for what a part of it is compared with; other columns' values as they are."""
        if key is None or (isinstance(compared, exp.Column) and operator != "like"):
            return values
        dates = key in self.reading.dated or is_date(self.schema.column(key))
        return dates_for(values, compared, key in self.certain) if dates else values

    def relate(self, left, right, operator: str, select: exp.Select, scope: Scope, negated: bool) -> None:
        """A comparison of a column with another column or with the first column of a subquery."""
        inner = right.unnest() if isinstance(right, (exp.Subquery, exp.Paren)) else right
        while isinstance(inner, exp.SetOperation):
            inner = inner.left.unnest()
        if isinstance(inner, exp.Select):
            projected = inner.expressions[0].unalias()
            column = projected if isinstance(projected, exp.Column) else projected.find(exp.Column)
            mine, output = self.place(left), self.place(column)
            self.share(self.key(left), self.key(column))
            if operator != "in" and inner.args.get("where") and not projected.find(exp.AggFunc):
                for part in conjuncts(inner.args["where"].this):
                    if isinstance(part, exp.EQ) and self.key(part.this) and literal_value(part.expression) is not None:
                        self.reading.single.append((self.key(part.this), literal_value(part.expression)))
            if mine and output and mine[0] is select and output[0] is inner and operator in ("=", "in"):
                scope.links.append((mine[1], self.indices[id(inner)], not negated))
                self.outputs[self.indices[id(inner)]] = output[1]
            return
        self.share(self.key(left), self.key(right))
        mine, other = self.place(left), self.place(right)
        if mine and other and operator == "=" and not negated and mine[0] is other[0] is select:
            scope.equal.append((mine[1], other[1]))


def conjuncts(predicate: exp.Expression) -> list[exp.Expression]:
    """The parts that AND joins."""
    predicate = predicate.unnest()
    if isinstance(predicate, exp.And):
        return conjuncts(predicate.left) + conjuncts(predicate.right)
    return [predicate]


def literal_value(node: exp.Expression | None) -> int | float | str | None:
    """The Python value of a literal, with its sign; None for anything else."""
    if isinstance(node, exp.Paren):
        return literal_value(node.this)
    if isinstance(node, exp.Neg):
        value = literal_value(node.this)
        return -value if isinstance(value, (int, float)) else None
    if not isinstance(node, exp.Literal):
        return None
    if node.is_string:
        return node.this
    try:
        return int(node.this)
    except ValueError:
        return float(node.this)
