"""The embedded questions: drawn from the grammar, executed, and split by database."""

import random
import re
import sqlite3
from collections import Counter
from pathlib import Path

from reward.queries import query_kinds
from sft.embedded import aggregates, chains, joins, nested, sets, single
from sft.embedded.grammar import Draft, World
from sft.embedded.phrases import article
from sft.embedded.renaming import renamed
from sft.embedded.rows import draw_rows, write_database
from sft.embedded.schema import SPLITS, Database, load_databases

SIZES = {"train": 2000, "dev": 400, "test": 500}
# Every train database also stands under so many other sets of names, each with rows and questions of its own.
RENAMED = 3
MAX_RESULT_ROWS = 60

# Weights are rough percentages of the questions; a template that a database cannot serve gives its share away.
TEMPLATES = (
    (single.all_rows, 2),
    (single.one_filter, 11),
    (single.two_filters, 7),
    (single.lookup, 6),
    (single.distinct, 3.5),
    (single.null, 3),
    (single.pattern, 3.5),
    (single.extreme, 9),
    (single.ordered, 6),
    (aggregates.count_rows, 6),
    (aggregates.aggregate, 6),
    (aggregates.count_distinct, 2),
    (aggregates.group_count, 3.5),
    (aggregates.group_aggregate, 3),
    (aggregates.having, 2.5),
    (aggregates.top_group, 2),
    (joins.child_with_parent, 2.3),
    (joins.child_of_parent, 4),
    (joins.parent_of_child, 1.3),
    (joins.per_parent, 1.8),
    (joins.per_parent_having, 1.1),
    (joins.top_parent, 1.3),
    (joins.per_parent_category, 1.1),
    (joins.ordered_by_parent, 0.7),
    (chains.three_in_a_row, 2.4),
    (chains.two_parents, 2),
    (chains.linked, 2.6),
    (nested.above_average, 1.4),
    (nested.than_named, 0.9),
    (nested.at_extreme, 0.7),
    (nested.with_children, 1.8),
    (nested.without_children, 1.7),
    (nested.children_of_extreme, 0.6),
    (sets.of_categories, 1.2),
    (sets.of_parents, 1.4),
    (sets.of_names, 0.8),
)


def build(seed: int = 0, folder: Path = Path("databases")) -> dict[str, list[dict]]:
    """Writes every database to `folder/<database>.sqlite` and returns the rows of each split.

    The rows have the columns of the examples format. Test is drawn first, so that a question or a query that would
    recur in another split (see `question_key`, `query_key`) is dropped from development or train.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    databases = load_databases()
    taken: set[str] = set()
    splits: dict[str, list[dict]] = {}
    for split in reversed(SPLITS):
        members = [database for database in databases if database.split == split]
        if split == "train":
            members += [renamed(database, number) for number in range(2, 2 + RENAMED) for database in members]
        share, rest = divmod(SIZES[split], len(members))
        examples, keys = [], set()  # examples: one list a database
        for index, database in enumerate(members):
            path = folder / f"{database.name}.sqlite"
            rows = draw_rows(database, seed)
            write_database(database, rows, path)
            world = World(database, rows, random.Random(f"{seed}/{database.name}/questions"))
            drafts = _drafts(world, path, share + (index < rest), taken)
            for draft in drafts:
                keys |= {question_key(draft.question), query_key(draft.sql)}
            examples.append([_example(database, path, number, draft) for number, draft in enumerate(drafts)])
        taken |= keys
        splits[split] = _in_turn(examples, random.Random(f"{seed}/{split}"))
    return {split: splits[split] for split in SPLITS}


def _in_turn(groups: list[list[dict]], rng: random.Random) -> list[dict]:
    """One example of every database in random order, then the next of each: a slice [:n] holds all databases alike."""
    groups = [rng.sample(group, len(group)) for group in groups]
    rounds = range(max(len(group) for group in groups))
    return [group[round_] for round_ in rounds for group in rng.sample(groups, len(groups)) if round_ < len(group)]


def question_key(question: str) -> str:
    """What two near-duplicate questions share: their words without case, punctuation and numbers."""
    return " ".join(re.findall(r"[a-z]+", question.lower()))


def query_key(sql: str) -> str:
    """What two near-duplicate queries share: the SQL without its literals."""
    return re.sub(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b", "?", sql)


def _example(database: Database, path: Path, number: int, draft: Draft) -> dict:
    notes = list(
        dict.fromkeys(c.evidence for c in draft.columns if c.evidence and re.search(rf"\b{c.name}\b", draft.sql))
    )
    return {
        "example_id": f"{database.name}-{number:04d}",
        "source": "embedded",
        "question": draft.question,
        "context": database.ddl,
        "gold": draft.sql,
        "gold_sql": draft.sql,
        "database": str(path),
        "evidence": "; ".join(notes) or None,
        "answerable": True,
        "kind": query_kinds(draft.sql),
        "split": database.split,
        "license": "Apache-2.0",
    }


def _drafts(world: World, path: Path, wanted: int, taken: set[str]) -> list[Draft]:
    """`wanted` questions with answers, no two alike, none with a key in `taken`."""
    templates = [template for template, _ in TEMPLATES]
    weights = [weight for _, weight in TEMPLATES]
    connection = sqlite3.connect(path)
    drafts: list[Draft] = []
    questions, queries, shapes = set(), set(), Counter()
    template, tries = None, 0
    for _ in range(wanted * 100):
        if len(drafts) == wanted:
            break
        if tries == 0:  # a template has several tries, so that the hard ones keep their share
            template, tries = world.rng.choices(templates, weights)[0], 15
        tries -= 1
        draft = template(world)
        if draft is None:
            continue
        draft = Draft(sentence(draft.question, world.rng), draft.sql, draft.columns, draft.tie)
        keys = question_key(draft.question), query_key(draft.sql)
        if draft.question.lower() in questions or draft.sql in queries or taken & set(keys):
            continue
        if shapes[keys[1]] >= 2 or not is_sound(connection, draft):
            continue
        drafts.append(draft)
        tries = 0
        questions.add(draft.question.lower())
        queries.add(draft.sql)
        shapes[keys[1]] += 1
    connection.close()
    if len(drafts) < wanted:
        raise ValueError(
            f"{world.database.name}: {len(drafts)} questions found, {wanted} wanted; give its schema more "
            f"columns or rows"
        )
    return drafts


def sentence(question: str, rng: random.Random) -> str:
    """Final form: a capital first letter; one question in sixteen is all lower case, as people type in haste."""
    question = article(" ".join(question.split()))
    if rng.random() < 1 / 16 and not re.search(r"'|\$|#", question):
        return question.lower().rstrip(".")
    return question[0].upper() + question[1:]


def is_sound(connection: sqlite3.Connection, draft: Draft) -> bool:
    """The answer is not empty, not one row of NULLs or zeros, not endless, and no LIMIT cuts a tie."""
    rows = connection.execute(draft.sql).fetchall()
    if not rows or len(rows) > MAX_RESULT_ROWS or (len(rows) == 1 and all(value in (None, 0) for value in rows[0])):
        return False
    if not _discriminates(connection, draft.sql, rows):
        return False
    if draft.tie is None:
        return True
    head, _, limit = draft.sql.rpartition(" LIMIT ")
    longer = f"{head.replace('SELECT ', f'SELECT {draft.tie}, ', 1)} LIMIT {int(limit) + 1}"
    keys = [row[0] for row in connection.execute(longer)]
    return len(keys) == int(limit) + 1 and keys[-1] != keys[-2] and None not in keys


def _discriminates(connection: sqlite3.Connection, sql: str, rows: list[tuple]) -> bool:
    """Every part of the query changes its answer: WHERE, HAVING, DISTINCT, each side of a set operation."""
    for operation in (" INTERSECT ", " UNION ", " EXCEPT "):
        left, found, right = sql.partition(operation)
        if found:
            return all(set(connection.execute(side)) != set(rows) for side in (left, right))
    if sql.startswith("SELECT DISTINCT") and (
        len(rows) < 2 or len(rows) == len(connection.execute(sql.replace("DISTINCT ", "", 1)).fetchall())
    ):
        return False
    if "COUNT(DISTINCT" in sql and rows[0][0] < 2:
        return False
    grouped, having, _ = sql.partition(" HAVING ")
    if having and len(connection.execute(grouped).fetchall()) == len(rows):
        return False
    if " GROUP BY " in sql and not having and " LIMIT " not in sql and len(rows) < 2:
        return False
    if " WHERE " not in sql:
        return True
    tables = re.search(r" FROM (.*?) WHERE ", sql)[1]
    if "(" in tables:  # the only WHERE is that of a subquery
        return True
    condition = re.split(r" GROUP BY | ORDER BY ", sql.split(" WHERE ", 1)[1])[0]
    kept, all_rows = connection.execute(
        f"SELECT COUNT(*) FILTER (WHERE {condition}), COUNT(*) FROM {tables}"
    ).fetchone()
    return kept < all_rows
