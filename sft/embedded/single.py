"""Questions on one table without aggregates: projections, filters, sorting and limits."""

from sft.embedded import phrases
from sft.embedded.conditions import ADJECTIVE, either, like, literal, missing, noun_phrase, where
from sft.embedded.grammar import Draft, World, named
from sft.embedded.schema import Column, Table


def _show(world: World, table: Table, columns: list[Column], rows: str, clause: str, used: list[Column]) -> Draft:
    question = phrases.show([world.word(c) for c in columns], rows, world.rng)
    names = ", ".join(c.name for c in columns)
    return Draft(question, f"SELECT {names} FROM {table.name}{clause}", (*columns, *used))


def all_rows(world: World) -> Draft | None:
    """Columns of every row."""
    table = world.table()
    columns = world.projection(table, world.rng.choice((1, 2, 2, 3)))
    return _show(world, table, columns, phrases.plural(world.noun(table)), "", [])


def one_filter(world: World) -> Draft | None:
    """Columns of the rows that satisfy one condition."""
    table = world.table()
    condition = world.condition(table)
    if condition is None:
        return None
    equal = " = '" in condition.sql
    columns = world.projection(table, world.rng.choice((1, 1, 2)), (condition.column.name,) if equal else ())
    rows = noun_phrase(phrases.plural(world.noun(table)), [condition])
    if table.label and world.rng.random() < 0.18:
        question = world.rng.choice(
            (
                f"Which are the {rows}? Give their {phrases.plural(world.word(table.label))}.",
                f"Name all {rows}.",
                f"Name the {rows}.",
            )
        )
        return Draft(question, f"SELECT {table.label.name} FROM {table.name}{where([condition])}", (condition.column,))
    return _show(world, table, columns, rows, where([condition]), [condition.column])


def two_filters(world: World) -> Draft | None:
    """Columns of the rows that satisfy two conditions, or one of two."""
    table = world.table()
    first = world.condition(table)
    second = world.condition(table, (first.column.name,)) if first else None
    if second is None:
        return None
    columns = world.projection(table, world.rng.choice((1, 1, 2)), (first.column.name, second.column.name))
    if not columns:
        return None
    noun = phrases.plural(world.noun(table))
    if world.rng.random() < 0.3 and first.whose.startswith("whose") and second.whose.startswith("whose"):
        rows, clause = either(noun, first, second), where([first, second], joint="OR")
    else:
        first, second = sorted((first, second), key=lambda c: c.rank)
        rows, clause = noun_phrase(noun, [first, second]), where([first, second])
    return _show(world, table, columns, rows, clause, [first.column, second.column])


def lookup(world: World) -> Draft | None:
    """Columns of the row with a given name."""
    table = world.labelled()
    if table is None:
        return None
    row = world.rng.choice(world.rows[table.name])
    columns = [c for c in table.columns if c.role in ("category", "text", "number", "year", "date")]
    columns = [c for c in columns if row[c.name] is not None]
    if not columns:
        return None
    columns = world.rng.sample(columns, min(len(columns), world.rng.choice((1, 1, 2))))
    label = row[table.label.name]
    words = [world.word(c) for c in columns]
    if table.person and len(words) == 1 and world.rng.random() < 0.4:
        question = world.rng.choice(
            (f"What is {label}'s {words[0]}?", f"Tell me {label}'s {words[0]}.", f"Show {label}'s {words[0]}.")
        )
    elif len(words) == 1 and columns[0].count and world.rng.random() < 0.5:
        question = f"How many {columns[0].count} does {named(table, world.noun(table), label, world.rng)} have?"
    else:
        question = phrases.show_one(words, named(table, world.noun(table), label, world.rng), world.rng)
    names = ", ".join(c.name for c in columns)
    sql = f"SELECT {names} FROM {table.name} WHERE {table.label.name} = {literal(label)}"
    return Draft(question, sql, tuple(columns))


def distinct(world: World) -> Draft | None:
    """The different values of a category."""
    table = world.table()
    columns = table.of_role("category")
    if not columns:
        return None
    column = world.rng.choice(columns)
    condition = world.condition(table, (column.name,)) if world.rng.random() < 0.6 else None
    conditions = [condition] if condition else []
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    word = phrases.plural(world.word(column))
    question = world.rng.choice(
        (
            f"What are the different {word} of {rows}?",
            f"List the distinct {word} of {rows}.",
            f"Show all the different {word} of {rows}, each only once.",
            f"Which different {word} occur among {rows}?",
            f"Give me the unique {word} of the {rows}.",
            f"List each of the {word} of {rows} without repeats.",
        )
    )
    sql = f"SELECT DISTINCT {column.name} FROM {table.name}{where(conditions)}"
    if column.null:
        sql += f"{' AND' if conditions else ' WHERE'} {column.name} IS NOT NULL"
        question = (
            question[:-1] + world.rng.choice((", leaving out missing ones", ", ignoring empty ones")) + question[-1]
        )
    return Draft(question, sql, (column, *(c.column for c in conditions)))


def null(world: World) -> Draft | None:
    """Rows with or without a value."""
    table = world.table()
    columns = [c for c in table.columns if c.null and c.role != "reference"]
    if not columns:
        return None
    column = world.rng.choice(columns)
    conditions = [missing(column, world.rng, absent=world.rng.random() < 0.7)]
    if world.rng.random() < 0.25 and (other := world.condition(table, (column.name,))):
        conditions.append(other)
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    used = [c.column for c in conditions]
    if world.rng.random() < 0.35:
        return Draft(
            phrases.count(rows, world.rng), f"SELECT COUNT(*) FROM {table.name}{where(conditions)}", tuple(used)
        )
    columns = world.projection(table, world.rng.choice((1, 1, 2)), (column.name,))
    return _show(world, table, columns, rows, where(conditions), used) if columns else None


def pattern(world: World) -> Draft | None:
    """LIKE on the name."""
    table = world.labelled()
    if table is None:
        return None
    condition = like(table.label, world.values(table, table.label), world.rng)
    rows = noun_phrase(phrases.plural(world.noun(table)), [condition])
    if world.rng.random() < 0.25:
        return Draft(phrases.count(rows, world.rng), f"SELECT COUNT(*) FROM {table.name}{where([condition])}")
    columns = world.projection(table, world.rng.choice((1, 1, 2)))
    return _show(world, table, columns, rows, where([condition]), [])


def _sort_column(world: World, table: Table) -> Column | None:
    columns = [c for c in table.of_role("number", "date", "year") if not c.null]
    return world.rng.choice(columns) if columns else None


def extreme_text(column: Column, word: str, rows: str, down: bool, having: str = "with") -> str:
    """ "most expensive cakes", "cakes with the highest price", "cakes with the most seats".

    `rows` may bring its conditions along; `having` then is "that have" or "that has", for a second "with" reads badly.
    """
    adjective = column.top if down else column.bottom
    if adjective:
        return f"{adjective} {rows}"
    if column.count:
        return f"{rows} {having} the {'most' if down else 'fewest'} {column.count}"
    if column.role in ("date", "year"):
        return f"{rows} {having} the {'latest' if down else 'earliest'} {word}"
    return f"{rows} {having} the {'highest' if down else 'lowest'} {word}"


def extreme(world: World) -> Draft | None:
    """The row, or the few rows, at one end of an order."""
    table = world.table()
    column = _sort_column(world, table)
    if column is None:
        return None
    down = world.rng.random() < 0.6
    number = world.rng.choice((1, 1, 1, 2, 3, 3, 4, 5, 5, 10))
    condition = world.condition(table, (column.name,)) if world.rng.random() < 0.35 else None
    conditions = [condition] if condition else []
    columns = world.projection(table, world.rng.choice((1, 1, 1, 2)), tuple(c.column.name for c in conditions))
    if not columns:
        return None
    words = [world.word(c) for c in columns]
    noun = world.noun(table)
    who = "who" if table.person else "that"
    after = any(c.rank != ADJECTIVE for c in conditions)
    if number == 1 and (not condition or not condition.text.startswith(("that ", "who "))):
        row = extreme_text(
            column, world.word(column), noun_phrase(noun, conditions), down, f"{who} has" if after else "with"
        )
        question = phrases.show_one(words, f"the {row}", world.rng)
        if table.label and columns == [table.label] and world.rng.random() < 0.4:
            question = world.rng.choice(
                (
                    f"Which is the {row}? Give the {words[0]}.",
                    f"Name the {row}.",
                    f"Give only the {words[0]} of the {row}.",
                )
            )
    else:
        if number == 1:
            return None
        spelled = world.rng.choice((str(number), {2: "two", 3: "three", 4: "four", 5: "five", 10: "ten"}[number]))
        rows = extreme_text(
            column,
            world.word(column),
            noun_phrase(phrases.plural(noun), conditions),
            down,
            f"{who} have" if after else "with",
        )
        plurals = phrases.listed([phrases.plural(word) for word in words])
        end = phrases.listed(words)
        question = world.rng.choice(
            (
                f"What are the {plurals} of the {spelled} {rows}?",
                f"Show the {plurals} of the {spelled} {rows}.",
                f"List the {end} for the {spelled} {rows}.",
                f"Give me the {plurals} of the {spelled} {rows}.",
                f"Find the {spelled} {rows} and show their {end}.",
                f"I need the {plurals} of the {spelled} {rows}.",
            )
        )
    names = ", ".join(c.name for c in columns)
    sql = (
        f"SELECT {names} FROM {table.name}{where(conditions)} ORDER BY {column.name} {'DESC' if down else 'ASC'} "
        f"LIMIT {number}"
    )
    return Draft(question, sql, (column, *columns, *(c.column for c in conditions)), column.name)


def ordered(world: World) -> Draft | None:
    """All rows, or those of one condition, in an order."""
    table = world.table()
    column = _sort_column(world, table)
    if table.label and (column is None or world.rng.random() < 0.25):
        column = table.label
    if column is None:
        return None
    down = world.rng.random() < 0.45
    condition = world.condition(table, (column.name,)) if world.rng.random() < 0.5 else None
    conditions = [condition] if condition else []
    columns = world.projection(table, world.rng.choice((1, 2, 2)), tuple(c.column.name for c in conditions))
    if not columns:
        return None
    if world.rng.random() < 0.3 and column not in columns:
        columns.append(column)
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    word = world.word(column)
    if column.role == "label":
        how = "in reverse alphabetical order" if down else "in alphabetical order"
        how = world.rng.choice(
            (f"{how} of the {word}", f"sorted by {word}, from Z to A" if down else f"sorted by {word}, from A to Z")
        )
    elif column.role in ("date", "year"):
        how = f"sorted by {word}, " + world.rng.choice(
            ("latest first", "from newest to oldest") if down else ("earliest first", "from oldest to newest")
        )
    else:
        how = world.rng.choice(
            (
                f"ordered by {word} from high to low",
                f"in descending order of {word}",
                f"sorted by {word}, highest first",
            )
            if down
            else (
                f"ordered by {word} from low to high",
                f"in ascending order of {word}",
                f"sorted by {word}, lowest first",
            )
        )
    plurals = phrases.listed([phrases.plural(world.word(c)) for c in columns])
    question = world.rng.choice(
        (
            f"List the {plurals} of {rows} {how}.",
            f"Show the {plurals} of all {rows}, {how}.",
            f"What are the {plurals} of {rows}, {how}?",
            f"Give me the {plurals} of the {rows}, {how}.",
            f"Please list the {plurals} of the {rows}, {how}.",
            f"I want the {plurals} of all {rows}, {how}.",
        )
    )
    names = ", ".join(c.name for c in columns)
    sql = f"SELECT {names} FROM {table.name}{where(conditions)} ORDER BY {column.name} {'DESC' if down else 'ASC'}"
    return Draft(question, sql, (column, *columns, *(c.column for c in conditions)))
