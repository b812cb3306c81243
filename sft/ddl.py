"""Schemas as CREATE TABLE text: made from a SQLite file or from Spider's tables.json, and taken apart again."""

from __future__ import annotations

import re
import sqlite3
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sqlglot.dialects.sqlite import SQLite
from sqlglot.errors import TokenError
from sqlglot.tokens import Token, TokenType

_CONSTRAINT = re.compile(r"(PRIMARY|FOREIGN|UNIQUE|CHECK|CONSTRAINT)\b", re.IGNORECASE)
_QUOTED = r"""\"(?:[^\"]|\"\")+\"|'(?:[^']|'')+'|`[^`]+`|\[[^\]]+\]"""
_NAME = re.compile(rf"{_QUOTED}|\S+")
_NAMES = re.compile(rf"{_QUOTED}|[^\s,]+")  # of a list in parentheses
_TARGET = rf"\bREFERENCES\s+({_QUOTED}|[^\s(]+)\s*(?:\(([^)]*)\))?"
_INLINE = re.compile(_TARGET, re.IGNORECASE)
_FOREIGN = re.compile(rf"FOREIGN\s+KEY\s*\(([^)]*)\)\s*{_TARGET}", re.IGNORECASE)
# Spider's five column types, as types that give SQLite the affinity of the values.
SPIDER_TYPES = {"text": "TEXT", "number": "NUMERIC", "time": "TEXT", "boolean": "BOOLEAN", "others": "TEXT"}


class Table(NamedTuple):
    """One CREATE TABLE statement: its name as written and the text of what stands between its commas."""

    name: str
    columns: list[str]
    constraints: list[str]

    def statement(self) -> str:
        """The table as one line of DDL."""
        return f"CREATE TABLE {self.name} ({', '.join([*self.columns, *self.constraints])})"


@lru_cache(maxsize=None)
def identifier(name: str) -> str:
    """A name as SQLite needs it in a statement: bare where SQLite takes it bare, else in double quotes.

    >>> identifier("age"), identifier("order"), identifier("first name")
    ('age', '"order"', '"first name"')
    """
    if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        connection = sqlite3.connect(":memory:")
        try:
            connection.execute(f"CREATE TABLE {name} ({name} INTEGER)")
            return name
        except sqlite3.Error:
            pass  # a reserved word
        finally:
            connection.close()
    return '"' + name.replace('"', '""') + '"'


def _statement(table: str, columns: list[tuple[str, str]], primary: list[str], foreign: list[tuple]) -> str:
    """One CREATE TABLE line; `foreign` holds (columns, other table, its columns)."""
    parts = []
    for name, type_name in columns:
        key = " PRIMARY KEY" if primary == [name] else ""
        parts.append(f"{identifier(name)} {type_name}".rstrip() + key)
    constraints = []
    if len(primary) > 1:
        constraints.append(f"PRIMARY KEY ({_names(primary)})")
    for mine, other, theirs in foreign:
        constraints.append(f"FOREIGN KEY ({_names(mine)}) REFERENCES {identifier(other)}({_names(theirs)})")
    return Table(identifier(table), parts, list(dict.fromkeys(constraints))).statement()


def _names(names: list[str]) -> str:
    return ", ".join(identifier(name) for name in names)


def from_sqlite(path: Path) -> str:
    """The schema of a SQLite file as CREATE TABLE statements, one a line: columns with types, primary and foreign keys.

    The file is opened read-only and its own DDL (comments, defaults, checks, actions) is left behind.
    Raises ValueError where it cannot be read or holds no table.
    """
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", errors="replace")
    try:
        listing = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL %'"
        tables = [name for (name,) in connection.execute(f"{listing} ORDER BY rowid")]
        lines = [_table_from_sqlite(connection, table) for table in tables]
    except sqlite3.Error as error:
        raise ValueError(f"{path.name} is not a readable SQLite database: {error}") from None
    finally:
        connection.close()
    if not lines:
        raise ValueError(f"{path.name} holds no table")
    return ";\n".join(lines)


def _primary_key(connection: sqlite3.Connection, table: str) -> list[str]:
    rows = connection.execute("SELECT name, pk FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,))
    return [name for name, _ in rows]


def _table_from_sqlite(connection: sqlite3.Connection, table: str) -> str:
    info = "SELECT name, type FROM pragma_table_xinfo(?) WHERE hidden IN (0, 2, 3) ORDER BY cid"  # 2 and 3: generated columns
    columns = [(name, " ".join(type_name.split()).removesuffix("GENERATED ALWAYS").rstrip())
               for name, type_name in connection.execute(info, (table,))]
    links: dict[int, tuple[list, str, list]] = {}
    listing = 'SELECT id, "table", "from", "to" FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq'
    for number, other, mine, theirs in connection.execute(listing, (table,)).fetchall():
        link = links.setdefault(number, ([], other, []))
        link[0].append(mine)
        link[2].append(theirs)
    foreign = []
    for mine, other, theirs in links.values():
        # A reference that names no column means the other table's primary key.
        theirs = _primary_key(connection, other) if None in theirs else theirs
        if theirs:
            foreign.append((mine, other, theirs))
    return _statement(table, columns, _primary_key(connection, table), foreign)


def from_spider_tables(entry: dict) -> str:
    """The schema of one entry of Spider's tables.json as CREATE TABLE statements, one a line.

    Source: the layout of tables.json, where a column is [index of its table, name] and keys are indices of columns.
    """
    tables, columns = entry["table_names_original"], entry["column_names_original"]
    types = [SPIDER_TYPES.get(type_name, "TEXT") for type_name in entry["column_types"]]
    groups = [key if isinstance(key, list) else [key] for key in entry["primary_keys"]]
    lines = []
    for index, table in enumerate(tables):
        if table.lower().startswith("sqlite_"):
            continue  # SQLite's own: it lets nobody make it
        mine = [(name, types[number]) for number, (owner, name) in enumerate(columns) if owner == index]
        primary = [columns[number][1] for group in groups for number in group if columns[number][0] == index]
        foreign = [
            ([columns[source][1]], tables[columns[target][0]], [columns[target][1]])
            for source, target in entry["foreign_keys"]
            if columns[source][0] == index
        ]
        lines.append(_statement(table, mine, primary, foreign))
    return ";\n".join(lines)


def split_tables(context: str) -> list[Table] | None:
    """The CREATE TABLE statements of a context, taken apart at their top-level commas, without comments; None where there is
    more, or a part is empty.

    >>> split_tables("CREATE TABLE a (x DEC(2, 1), y TEXT, PRIMARY KEY (x))")
    [Table(name='a', columns=['x DEC(2, 1)', 'y TEXT'], constraints=['PRIMARY KEY (x)'])]
    """
    try:
        tokens = SQLite().tokenize(context)
    except TokenError:
        return None
    tables, index = [], 0
    while index < len(tokens):
        if tokens[index].token_type == TokenType.SEMICOLON:
            index += 1
            continue
        words = [token.text.upper() for token in tokens[index : index + 2]]
        if words != ["CREATE", "TABLE"] or index + 3 >= len(tokens) or tokens[index + 3].text != "(":
            return None
        name = tokens[index + 2]
        parts, depth, index, start = [], 1, index + 4, index + 4
        while depth:
            if index == len(tokens):
                return None
            token = tokens[index]
            depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(token.token_type, 0)
            if depth == 0 or (depth == 1 and token.token_type == TokenType.COMMA):
                if start == index:
                    return None
                parts.append(_text_of(tokens[start:index], context))
                start = index + 1
            index += 1
        constraints = [part for part in parts if _CONSTRAINT.match(part)]
        columns = [part for part in parts if not _CONSTRAINT.match(part)]
        tables.append(Table(context[name.start : name.end + 1], columns, constraints))
    return tables


def _text_of(tokens: list[Token], context: str) -> str:
    """What stands in `context` from the first to the last token, with a space in place of each comment."""
    text = ""
    for before, token in zip([None, *tokens[:-1]], tokens, strict=True):
        between = context[before.end + 1 : token.start] if before else ""
        text += (" " if between.strip() else between) + context[token.start : token.end + 1]
    return text


def compact_schema(context: str) -> str:
    """CREATE TABLE text as `table(column, ...)` lines and `a.x = b.y` links; text that is more than that stays as it is.

    >>> compact_schema("CREATE TABLE a (id INT PRIMARY KEY, b_id INT, FOREIGN KEY (b_id) REFERENCES b(id))")
    'a(id, b_id)\\na.b_id = b.id'
    >>> compact_schema("CREATE TABLE a (x INT, y INT, FOREIGN KEY (x, y) REFERENCES b(u, v))")
    'a(x, y)\\na.x = b.u\\na.y = b.v'
    """
    tables = split_tables(context)
    if not tables:
        return context
    lines, links = [], []
    for table in tables:
        names = [_NAME.match(column).group(0) for column in table.columns]
        lines.append(f"{table.name}({', '.join(names)})")
        for name, column in zip(names, table.columns, strict=True):
            if inline := _INLINE.search(column):
                links += _links(table.name, name, *inline.groups())
        for constraint in table.constraints:
            if foreign := _FOREIGN.search(constraint):
                links += _links(table.name, *foreign.groups())
    return "\n".join([*lines, *links])


def _links(table: str, mine: str, other: str, theirs: str | None) -> list[str]:
    """A link a column; without `theirs`, which stands for the other table's primary key, the table alone."""
    columns = _NAMES.findall(mine)
    targets = [f"{other}.{name}" for name in _NAMES.findall(theirs)] if theirs else [other] * len(columns)
    return [f"{table}.{column} = {target}" for column, target in zip(columns, targets)]
