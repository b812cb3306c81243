"""Questions on one table with aggregates, groups and conditions on groups."""

from sft.embedded import phrases
from sft.embedded.conditions import noun_phrase, threshold, where
from sft.embedded.grammar import Draft, World
from sft.embedded.schema import Column, Table


def _conditions(world: World, table: Table, share: float, besides: tuple[str, ...] = ()) -> list:
    condition = world.condition(table, besides) if world.rng.random() < share else None
    return [condition] if condition else []


def aggregate_phrase(world: World, column: Column, function: str) -> str:
    """ "average price", "total number of seats"."""
    word = world.word(column)
    spoken = {
        "AVG": ("average", "mean", "average"),
        "SUM": ("total", "total", "combined"),
        "MAX": ("highest", "maximum", "largest"),
        "MIN": ("lowest", "minimum", "smallest"),
    }[function]
    if column.role in ("date", "year"):
        spoken = ("latest",) if function == "MAX" else ("earliest",)
    return f"{world.rng.choice(spoken)} {word}"


def draw_function(world: World, column: Column) -> str:
    """An aggregate that makes sense for the column."""
    if column.role in ("date", "year"):
        return world.rng.choice(("MIN", "MAX"))
    return world.rng.choice(("AVG", "AVG", "MAX", "MIN", *(("SUM", "SUM") if column.sums else ())))


def count_rows(world: World) -> Draft | None:
    """How many rows satisfy a condition."""
    table = world.table()
    conditions = _conditions(world, table, 0.93)
    if conditions and world.rng.random() < 0.2:
        conditions += _conditions(world, table, 1, (conditions[0].column.name,))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    sql = f"SELECT COUNT(*) FROM {table.name}{where(conditions)}"
    return Draft(phrases.count(rows, world.rng), sql, tuple(c.column for c in conditions))


def aggregate(world: World) -> Draft | None:
    """One aggregate of a column, or two."""
    table = world.table()
    columns = table.of_role("number", "date", "year")
    if not columns:
        return None
    column = world.rng.choice(columns)
    conditions = _conditions(world, table, 0.65, (column.name,))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    of = world.rng.choice((f"of {rows}", f"of all {rows}", f"of the {rows}", f"among {rows}"))
    used = tuple(c.column for c in conditions)
    if world.rng.random() < 0.25:
        pair = world.rng.choice((("MIN", "MAX"), ("MAX", "MIN"), ("AVG", "MAX"), ("MIN", "AVG")))
        if column.role != "number":
            pair = ("MIN", "MAX")
        word = world.word(column)
        names = {"MIN": "lowest", "MAX": "highest", "AVG": "average"}
        if column.role != "number":
            names = {"MIN": "earliest", "MAX": "latest"}
        words = f"{names[pair[0]]} and the {names[pair[1]]} {word}"
        question = phrases.value(f"{words} {of}", world.rng).replace("What is the", "What are the")
        return Draft(
            question,
            f"SELECT {pair[0]}({column.name}), {pair[1]}({column.name}) FROM {table.name}{where(conditions)}",
            used,
        )
    function = draw_function(world, column)
    question = phrases.value(f"{aggregate_phrase(world, column, function)} {of}", world.rng)
    if function == "SUM" and column.count and world.rng.random() < 0.5:
        question = f"How many {column.count} do {rows} have in total?"
    return Draft(question, f"SELECT {function}({column.name}) FROM {table.name}{where(conditions)}", used)


def count_distinct(world: World) -> Draft | None:
    """How many different values a category has."""
    table = world.table()
    columns = table.of_role("category")
    if not columns:
        return None
    column = world.rng.choice(columns)
    conditions = _conditions(world, table, 0.5, (column.name,))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    word = phrases.plural(world.word(column))
    question = world.rng.choice(
        (
            f"How many different {word} are there among {rows}?",
            f"How many distinct {word} occur among {rows}?",
            f"Count the distinct {word} of {rows}.",
            f"What is the number of different {word} of {rows}?",
            f"How many different {word} do we find for {rows}?",
            f"Find the number of unique {word} of {rows}.",
        )
    )
    sql = f"SELECT COUNT(DISTINCT {column.name}) FROM {table.name}{where(conditions)}"
    return Draft(question, sql, (column, *(c.column for c in conditions)))


def _group(world: World, table: Table) -> tuple[str, str, Column] | None:
    """SQL, singular noun and column of something to group by: a category, or the year of a date."""
    categories = [c for c in table.of_role("category") if not c.null]
    dates = [c for c in table.of_role("date") if not c.null]
    if dates and (not categories or world.rng.random() < 0.22):
        column = world.rng.choice(dates)
        only = len(table.of_role("date", "year")) == 1
        return f"strftime('%Y', {column.name})", "year" if only else f"year of the {world.word(column)}", column
    if not categories:
        return None
    column = world.rng.choice(categories)
    return column.name, world.word(column), column


def group_count(world: World) -> Draft | None:
    """How many rows each group has, at times in order."""
    table = world.table()
    group = _group(world, table)
    if group is None:
        return None
    expression, word, column = group
    conditions = _conditions(world, table, 0.35, (column.name,))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    question = world.rng.choice(
        (
            f"Count the {rows} for each {word}, and show the {word} before the count",
            f"For each {word}, show the {word} and the number of {rows}",
            f"Grouped by {word}, show the {word} and the number of {rows}",
            f"List every {word} with the number of {rows}",
            f"Give each {word} and how many {rows} there are",
            f"For every {word}, give the {word} and how many {rows} there are",
        )
    )
    sql = f"SELECT {expression}, COUNT(*) FROM {table.name}{where(conditions)} GROUP BY {expression}"
    if world.rng.random() < 0.3:
        question += world.rng.choice(
            (", largest count first", ", from the most to the fewest", ", sorted by the number in descending order")
        )
        sql += " ORDER BY COUNT(*) DESC"
    return Draft(question + ".", sql, (column, *(c.column for c in conditions)))


def group_aggregate(world: World) -> Draft | None:
    """An aggregate of a number in each group."""
    table = world.table()
    group = _group(world, table)
    numbers = table.of_role("number")
    if group is None or not numbers:
        return None
    expression, word, column = group
    number = world.rng.choice(numbers)
    function = draw_function(world, number)
    conditions = _conditions(world, table, 0.3, (column.name, number.name))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    phrase = aggregate_phrase(world, number, function)
    question = world.rng.choice(
        (
            f"What is the {phrase} of {rows} for each {word}? Show the {word} first.",
            f"For each {word}, show the {word} and the {phrase} of {rows}.",
            f"Show each {word} with the {phrase} of its {rows}.",
            f"List every {word} together with the {phrase} of {rows}.",
            f"Give me the {word} and the {phrase} of {rows}, grouped by {word}.",
        )
    )
    sql = f"SELECT {expression}, {function}({number.name}) FROM {table.name}{where(conditions)} GROUP BY {expression}"
    return Draft(question, sql, (column, *(c.column for c in conditions)))


def having(world: World) -> Draft | None:
    """Groups with enough rows, or with a large enough aggregate."""
    table = world.table()
    group = _group(world, table)
    if group is None:
        return None
    expression, word, column = group
    conditions = _conditions(world, table, 0.25, (column.name,))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    many = phrases.plural(word)
    numbers = table.of_role("number")
    if numbers and world.rng.random() < 0.4:
        number = world.rng.choice(numbers)
        limit = threshold(world.values(table, number), world.rng, 0.35, 0.65)
        amount = phrases.spoken_number(limit, "" if number.count else number.unit, world.rng)
        sign, than = world.rng.choice(((">", "above"), (">", "more than"), ("<", "below"), ("<", "less than")))
        noun = world.word(number)
        with_an_average = f"{noun} {than}" if than in ("above", "below") else f"{noun} of {than}"
        question = world.rng.choice(
            (
                f"Which {many} have {rows} with an average {with_an_average} {amount}?",
                f"List the {many} where the average {noun} of {rows} is {than} {amount}.",
                f"Show each {word} in which the {rows} have an average {noun} that is {than} {amount}.",
            )
        )
        test = f"AVG({number.name}) {sign} {limit}"
    else:
        limit = world.rng.choice((2, 3, 4, 5, 6, 8, 10, 12, 15, 20))
        sign, than = world.rng.choice(((">", "more than"), (">", "over"), (">=", "at least"), ("<", "fewer than")))
        question = world.rng.choice(
            (
                f"Which {many} have {than} {limit} {rows}?",
                f"List the {many} with {than} {limit} {rows}.",
                f"Find the {many} that have {than} {limit} {rows}.",
                f"Show every {word} that has {than} {limit} {rows}.",
            )
        )
        test = f"COUNT(*) {sign} {limit}"
    sql = f"SELECT {expression} FROM {table.name}{where(conditions)} GROUP BY {expression} HAVING {test}"
    return Draft(question, sql, (column, *(c.column for c in conditions)))


def top_group(world: World) -> Draft | None:
    """The group with the most or fewest rows, or the largest aggregate."""
    table = world.table()
    group = _group(world, table)
    if group is None:
        return None
    expression, word, column = group
    conditions = _conditions(world, table, 0.25, (column.name,))
    rows = noun_phrase(phrases.plural(world.noun(table)), conditions)
    down = world.rng.random() < 0.7
    numbers = table.of_role("number")
    if numbers and world.rng.random() < 0.4:
        number = world.rng.choice(numbers)
        key, noun = f"AVG({number.name})", world.word(number)
        end = "highest" if down else "lowest"
        question = world.rng.choice(
            (
                f"Which {word} has the {end} average {noun} of {rows}?",
                f"Find the {word} where {rows} have the {end} average {noun}.",
                f"For which {word} is the average {noun} of {rows} the {end}?",
            )
        )
    else:
        key, end = "COUNT(*)", "most" if down else "fewest"
        question = world.rng.choice(
            (
                f"Which {word} has the {end} {rows}?",
                f"What is the {word} with the {end} {rows}?",
                f"Find the {word} that has the {end} {rows}.",
                f"Show the {'most' if down else 'least'} common {word} among {rows}.",
            )
        )
    sql = (
        f"SELECT {expression} FROM {table.name}{where(conditions)} GROUP BY {expression} ORDER BY {key} "
        f"{'DESC' if down else 'ASC'} LIMIT 1"
    )
    return Draft(question, sql, (column, *(c.column for c in conditions)), key)
