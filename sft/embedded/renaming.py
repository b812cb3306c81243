"""The same invented database under other names, so that a model must read the schema instead of knowing it by heart."""

import random
import re
from dataclasses import replace

from sft.ddl import identifier
from sft.embedded.phrases import plural
from sft.embedded.schema import Column, Database, Table


def renamed(database: Database, number: int) -> Database:
    """The database with tables and columns named by other words that people use for them; `number` chooses which.

    Columns and tables change their order too (a table still stands below those that it refers to). Descriptions, words
    and the way values are drawn stay; the name becomes `bakery-2` for number 2.
    """
    chance = random.Random(f"{database.name}/names/{number}")
    camel = chance.random() < 0.3

    def written(words: str) -> str:
        parts = re.findall(r"[A-Za-z0-9]+", words.lower())
        return parts[0] + "".join(part.title() for part in parts[1:]) if camel else "_".join(parts)

    many = chance.random() < 0.5
    tables: dict[str, str] = {}
    for table in database.tables:
        nouns = [table.name, *((plural(noun) if many else noun) for noun in table.nouns)]
        tables[table.name] = _free([written(noun) for noun in nouns], set(tables.values()), chance)
    columns: dict[str, dict[str, str]] = {}
    for table in database.tables:
        names: dict[str, str] = {}
        for column in table.columns:
            names[column.name] = _free(
                [written(words) for words in _words(column, table)], {*names.values(), *tables.values()}, chance
            )
        columns[table.name] = names
    changed = [_renamed_table(table, tables, columns, chance) for table in database.tables]
    return replace(database, name=f"{database.name}-{number}", tables=tuple(_reordered(changed, chance)))


def _words(column: Column, table: Table) -> list[str]:
    """Names that a column might have: its own, what people call it, and both with the table's noun."""
    noun = table.nouns[0]
    if column.role == "key":
        return ["id", f"{noun} id", f"{noun} no", column.name]
    if column.role == "reference":
        return [f"{column.to} id", f"{column.words[0]} id", f"{column.words[-1]} ref", column.name]
    return [column.name, *column.words, f"{noun} {column.name}"]


def _free(candidates: list[str], taken: set[str], chance: random.Random) -> str:
    """One of the candidates that SQLite takes bare and that is not taken (whatever the case)."""
    used = {name.lower() for name in taken}
    free = [name for name in dict.fromkeys(candidates) if name.lower() not in used and identifier(name) == name]
    if free:
        return chance.choice(free)
    return next(name for count in range(2, 99) if (name := f"{candidates[-1]}_{count}").lower() not in used)


def _renamed_table(table: Table, tables: dict[str, str], columns: dict[str, dict], chance: random.Random) -> Table:
    mine = columns[table.name]
    changed = []
    for column in table.columns:
        values = dict(column.values)
        if column.role == "reference":
            values["key"] = columns[column.to][values["key"]]
        if "after" in values:
            values["after"] = mine[values["after"]]
        changed.append(replace(column, name=mine[column.name], to=tables.get(column.to, ""), values=values))
    link = table.link and (mine[table.link[0]], mine[table.link[1]], *table.link[2:])
    # A column whose values follow another's stays behind it.
    order = list(range(len(changed)))
    while True:
        chance.shuffle(order)
        place = {changed[index].name: position for position, index in enumerate(order)}
        if all(place[column.values["after"]] < place[column.name] for column in changed if "after" in column.values):
            return replace(table, name=tables[table.name], columns=tuple(changed[index] for index in order), link=link)


def _reordered(tables: list[Table], chance: random.Random) -> list[Table]:
    """The tables in another order, each below those it refers to."""
    ordered: list[Table] = []
    waiting = list(tables)
    while waiting:
        placed = {table.name for table in ordered}
        ready = [table for table in waiting
                 if all(column.to in placed | {table.name} for column in table.of_role("reference"))]
        ordered.append(chance.choice(ready))
        waiting.remove(ordered[-1])
    return ordered
