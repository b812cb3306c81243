"""Questions over three tables: chains of foreign keys, rows with two parents, and many to many."""

from sft.embedded import phrases
from sft.embedded.conditions import literal, noun_phrase, where
from sft.embedded.grammar import Draft, World, named_with
from sft.embedded.joins import child_and_parent


def three_in_a_row(world: World) -> Draft | None:
    """Children of children of one named row or of rows under a condition."""
    chains = [
        (low, high)
        for low in world.relations
        for high in world.relations
        if low.parent is high.child and not low.child.link
    ]
    if not chains:
        return None
    low, high = world.rng.choice(chains)
    if high.parent.label and world.rng.random() < 0.5:
        label = world.rng.choice(world.values(high.parent, high.parent.label))
        tail = named_with(high, label, world.rng)
        clause, used = f" WHERE T3.{high.parent.label.name} = {literal(label)}", ()
    else:
        condition = world.condition(high.parent)
        if condition is None:
            return None
        tail = world.rng.choice(high.reference.says).format(
            v=noun_phrase(phrases.plural(world.noun(high.parent)), [condition])
        )
        clause, used = where([condition], "T3."), (condition.column,)
    middle = f"{phrases.plural(world.noun(low.parent))} {tail}"
    rows = f"{phrases.plural(world.noun(low.child))} {world.rng.choice(low.reference.says).format(v=middle)}"
    tables = f"{child_and_parent(low)} JOIN {high.parent.name} AS T3 ON {high.join('T2', 'T3')}"
    if world.rng.random() < 0.35:
        return Draft(phrases.count(rows, world.rng), f"SELECT COUNT(*) FROM {tables}{clause}", used)
    columns = world.projection(low.child, world.rng.choice((1, 1, 2)))
    if not columns:
        return None
    question = phrases.show([world.word(c) for c in columns], rows, world.rng)
    return Draft(question, f"SELECT {', '.join(f'T1.{c.name}' for c in columns)} FROM {tables}{clause}", used)


def two_parents(world: World) -> Draft | None:
    """Names of both parents of each row that satisfies a condition."""
    pairs = [
        (a, b)
        for a in world.relations
        for b in world.relations
        if a.child is b.child
        and a.reference.name != b.reference.name
        and a.parent.label
        and b.parent.label
        and a.parent is not b.parent
    ]
    if not pairs:
        return None
    first, second = world.rng.choice(pairs)
    condition = world.condition(first.child)
    if condition is None:
        return None
    rows = noun_phrase(phrases.plural(world.noun(first.child)), [condition])
    left = f"{world.word(first.parent.label)} of the {world.word(first.reference)}"
    right = f"{world.word(second.parent.label)} of the {world.word(second.reference)}"
    question = world.rng.choice(
        (
            f"For {rows}, show the {left} and the {right}.",
            f"List the {left} and the {right} for all {rows}.",
            f"Show the {left} together with the {right} for {rows}.",
            f"For each of the {rows}, give the {left} and the {right}.",
        )
    )
    sql = (
        f"SELECT T2.{first.parent.label.name}, T3.{second.parent.label.name} FROM {child_and_parent(first)} JOIN "
        f"{second.parent.name} AS T3 ON {second.join('T1', 'T3')}{where([condition], 'T1.')}"
    )
    return Draft(question, sql, (condition.column,))


def linked(world: World) -> Draft | None:
    """Many to many: "students enrolled in Biology", through the table that links both."""
    links = [table for table in world.database.tables if table.link]
    if not links:
        return None
    table = world.rng.choice(links)
    left, right, says, back = table.link
    relations = {r.reference.name: r for r in world.relations if r.child is table}
    shown, other = relations[left], relations[right]
    if world.rng.random() < 0.4:
        shown, other, says = other, shown, back
    if not shown.parent.label:
        return None
    base = f"FROM {shown.parent.name} AS T1 JOIN {table.name} AS T2 ON {shown.join('T2', 'T1')}"
    if world.rng.random() < 0.3:
        others = phrases.plural(world.noun(other.parent))
        if world.rng.random() < 0.5:
            limit = world.rng.choice((2, 3, 4, 5))
            rows = f"{phrases.plural(world.noun(shown.parent))} {says.format(v=f'more than {limit} {others}')}"
            question = phrases.show([world.word(shown.parent.label)], rows, world.rng)
            tail, tie = f"HAVING COUNT(*) > {limit}", None
        else:
            row = f"the {world.noun(shown.parent)} {says.format(v=f'the most {others}')}"
            question = phrases.show_one([world.word(shown.parent.label)], row, world.rng)
            tail, tie = "ORDER BY COUNT(*) DESC LIMIT 1", "COUNT(*)"
        sql = f"SELECT T1.{shown.parent.label.name} {base} GROUP BY T1.{shown.parent.key.name} {tail}"
        return Draft(question, sql, (), tie)
    sql = f"SELECT T1.{shown.parent.label.name} {base} JOIN {other.parent.name} AS T3 ON {other.join('T2', 'T3')}"
    if other.parent.label and world.rng.random() < 0.6:
        label = world.rng.choice(world.values(other.parent, other.parent.label))
        tail, used = says.format(v=label), ()
        sql += f" WHERE T3.{other.parent.label.name} = {literal(label)}"
    else:
        condition = world.condition(other.parent)
        if condition is None:
            return None
        tail = says.format(v=noun_phrase(phrases.plural(world.noun(other.parent)), [condition]))
        sql = sql.replace("SELECT ", "SELECT DISTINCT ", 1) + where([condition], "T3.")
        used = (condition.column,)
    question = phrases.show(
        [world.word(shown.parent.label)], f"{phrases.plural(world.noun(shown.parent))} {tail}", world.rng
    )
    if "DISTINCT" in sql:
        question = (
            question[:-1]
            + world.rng.choice((", each only once", ", without repeats", ", no duplicates"))
            + question[-1]
        )
    return Draft(question, sql, used)
