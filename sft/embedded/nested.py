"""Questions with subqueries."""

from sft.embedded import phrases
from sft.embedded.conditions import literal, noun_phrase, where
from sft.embedded.grammar import Draft, Relation, World
from sft.embedded.schema import Table


def _show(world: World, table: Table, rows: str, tail: str, used: tuple = ()) -> Draft | None:
    """Label (or another column) of the rows, or how many there are."""
    if world.rng.random() < 0.25:
        return Draft(phrases.count(rows, world.rng), f"SELECT COUNT(*) FROM {table.name}{tail}", used)
    columns = world.projection(table, world.rng.choice((1, 1, 1, 2)))
    if not columns:
        return None
    question = phrases.show([world.word(c) for c in columns], rows, world.rng)
    return Draft(question, f"SELECT {', '.join(c.name for c in columns)} FROM {table.name}{tail}", used)


def above_average(world: World) -> Draft | None:
    """Rows above or below the average of all, or of those under a condition."""
    table = world.table()
    numbers = table.of_role("number")
    if not numbers:
        return None
    number = world.rng.choice(numbers)
    word = world.word(number)
    noun = phrases.plural(world.noun(table))
    sign, than = world.rng.choice(((">", "above"), (">", "higher than"), ("<", "below"), ("<", "lower than")))
    condition = world.condition(table, (number.name,)) if world.rng.random() < 0.3 else None
    if condition:
        than_what = f"the average {word} of {noun_phrase(noun, [condition])}"
    else:
        than_what = world.rng.choice((f"the average {word} of all {noun}", f"the overall average {word}"))
        if world.rng.random() < 0.25:
            than_what = "average"
            than = "above" if sign == ">" else "below"
    rows = f"{noun} whose {word} is {than} {than_what}"
    clause = where([condition] if condition else [])
    tail = f" WHERE {number.name} {sign} (SELECT AVG({number.name}) FROM {table.name}{clause})"
    return _show(world, table, rows, tail, (condition.column,) if condition else ())


def than_named(world: World) -> Draft | None:
    """Rows with more than a named row has."""
    table = world.labelled()
    if table is None:
        return None
    numbers = table.of_role("number", "year", "date")
    if not numbers:
        return None
    number = world.rng.choice(numbers)
    label = world.rng.choice(world.values(table, table.label))
    signs = (
        (("<", "earlier than"), (">", "later than"))
        if number.role != "number"
        else ((">", "higher than"), ("<", "lower than"))
    )
    sign, than = world.rng.choice(signs)
    noun, word = phrases.plural(world.noun(table)), world.word(number)
    rows = f"{noun} whose {word} is {than} that of {label}"
    tail = (
        f" WHERE {number.name} {sign} (SELECT {number.name} FROM {table.name} WHERE {table.label.name} = "
        f"{literal(label)})"
    )
    return _show(world, table, rows, tail)


def at_extreme(world: World) -> Draft | None:
    """All rows that share the largest or smallest value: no LIMIT, so that ties are kept."""
    table = world.table()
    numbers = table.of_role("number")
    if not numbers:
        return None
    number = world.rng.choice(numbers)
    down = world.rng.random() < 0.6
    noun, word = phrases.plural(world.noun(table)), world.word(number)
    condition = world.condition(table, (number.name,)) if world.rng.random() < 0.25 else None
    among = f"{'highest' if down else 'lowest'} {word} of all {noun_phrase(noun, [condition] if condition else [])}"
    rows = f"{noun} whose {word} equals the {among}"
    tail = (
        f" WHERE {number.name} = (SELECT {'MAX' if down else 'MIN'}({number.name}) FROM {table.name}"
        f"{where([condition] if condition else [])})"
    )
    return _show(world, table, rows, tail, (condition.column,) if condition else ())


def _relation(world: World) -> Relation | None:
    relations = [r for r in world.relations if not r.reference.null]
    return world.rng.choice(relations) if relations else None


def with_children(world: World) -> Draft | None:
    """Parents that have a child under a condition: IN, or EXISTS where the question says "at least one"."""
    relation = _relation(world)
    if relation is None:
        return None
    condition = world.plain_condition(relation.child)
    if condition is None:
        return None
    parent, key = relation.parent, relation.parent.key.name
    children = noun_phrase(phrases.plural(world.noun(relation.child)), [condition])
    parents = phrases.plural(world.noun(parent))
    if world.rng.random() < 0.4:
        rows = f"{parents} {relation.reference.has.format(f'one or more {children}')}"
        test = " AND ".join(
            (
                f"{relation.child.name}.{relation.reference.name} = {parent.name}.{key}",
                condition.where(f"{relation.child.name}."),
            )
        )
        tail = f" WHERE EXISTS (SELECT 1 FROM {relation.child.name} WHERE {test})"
    else:
        rows = f"{parents} {relation.reference.has.format(children)}"
        tail = f" WHERE {key} IN (SELECT {relation.reference.name} FROM {relation.child.name}{where([condition])})"
    return _show(world, parent, rows, tail, (condition.column,))


def without_children(world: World) -> Draft | None:
    """Parents that have no child, or none under a condition: NOT IN, or NOT EXISTS."""
    relation = _relation(world)
    if relation is None:
        return None
    condition = world.plain_condition(relation.child) if world.rng.random() < 0.5 else None
    conditions = [condition] if condition else []
    parent, key = relation.parent, relation.parent.key.name
    children = noun_phrase(phrases.plural(world.noun(relation.child)), conditions)
    parents = phrases.plural(world.noun(parent))
    used = tuple(c.column for c in conditions)
    if world.rng.random() < 0.25:
        rows = f"{parents} for which there are no {children}"
        test = " AND ".join(
            (
                f"{relation.child.name}.{relation.reference.name} = {parent.name}.{key}",
                *(c.where(f"{relation.child.name}.") for c in conditions),
            )
        )
        return _show(world, parent, rows, f" WHERE NOT EXISTS (SELECT 1 FROM {relation.child.name} WHERE {test})", used)
    rows = f"{parents} {relation.reference.has.format(f'no {children}')}"
    return _show(
        world,
        parent,
        rows,
        f" WHERE {key} NOT IN (SELECT {relation.reference.name} FROM {relation.child.name}{where(conditions)})",
        used,
    )


def children_of_extreme(world: World) -> Draft | None:
    """Children of the parents above average in a number."""
    relation = _relation(world)
    if relation is None:
        return None
    numbers = relation.parent.of_role("number")
    if not numbers or relation.child.link:
        return None
    number = world.rng.choice(numbers)
    sign, than = world.rng.choice(((">", "an above-average"), ("<", "a below-average")))
    parents = f"{phrases.plural(world.noun(relation.parent))} with {than} {world.word(number)}"
    rows = f"{phrases.plural(world.noun(relation.child))} {world.rng.choice(relation.reference.says).format(v=parents)}"
    parent = relation.parent
    tail = (
        f" WHERE {relation.reference.name} IN (SELECT {parent.key.name} FROM {parent.name} WHERE {number.name} {sign} "
        f"(SELECT AVG({number.name}) FROM {parent.name}))"
    )
    return _show(world, relation.child, rows, tail)
