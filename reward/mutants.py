"""Small meaningful edits of gold: what a nearly right query looks like. A suite of databases is as good as it tells
them apart.
"""

from typing import NamedTuple

from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from reward.edits import RULES, Edit
from reward.names import Names
from reward.queries import parse
from reward.schema import Schema

KINDS = (
    "comparison",  # > to >= or <
    "equality",  # = to <> and back
    "number",  # one more, one less
    "text",  # another text, another case
    "like_pattern",  # an end of the pattern fixed
    "like_equal",  # LIKE to =, NOT LIKE
    "between",  # a bound excluded or forgotten, NOT BETWEEN
    "in_list",  # NOT IN, a member forgotten
    "null",  # IS NULL to IS NOT NULL
    "arithmetic",  # + to -, * to /
    "condition",  # one side of AND or OR forgotten
    "connective",  # AND to OR
    "where",  # forgotten
    "having",  # forgotten
    "subquery",  # its comparison, IN or EXISTS turned
    "distinct",  # added or forgotten
    "count_distinct",  # added or forgotten within COUNT
    "count_star",  # COUNT(*) to COUNT(column) and back
    "aggregate",  # MIN, MAX, SUM, AVG for one another
    "group",  # a key of GROUP BY forgotten
    "order",  # forgotten, or one key of it
    "direction",  # ASC to DESC
    "limit",  # forgotten, one more, one less
    "left_join",  # INNER to LEFT and back
    "join",  # a table forgotten of which nothing is shown or asked
    "join_key",  # another column of the same table in ON
    "column",  # another column of the same table
    "other_table",  # a column of another table in FROM
    "set_operation",  # UNION, INTERSECT, EXCEPT for one another
    "union_all",  # UNION to UNION ALL and back
    "set_side",  # one side of a set operation alone
)


class Mutant(NamedTuple):
    """One edit of gold: its kind (of KINDS) and the whole query as edited."""

    kind: str
    sql: str


def make_mutants(sql: str, schema: Schema, at_most: int = 40) -> list[Mutant]:
    """Distinct edits of gold, spread evenly over the kinds where there are more than `at_most`.

    Some may mean the same as gold: `reward.equivalence` proves it of many of those. The tree is edited in place and
    mended after each text, because a copy of it costs more than the text.
    """
    tree = parse(sql)
    if tree is None:
        return []
    names = Names(schema)
    by_kind: dict[str, list[Edit]] = {kind: [] for kind in KINDS}
    for node in list(tree.walk()):
        for rule in RULES:
            for edit in rule(node, names):
                by_kind[edit.kind].append(edit)
    seen = {_text(tree)}
    mutants: list[Mutant] = []
    waiting = [edits for edits in by_kind.values() if edits]
    while waiting and len(mutants) < at_most:
        for edits in waiting:
            edit = edits.pop(0)
            text = _edited(tree, edit)
            if text and text not in seen and len(mutants) < at_most:
                seen.add(text)
                mutants.append(Mutant(edit.kind, text))
        waiting = [edits for edits in waiting if edits]
    return mutants


def _edited(tree: exp.Expression, edit: Edit) -> str:
    """The text of the tree with one edit, which is undone before it is returned; empty if sqlglot cannot write it."""
    if edit.owner is None:
        return _text(edit.value)
    before = edit.owner.args.get(edit.key)
    edit.owner.set(edit.key, edit.value)
    text = _text(tree)
    edit.owner.set(edit.key, before)
    return text


def _text(tree: exp.Expression) -> str:
    try:
        # Writing SQLite changes nothing in the tree of a query that was read as SQLite, so no copy is made.
        return tree.sql(dialect="sqlite", unsupported_level=ErrorLevel.IGNORE, copy=False)
    except (SqlglotError, RecursionError, ValueError):
        return ""
