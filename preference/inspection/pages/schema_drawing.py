"""A schema as a drawing: every table a box, every foreign key a line from its column to the one that it names."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from markupsafe import Markup
from sqlglot import ErrorLevel, exp, parse
from sqlglot.errors import SqlglotError

from preference.report_page.text import visible
from reward.tokens import tokenize, unquote

MOST_TABLES = 40
MOST_COLUMNS = 40  # of one table
LONGEST_NAME = 26  # characters of a name in the drawing; its tooltip holds more
LONGEST_SCHEMA = 60_000  # characters of DDL that are parsed
_ROW, _HEAD, _GAP_X, _GAP_Y, _CHARACTER, _PAD = 20, 26, 64, 22, 7.3, 10
_SHEET = 1080  # width that boxes without links are laid out in


class Column(NamedTuple):
    """A column as declared; `key` where it belongs to the primary key."""

    name: str
    type: str
    key: bool


class Table(NamedTuple):
    """A table and its links: (own column, other table, its column or "")."""

    name: str
    columns: list[Column]
    links: list[tuple[str, str, str]]


class Box(NamedTuple):
    """A table's place on the sheet, in pixels."""

    table: Table
    x: float
    y: float
    width: float
    height: float


@lru_cache(64)  # a question's pairs share one, and reading a large one takes a good part of a second
def read_tables(context: str | None) -> list[Table]:
    """The CREATE TABLE statements of a text; [] where there is none that can be read."""
    if not context or len(context) > LONGEST_SCHEMA:
        return []
    try:
        statements = parse(context, dialect="sqlite", error_level=ErrorLevel.IGNORE)
    except (SqlglotError, RecursionError):
        return []
    tables = []
    for statement in statements:
        if isinstance(statement, exp.Create) and isinstance(statement.this, exp.Schema):
            tables.append(_read_table(statement.this))
    return tables[:MOST_TABLES]


def described(tables: list[dict]) -> list[Table]:
    """The tables that `rerun.schema_of` found in a database."""
    return [Table(table["name"], [Column(column["name"], column["type"] or "", column["key"])
                                  for column in table["columns"][:MOST_COLUMNS]], table["links"])
            for table in tables[:MOST_TABLES]]


def mentioned(*queries: str | None) -> set[str]:
    """Lower-cased names that queries hold, to set those columns and tables off in the drawing."""
    return {unquote(token).lower() for query in queries if query and isinstance(query, str) for token in tokenize(query[:LONGEST_SCHEMA])
            if token.kind in ("word", "double", "name")}


def draw(tables: list[Table], used: set[str]) -> Markup:
    """The drawing as SVG. A dot and bold type mark what `used` (lower-cased names) holds."""
    boxes = _place(tables)
    by_name = {box.table.name.lower(): box for box in boxes}
    links = [(box, column, by_name[other.lower()], target) for box in boxes for column, other, target in box.table.links
             if other.lower() in by_name]
    width = max(box.x + box.width for box in boxes) + 28
    height = max(box.y + box.height for box in boxes) + 2
    words = "; ".join(f"{box.table.name} with {', '.join(column.name for column in box.table.columns)}"
                      for box in boxes)
    words += "".join(f"; {box.table.name}.{column} refers to {other.table.name}" for box, column, other, _ in links)
    parts = [Markup('<svg class="schema" role="img" aria-label="{}" width="{:.0f}" height="{:.0f}" '
                    'viewBox="0 0 {:.0f} {:.0f}">').format(visible(words)[:2000], width, height, width, height)]
    parts += [_line(*link) for link in links]
    parts += [_box(box, used) for box in boxes]
    return Markup("").join([*parts, Markup("</svg>")])


def _read_table(schema: exp.Schema) -> Table:
    columns, links, keys = [], [], set()
    for item in schema.expressions:
        if isinstance(item, exp.Constraint):
            item = item.expressions[0] if item.expressions else item
        if isinstance(item, exp.ColumnDef):
            kinds = [constraint.args.get("kind") for constraint in item.args.get("constraints") or []]
            if any(isinstance(kind, exp.PrimaryKeyColumnConstraint) for kind in kinds):
                keys.add(item.name.lower())
            links += [(item.name, *_target(kind)) for kind in kinds if isinstance(kind, exp.Reference)]
            columns.append((item.name, item.args["kind"].sql() if item.args.get("kind") else ""))
        elif isinstance(item, exp.PrimaryKey):
            keys |= {part.name.lower() for part in item.expressions}
        elif isinstance(item, exp.ForeignKey) and item.args.get("reference"):
            own = item.expressions[0].name if item.expressions else ""
            links.append((own, *_target(item.args["reference"])))
    drawn = [Column(name, kind, name.lower() in keys) for name, kind in columns[:MOST_COLUMNS]]
    return Table(schema.this.name, drawn, links)


def _target(reference: exp.Reference) -> tuple[str, str]:
    """(table, first column or "") that a REFERENCES clause names."""
    target = reference.this
    if isinstance(target, exp.Schema):
        return target.this.name, target.expressions[0].name if target.expressions else ""
    return target.name, ""


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _type(column: Column) -> str:
    return f"{_short(column.type).lower()} key".strip() if column.key else _short(column.type).lower()


def _size(table: Table) -> tuple[float, float]:
    longest = max([len(_short(table.name)) + 1,
                   *(len(_short(column.name)) + len(_type(column)) + 4 for column in table.columns)])
    return max(110.0, longest * _CHARACTER + 2 * _PAD), _HEAD + _ROW * len(table.columns) + 6


def _place(tables: list[Table]) -> list[Box]:
    """Linked tables in columns from left (referred to) to right (referring), the others in rows below them."""
    names = {table.name.lower() for table in tables}
    targets = {table.name.lower(): {other.lower() for _, other, _ in table.links} & names - {table.name.lower()}
               for table in tables}
    linked = {name for name, others in targets.items() if others} | set().union(*targets.values())
    depth = dict.fromkeys(linked, 0)
    for _ in range(min(len(linked), 6)):  # longest path from a table that refers to none; a circle stops growing at 6
        for name in linked:
            depth[name] = min(6, max((depth[other] + 1 for other in targets[name]), default=0))
    for name in sorted(linked, key=depth.get, reverse=True):  # as near as it can be to those that refer to it
        referring = [depth[other] for other in linked if name in targets[other]]
        depth[name] = max(depth[name], min(referring, default=0) - 1)
    boxes, x, bottom = [], 1.0, 0.0
    for level in sorted(set(depth.values())):
        members = [table for table in tables if depth.get(table.name.lower()) == level]
        y = 1.0
        for table in members:
            width, height = _size(table)
            boxes.append(Box(table, x, y, width, height))
            y += height + _GAP_Y
        bottom = max(bottom, y)
        x += max(_size(table)[0] for table in members) + _GAP_X
    x, y, row_height = 1.0, bottom + 1.0, 0.0
    for table in tables:
        if table.name.lower() in linked:
            continue
        width, height = _size(table)
        if x > 1 and x + width > _SHEET:
            x, y, row_height = 1.0, y + row_height + _GAP_Y, 0.0
        boxes.append(Box(table, x, y, width, height))
        x, row_height = x + width + _GAP_Y, max(row_height, height)
    return boxes


def _row_y(box: Box, column: str) -> float:
    """Middle of a column's row; the head's where the column is not named or not drawn."""
    for index, known in enumerate(box.table.columns):
        if known.name.lower() == column.lower():
            return box.y + _HEAD + _ROW * index + _ROW / 2 + 2
    return box.y + _HEAD / 2


def _line(box: Box, column: str, other: Box, target: str) -> Markup:
    start, end = _row_y(box, column), _row_y(other, target)
    if other.x + other.width < box.x:  # to the left: from this box's left edge to the other's right edge
        x, to = box.x, other.x + other.width
        path = f"M{x:.1f} {start:.1f}C{x - 34:.1f} {start:.1f} {to + 34:.1f} {end:.1f} {to:.1f} {end:.1f}"
    else:  # the same column of boxes, or a circle: out and back on the right
        x, to = box.x + box.width, other.x + other.width
        out = max(x, to) + 30
        path = f"M{x:.1f} {start:.1f}C{out:.1f} {start:.1f} {out:.1f} {end:.1f} {to:.1f} {end:.1f}"
    return Markup('<path class="link" d="{}"><title>{} refers to {}</title></path>'
                  '<circle class="end" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(
        path, visible(f"{box.table.name}.{column}")[:200], visible(f"{other.table.name}.{target}".rstrip("."))[:200],
        to, end)


def _box(box: Box, used: set[str]) -> Markup:
    table = box.table
    parts = [Markup('<g class="box{}"><title>{}</title>'
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="6"/>'
                    '<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<text class="name" x="{:.1f}" y="{:.1f}">{}</text>')
             .format(" used" if table.name.lower() in used else "", visible(table.name)[:200], box.x, box.y, box.width,
                     box.height, box.x, box.x + box.width, box.y + _HEAD, box.y + _HEAD, box.x + _PAD, box.y + 17.5,
                     _short(table.name))]
    for index, column in enumerate(table.columns):
        y = box.y + _HEAD + _ROW * index + 16
        is_used = column.name.lower() in used and table.name.lower() in used
        if is_used:
            parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(box.x + 6.5, y - 4))
        parts.append(Markup('<text class="column{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            " used" if is_used else "", box.x + _PAD + 4, y, _short(column.name)))
        parts.append(Markup('<text class="type" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
            box.x + box.width - _PAD, y, _type(column)))
    return Markup("").join([*parts, Markup("</g>")])
