"""Questions over two tables joined by a foreign key."""

from sft.embedded import phrases
from sft.embedded.aggregates import aggregate_phrase, draw_function
from sft.embedded.conditions import literal, noun_phrase, where
from sft.embedded.grammar import Draft, Relation, World, named, named_with
from sft.embedded.single import extreme_text


def _relation(world: World, parent_label: bool = False, child_label: bool = False) -> Relation | None:
    relations = [
        relation
        for relation in world.relations
        if (relation.parent.label or not parent_label)
        and (relation.child.label or not child_label)
        and not relation.child.link
    ]
    return world.rng.choice(relations) if relations else None


def child_and_parent(relation: Relation, child: str = "T1", parent: str = "T2") -> str:
    """FROM clause that starts with the child."""
    return f"{relation.child.name} AS {child} JOIN {relation.parent.name} AS {parent} ON {relation.join(child, parent)}"


def child_with_parent(world: World) -> Draft | None:
    """A column of each child beside a column of its parent."""
    relation = _relation(world)
    if relation is None:
        return None
    condition = world.condition(relation.child) if world.rng.random() < 0.75 else None
    conditions = [condition] if condition else []
    child = world.projection(relation.child, 1, tuple(c.column.name for c in conditions))
    parent = world.projection(relation.parent, 1)
    if not child or not parent:
        return None
    rows = noun_phrase(phrases.plural(world.noun(relation.child)), conditions)
    role = world.word(relation.reference)
    own, other = world.word(child[0]), world.word(parent[0])
    question = world.rng.choice(
        (
            f"For {rows}, show the {own} and the {other} of the {role}.",
            f"List the {phrases.plural(own)} of {rows} together with the {other} of the {role}.",
            f"Show the {own} of all {rows} and the {other} of the {role} of each.",
            f"For all {rows}, give the {own} and also the {other} of the {role}.",
            f"What are the {phrases.plural(own)} of {rows}, and what is the {other} of the {role} of each?",
        )
    )
    sql = f"SELECT T1.{child[0].name}, T2.{parent[0].name} FROM {child_and_parent(relation)}{where(conditions, 'T1.')}"
    if relation.reference.null:
        question = question[:-1] + f", leaving out those without a {role}" + question[-1]
    return Draft(question, sql, tuple(c.column for c in conditions))


def child_of_parent(world: World) -> Draft | None:
    """Columns of the children of one named parent, of parents under a condition, or how many there are."""
    relation = _relation(world)
    if relation is None:
        return None
    own = []
    if relation.parent.label and world.rng.random() < 0.45:
        label = world.rng.choice(world.values(relation.parent, relation.parent.label))
        tail = named_with(relation, label, world.rng)
        clause = f" WHERE T2.{relation.parent.label.name} = {literal(label)}"
        used = ()
    else:
        condition = world.condition(relation.parent)
        if condition is None:
            return None
        parents = noun_phrase(phrases.plural(world.noun(relation.parent)), [condition])
        tail = world.rng.choice(relation.reference.says).format(v=parents)
        clause, used = where([condition], "T2."), (condition.column,)
        if world.rng.random() < 0.25 and (more := world.condition(relation.child)) and more.rank in (0, 2):
            own = [more]
            clause += " AND " + more.where("T1.")
    rows = f"{noun_phrase(phrases.plural(world.noun(relation.child)), own)} {tail}"
    used = (*used, *(c.column for c in own))
    if world.rng.random() < 0.3:
        return Draft(phrases.count(rows, world.rng), f"SELECT COUNT(*) FROM {child_and_parent(relation)}{clause}", used)
    numbers = relation.child.of_role("number")
    if numbers and world.rng.random() < 0.25:
        number = world.rng.choice(numbers)
        function = draw_function(world, number)
        question = phrases.value(f"{aggregate_phrase(world, number, function)} of {rows}", world.rng)
        return Draft(question, f"SELECT {function}(T1.{number.name}) FROM {child_and_parent(relation)}{clause}", used)
    columns = world.projection(relation.child, world.rng.choice((1, 1, 2)))
    if not columns:
        return None
    question = phrases.show([world.word(c) for c in columns], rows, world.rng)
    names = ", ".join(f"T1.{c.name}" for c in columns)
    return Draft(question, f"SELECT {names} FROM {child_and_parent(relation)}{clause}", used)


def parent_of_child(world: World) -> Draft | None:
    """A column of the parent of one named child."""
    relation = _relation(world, child_label=True)
    if relation is None:
        return None
    row = world.rng.choice(world.rows[relation.child.name])
    columns = world.projection(relation.parent, world.rng.choice((1, 1, 2)))
    if row[relation.reference.name] is None or not columns:
        return None
    label = row[relation.child.label.name]
    whose = (
        f"the {world.word(relation.reference)} of {named(relation.child, world.noun(relation.child), label, world.rng)}"
    )
    question = phrases.show_one([world.word(c) for c in columns], whose, world.rng)
    names = ", ".join(f"T2.{c.name}" for c in columns)
    sql = f"SELECT {names} FROM {child_and_parent(relation)} WHERE T1.{relation.child.label.name} = {literal(label)}"
    return Draft(question, sql)


def per_parent(world: World) -> Draft | None:
    """How many children each parent has, those without included or left out in so many words."""
    relation = _relation(world, parent_label=True)
    if relation is None:
        return None
    parent, label = world.noun(relation.parent), world.word(relation.parent.label)
    children = phrases.plural(world.noun(relation.child))
    numbers = relation.child.of_role("number")
    alone = {r[relation.parent.key.name] for r in world.rows[relation.parent.name]} - {
        r[relation.reference.name] for r in world.rows[relation.child.name]
    }
    group = f"GROUP BY T1.{relation.parent.key.name}"
    inner = f"FROM {relation.parent.name} AS T1 JOIN {relation.child.name} AS T2 ON {relation.join('T2', 'T1')} {group}"
    parents, had = phrases.plural(parent), relation.reference.has.format(children)
    if numbers and world.rng.random() < 0.35:
        number = world.rng.choice(numbers)
        function = draw_function(world, number)
        phrase = aggregate_phrase(world, number, function)
        question = world.rng.choice(
            (
                f"For each {parent} {had}, show the {label} and the {phrase} of the {children}.",
                f"List the {label} of every {parent} {had}, with the {phrase} of those {children}.",
            )
        )
        return Draft(question, f"SELECT T1.{relation.parent.label.name}, {function}(T2.{number.name}) {inner}")
    if alone and world.rng.random() < 0.35:
        question = world.rng.choice(
            (
                f"Show the {label} of every {parent} and the number of {children}, including {parents} without any.",
                f"For each {parent}, list the {label} and how many {children} there are, with 0 where there are none.",
                f"Give the {label} of all {parents} and the number of {children} of each, counting none as 0.",
            )
        )
        outer = inner.replace(" JOIN ", " LEFT JOIN ", 1)
        sql = f"SELECT T1.{relation.parent.label.name}, COUNT(T2.{relation.child.key.name}) {outer}"
        return Draft(question, sql)
    question = world.rng.choice(
        (
            f"For each {parent} {had}, show the {label} and the number of {children}.",
            f"List the {label} of every {parent} {had}, along with how many {children} that is.",
            f"Show the {phrases.plural(label)} of the {parents} {had} and the number of {children} for each.",
            f"Count the {children} per {parent} and show the {label} with the count, for {parents} {had}.",
        )
    )
    return Draft(question, f"SELECT T1.{relation.parent.label.name}, COUNT(*) {inner}")


def per_parent_having(world: World) -> Draft | None:
    """Parents with many or few children (at least one)."""
    relation = _relation(world, parent_label=True)
    if relation is None:
        return None
    limit = world.rng.choice((2, 2, 3, 3, 4, 5, 6, 8, 10))
    sign, than = world.rng.choice(((">", "more than"), (">=", "at least"), ("=", "exactly"), (">", "over")))
    condition = world.condition(relation.child) if world.rng.random() < 0.25 else None
    conditions = [condition] if condition else []
    children = noun_phrase(phrases.plural(world.noun(relation.child)), conditions)
    rows = (
        f"{phrases.plural(world.noun(relation.parent))} {relation.reference.has.format(f'{than} {limit} {children}')}"
    )
    question = phrases.show([world.word(relation.parent.label)], rows, world.rng)
    sql = (
        f"SELECT T1.{relation.parent.label.name} FROM {relation.parent.name} AS T1 JOIN {relation.child.name} AS T2 "
        f"ON {relation.join('T2', 'T1')}{where(conditions, 'T2.')} GROUP BY T1.{relation.parent.key.name} "
        f"HAVING COUNT(*) {sign} {limit}"
    )
    return Draft(question, sql, tuple(c.column for c in conditions))


def top_parent(world: World) -> Draft | None:
    """The parent with the most children, or with the largest sum or average over them."""
    relation = _relation(world, parent_label=True)
    if relation is None:
        return None
    numbers = [c for c in relation.child.of_role("number") if not c.null]
    parent, label = world.noun(relation.parent), world.word(relation.parent.label)
    children = phrases.plural(world.noun(relation.child))
    if numbers and world.rng.random() < 0.4:
        number = world.rng.choice(numbers)
        function = world.rng.choice(("AVG", "SUM")) if number.sums else "AVG"
        down = world.rng.random() < 0.7
        key = f"{function}(T2.{number.name})"
        noun = f"{'average' if function == 'AVG' else 'total'} {world.word(number)}"
        row = f"the {parent} whose {children} have the {'highest' if down else 'lowest'} {noun}"
    else:
        key, down = "COUNT(*)", True
        row = f"the {parent} {relation.reference.has.format(f'the most {children}')}"
    extra = world.projection(relation.parent, 1)[0] if world.rng.random() < 0.25 else relation.parent.label
    word = label if extra is relation.parent.label else world.word(extra)
    question = phrases.show_one([word], row, world.rng)
    sql = (
        f"SELECT T1.{extra.name} FROM {relation.parent.name} AS T1 JOIN {relation.child.name} AS T2 ON "
        f"{relation.join('T2', 'T1')} GROUP BY T1.{relation.parent.key.name} ORDER BY {key} "
        f"{'DESC' if down else 'ASC'} LIMIT 1"
    )
    return Draft(question, sql, (), key)


def per_parent_category(world: World) -> Draft | None:
    """Children counted, or their number averaged, by a category of the parent."""
    relation = _relation(world)
    if relation is None:
        return None
    categories = [c for c in relation.parent.of_role("category") if not c.null]
    if not categories:
        return None
    category = world.rng.choice(categories)
    children = phrases.plural(world.noun(relation.child))
    word, role = world.word(category), world.word(relation.reference)
    numbers = relation.child.of_role("number")
    expression, phrase = "COUNT(*)", f"number of {children}"
    if numbers and world.rng.random() < 0.5:
        number = world.rng.choice(numbers)
        function = draw_function(world, number)
        expression = f"{function}(T1.{number.name})"
        phrase = f"{aggregate_phrase(world, number, function)} of {children}"
    question = world.rng.choice(
        (
            f"Show the {word} of the {role} and the {phrase}, grouped by that {word}.",
            f"For each {word} of the {role}, show the {word} and the {phrase}.",
            f"List each {role} {word} with the {phrase}.",
        )
    )
    sql = f"SELECT T2.{category.name}, {expression} FROM {child_and_parent(relation)} GROUP BY T2.{category.name}"
    return Draft(question, sql, (category,))


def ordered_by_parent(world: World) -> Draft | None:
    """The few children at one end of an order, beside the name of their parent."""
    relation = _relation(world, parent_label=True)
    if relation is None:
        return None
    numbers = [c for c in relation.child.of_role("number", "date") if not c.null]
    if not numbers:
        return None
    column, down = world.rng.choice(numbers), world.rng.random() < 0.65
    row = extreme_text(column, world.word(column), world.noun(relation.child), down)
    question = phrases.show_one(
        [world.word(relation.parent.label)], f"the {world.word(relation.reference)} of the {row}", world.rng
    )
    sql = (
        f"SELECT T2.{relation.parent.label.name} FROM {child_and_parent(relation)} ORDER BY T1.{column.name} "
        f"{'DESC' if down else 'ASC'} LIMIT 1"
    )
    if relation.reference.null:
        return None
    return Draft(question, sql, (), f"T1.{column.name}")
