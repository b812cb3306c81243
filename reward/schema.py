"""The schema of a database as SQLite itself reads it: tables, columns, declared and inferred keys, text columns that
hold numbers.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from reward.tokens import tokenize, unquote

ColumnKey = tuple[str, str]
"""(table, column), both lower-cased."""

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)\s*")
_LABELS = ("name", "title", "full_name", "fullname", "label")


@dataclass
class Column:
    """`samples`: distinct values found in a real database; empty where there is only a schema."""

    name: str
    declared: str
    required: bool = False
    samples: list = field(default_factory=list)

    @cached_property
    def affinity(self) -> str:
        """SQLite's rule for declared types: integer, text, blob, real or numeric."""
        declared = self.declared.upper()
        if "INT" in declared:
            return "integer"
        if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
            return "text"
        if "BLOB" in declared or not declared:
            return "blob"
        if any(word in declared for word in ("REAL", "FLOA", "DOUB")):
            return "real"
        return "numeric"


@dataclass
class Table:
    """`keys`: column sets that are declared unique; `foreign_keys`: (column, parent table, parent column),
    lower-cased.
    """

    name: str
    columns: dict[str, Column]
    keys: list[tuple[str, ...]]
    foreign_keys: list[tuple[str, str, str]]

    def inferred_key(self) -> str | None:
        """The column that looks like this table's key although none is declared: id, <table>_id, <table>id."""
        if self.keys:
            return None
        table = self.name.lower().rstrip("s")
        for name in self.columns:
            plain = name.replace("_", "")
            if name == "id" or plain in (table.replace("_", "") + "id", self.name.lower().replace("_", "") + "id"):
                return name
        return None

    def is_key(self, column: str) -> bool:
        return (column,) in self.keys or column == self.inferred_key()

    def labels(self) -> list[str]:
        """Text columns that usually name one row: name, title, <table>_name."""
        table = self.name.lower()
        return [
            name
            for name, column in self.columns.items()
            if column.affinity == "text"
            and (name in _LABELS or name in (f"{table}_name", f"{table}_title", f"{table}name"))
        ]


@dataclass
class Schema:
    """Tables by lower-cased name, and the statements that make them."""

    ddl: list[str]
    tables: dict[str, Table]

    def column(self, key: ColumnKey) -> Column:
        return self.tables[key[0]].columns[key[1]]


def read_schema(description: tuple) -> Schema:
    """Makes a Schema of what `reward.sandbox.Sandbox.describe` returns."""
    ddl, described = description
    tables = {}
    for name, columns, foreign_keys, unique, samples in described:
        keys = [tuple(column.lower() for column in columns_) for columns_ in unique if all(columns_)]
        primary = tuple(column.lower() for column, _, _, position in columns if position)
        if primary and primary not in keys:
            keys.insert(0, primary)
        tables[name.lower()] = Table(
            name,
            {
                column.lower(): Column(column, declared, required or bool(position), samples.get(column, []))
                for column, declared, required, position in columns
            },
            keys,
            [(child.lower(), parent.lower(), (target or "").lower()) for child, parent, target in foreign_keys],
        )
    for table in tables.values():
        table.foreign_keys = [
            (child, parent, target or _sole_key(tables.get(parent)))
            for child, parent, target in table.foreign_keys
            if parent in tables and (target or _sole_key(tables[parent])) in tables[parent].columns
        ]
    return Schema(list(ddl), tables)


def redeclare_numeric(schema: Schema, numeric: set[ColumnKey]) -> Schema:
    """The schema with those text columns declared NUMERIC that gold compares with numbers.

    A VARCHAR column would compare as text, and a right candidate that casts to a number would be rejected. Columns
    with samples stay as they are unless each of them reads as a number.
    """
    changed = {
        key
        for key in numeric
        if schema.column(key).affinity == "text" and all(map(_reads_as_number, schema.column(key).samples))
    }
    if not changed:
        return schema
    ddl = []
    for statement in schema.ddl:
        tokens = tokenize(statement)
        table = next((unquote(token).lower() for token, after in zip(tokens, tokens[1:]) if after.text == "("), "")
        for index in range(len(tokens) - 2, 0, -1):
            name, declared = tokens[index], tokens[index + 1]
            definition = name.depth == 1 and tokens[index - 1].text in ("(", ",")
            if definition and (table, unquote(name).lower()) in changed and declared.kind == "word":
                statement = statement[: declared.start] + "NUMERIC" + statement[declared.end :]
        ddl.append(statement)
    tables = {}
    for name, table in schema.tables.items():
        columns = {
            column: Column(old.name, "NUMERIC", old.required, old.samples) if (name, column) in changed else old
            for column, old in table.columns.items()
        }
        tables[name] = Table(table.name, columns, table.keys, table.foreign_keys)
    return Schema(ddl, tables)


def _reads_as_number(value: object) -> bool:
    return isinstance(value, (int, float)) or isinstance(value, str) and _NUMBER.fullmatch(value) is not None


def _sole_key(table: Table | None) -> str:
    return table.keys[0][0] if table is not None and table.keys and len(table.keys[0]) == 1 else ""
