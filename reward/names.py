"""Which stored column a name in a query stands for, through aliases, derived tables and common table expressions."""

from sqlglot import exp

from reward.schema import ColumnKey, Schema

Place = tuple[str, str]
"""(alias in FROM, column), both lower-cased."""


class Names:
    """Resolves the columns of one tree. The sources of a SELECT are read once: ask before the tree is edited."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self._sources: dict[int, dict[str, exp.Expression]] = {}

    def sources(self, select: exp.Select) -> dict[str, exp.Expression]:
        """FROM and JOIN items of a SELECT by lower-cased alias."""
        if id(select) not in self._sources:
            items = [select.args["from_"].this] if select.args.get("from_") else []
            items += [join.this for join in select.args.get("joins") or []]
            self._sources[id(select)] = {item.alias_or_name.lower(): item for item in items}
        return self._sources[id(select)]

    def tables(self, select: exp.Select) -> dict[str, str]:
        """The stored tables among the sources of a SELECT, by alias."""
        sources = self.sources(select)
        return {alias: table for alias, item in sources.items() if (table := self.stored(item))}

    def place(self, column: exp.Expression | None) -> tuple[exp.Select, Place, str] | None:
        """(SELECT that binds the column, its place there, its table), or None where it is no column of a stored
        table.
        """
        if not isinstance(column, exp.Column):
            return None
        name, qualifier = column.name.lower(), column.table.lower()
        select = column.parent_select
        while select is not None:
            if isinstance(select, exp.Select):
                for alias, item in self.sources(select).items():
                    if qualifier and alias != qualifier:
                        continue
                    table = self.stored(item)
                    if table and name in self.schema.tables[table].columns:
                        return select, (alias, name), table
                    inner = self.projection(item, name)
                    if inner is not None:
                        return self.place(inner)
            select = select.parent_select
        return None

    def stored(self, item: exp.Expression) -> str | None:
        """The lower-cased name of a stored table, None for a derived one."""
        name = item.name.lower() if isinstance(item, exp.Table) else ""
        return name if name in self.schema.tables else None

    def projection(self, item: exp.Expression, name: str) -> exp.Expression | None:
        """The expression behind a column of a derived table or common table expression."""
        query = item.this if isinstance(item, exp.Subquery) else None
        if isinstance(item, exp.Table):
            for cte in item.root().find_all(exp.CTE):
                if cte.alias.lower() == item.name.lower():
                    query = cte.this
        if not isinstance(query, exp.Select):
            return None
        return next((e.unalias() for e in query.expressions if e.alias_or_name.lower() == name), None)

    def key(self, expression: exp.Expression | None) -> ColumnKey | None:
        """(table, column) of a column, alias or not."""
        found = self.place(expression.unalias()) if expression is not None else None
        return (found[2], found[1][1]) if found else None
