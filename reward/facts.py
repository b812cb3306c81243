"""What is known of the rows of one SELECT: equal columns, constants, what determines them, and what is never NULL."""

from collections.abc import Callable

from sqlglot import exp

from reward.conditions import literal_value
from reward.names import Names, Place
from reward.predicates import COMPARISONS, joined


class Facts:
    """Reads one SELECT on its way into normal form; the prover changes the SELECT and what stands here.

    `conjuncts`: the parts of WHERE, joined by AND; `equal`: pairs of columns that are equal in every row; `inner`:
    whether all joins are inner ones, with their conditions among the conjuncts; `found`: `Names.place` of columns by
    id.
    """

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

    def place(self, node: exp.Expression | None) -> Place | None:
        """The place of a column of this SELECT's own stored tables."""
        found = self.found.get(id(node)) if isinstance(node, exp.Column) else None
        return found[1] if found and found[0] is self.select else None

    def own(self, kind: type | tuple) -> list[exp.Expression]:
        """Nodes of the kind that belong to this SELECT and not to one inside it."""
        return [node for node in self.select.find_all(kind) if node.parent_select is self.select]

    def write_where(self) -> None:
        self.select.set("where", exp.Where(this=joined(exp.And, self.conjuncts)) if self.conjuncts else None)

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
