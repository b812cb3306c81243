"""Questions whose answer is the intersection, union or difference of two queries."""

from sft.embedded import phrases
from sft.embedded.conditions import Condition, noun_phrase, where
from sft.embedded.grammar import Draft, World
from sft.embedded.schema import Table


def of_parents(world: World) -> Draft | None:
    """Parents with children of two kinds (INTERSECT), or with one kind and not the other (EXCEPT)."""
    relations = [r for r in world.relations if r.parent.label and not r.child.link]
    if not relations:
        return None
    relation = world.rng.choice(relations)
    first, second = world.plain_condition(relation.child), world.plain_condition(relation.child)
    if first is None or second is None or first.sql == second.sql:
        return None
    children, label = phrases.plural(world.noun(relation.child)), relation.parent.label
    operation, joint = world.rng.choice((("INTERSECT", "and also"), ("EXCEPT", "but no")))
    both = f"{noun_phrase(children, [first])} {joint} {noun_phrase(children, [second])}"
    rows = f"{phrases.plural(world.noun(relation.parent))} {relation.reference.has.format(both)}"
    question = phrases.show([world.word(label)], rows, world.rng)
    side = (
        f"SELECT T1.{label.name} FROM {relation.parent.name} AS T1 JOIN {relation.child.name} AS T2 "
        f"ON {relation.join('T2', 'T1')}"
    )
    sql = f"{side}{where([first], 'T2.')} {operation} {side}{where([second], 'T2.')}"
    return Draft(question, sql, (first.column, second.column))


def of_names(world: World) -> Draft | None:
    """UNION of the names in two tables."""
    tables = [table for table in world.database.tables if table.label]
    if len(tables) < 2:
        return None
    left, right = world.rng.sample(tables, 2)
    first, second = world.condition(left), world.condition(right)
    if first is None or second is None:
        return None
    words = [world.word(left.label), world.word(right.label)]
    rows = [noun_phrase(phrases.plural(world.noun(t)), [c]) for t, c in ((left, first), (right, second))]
    one = phrases.plural(words[0])
    other = "those" if words[0] == words[1] else f"the {phrases.plural(words[1])}"
    question = world.rng.choice(
        (
            f"List in one column the {one} of {rows[0]} and {other} of {rows[1]}, without repeats.",
            f"Give me a single list of the {one} of {rows[0]} and {other} of {rows[1]}, each only once.",
            f"Show the {one} of {rows[0]}, followed in the same list by {other} of {rows[1]}, without repeats.",
            f"Combine the {one} of {rows[0]} with {other} of {rows[1]} into one list without duplicates.",
        )
    )
    sql = (
        f"SELECT {left.label.name} FROM {left.name}{where([first])} UNION SELECT {right.label.name} FROM "
        f"{right.name}{where([second])}"
    )
    return Draft(question, sql, (first.column, second.column))


def _sides(world: World) -> tuple[str, str, Condition, Condition, Table] | None:
    """A category and two conditions on different columns of its table."""
    tables = [t for t in world.database.tables if any(not c.null for c in t.of_role("category"))]
    if not tables:
        return None
    table = world.rng.choice(tables)
    column = world.rng.choice([c for c in table.of_role("category") if not c.null])
    first = world.plain_condition(table, (column.name,))
    second = world.plain_condition(table, (column.name,))
    if first is None or second is None or first.sql == second.sql:
        return None
    return column.name, world.word(column), first, second, table


def of_categories(world: World) -> Draft | None:
    """INTERSECT, UNION or EXCEPT of the categories of two kinds of rows, or of two tables that share values."""
    operation = world.rng.choice(("INTERSECT", "INTERSECT", "UNION", "EXCEPT", "EXCEPT"))
    shared = [
        (a, x, b, y)
        for a in world.database.tables
        for x in a.of_role("category")
        for b in world.database.tables
        for y in b.of_role("category")
        if a is not b
        and not x.null
        and not y.null
        and not x.spoken
        and len(set(world.values(a, x)) & set(world.values(b, y))) > 1
    ]
    if shared and world.rng.random() < 0.6:
        table, column, other, match = world.rng.choice(shared)
        first = world.plain_condition(table, (column.name,)) if world.rng.random() < 0.4 else None
        second = world.plain_condition(other, (match.name,)) if world.rng.random() < 0.4 else None
        left, right, word = [first] if first else [], [second] if second else [], world.word(column)
        name, second_name = column.name, match.name
        rows = noun_phrase(phrases.plural(world.noun(table)), left)
        others = noun_phrase(phrases.plural(world.noun(other)), right)
    else:
        sides = _sides(world)
        if sides is None:
            return None
        name, word, condition, opposite, table = sides
        other, second_name, left, right = table, name, [condition], [opposite]
        noun = phrases.plural(world.noun(table))
        rows, others = noun_phrase(noun, left), noun_phrase(noun, right)
    many = phrases.plural(word)
    questions = {
        "INTERSECT": (
            f"Which {many} have both {rows} and {others}?",
            f"Find the {many} shared by {rows} and {others}.",
            f"List the {many} found among {rows} and also among {others}.",
        ),
        "UNION": (
            f"Which {many} appear among {rows} or among {others}? Name each once.",
            f"List every {word} of {rows} together with every {word} of {others}, without repeats.",
            f"Show all {many} that have {rows} or {others}, each only once.",
        ),
        "EXCEPT": (
            f"Which {many} have {rows} but no {others}?",
            f"List the {many} of {rows} that are not among the {many} of {others}.",
            f"Find the {many} that have {rows} but none of the {others}.",
        ),
    }
    sql = (
        f"SELECT {name} FROM {table.name}{where(left)} {operation} SELECT {second_name} FROM {other.name}{where(right)}"
    )
    return Draft(world.rng.choice(questions[operation]), sql, tuple(c.column for c in (*left, *right)))
