"""True rewrites of the words, the names and the conditions of a query.

A rule takes (tree of gold, schema) and returns SQL text with the same rows on every database, or None where it does
not apply. The tree is the rule's own copy.
"""

import re

from sqlglot import exp

from reward.conditions import literal_value
from reward.queries import KEYWORDS
from reward.schema import Schema
from reward.tokens import tokenize

_MIRRORED = {exp.EQ: exp.EQ, exp.NEQ: exp.NEQ, exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE}
_OPPOSITE = {exp.EQ: exp.NEQ, exp.NEQ: exp.EQ, exp.GT: exp.LTE, exp.LTE: exp.GT, exp.LT: exp.GTE, exp.GTE: exp.LT}


def render(tree: exp.Expression) -> str:
    return tree.sql(dialect="sqlite", comments=False)


def wrapped(node: exp.Expression) -> exp.Expression:
    return exp.Paren(this=node.copy())


def _operand(node: exp.Expression) -> exp.Expression:
    """A copy that can stand on either side of a comparison: `a = b = c` is `(a = b) = c`."""
    return wrapped(node) if isinstance(node, (exp.Binary, exp.Predicate, exp.Not)) else node.copy()


def _edited(tree: exp.Expression, kinds: type | tuple, edit) -> str | None:
    """The query with every node of `kinds` replaced by what `edit` makes of it (None: stays); None if all stay."""
    changed = False
    # Inner nodes first, so that an outer edit works on edited operands.
    for node in reversed(list(tree.find_all(kinds))):
        replacement = edit(node)
        if replacement is not None:
            node.replace(replacement)
            changed = True
    return render(tree) if changed else None


def rendered(tree: exp.Expression, schema: Schema) -> str:
    return tree.sql(dialect="sqlite", pretty=True, comments=False)


def lower_case_keywords(tree: exp.Expression, schema: Schema) -> str:
    """Keywords in lower case, a comment or a line break at every second gap, a semicolon at the end."""
    sql = render(tree)
    parts, position = [], 0
    for index, token in enumerate(tokenize(sql)):
        gap = sql[position : token.start]
        parts.append(gap if not gap or index % 2 else (" /* 'x */\n" if index % 3 else " -- it's\n\t"))
        parts.append(token.text.lower() if token.kind == "word" and token.upper in KEYWORDS else token.text)
        position = token.end
    return "".join(parts) + " ;\n"


def upper_case_names(tree: exp.Expression, schema: Schema) -> str:
    for identifier in tree.find_all(exp.Identifier):
        if identifier.name.isascii():
            identifier.set("this", identifier.name.upper())
    return render(tree)


def _quoted(tree: exp.Expression) -> str:
    for identifier in tree.find_all(exp.Identifier):
        identifier.set("quoted", True)
    return render(tree)


def quoted_names(tree: exp.Expression, schema: Schema) -> str:
    return _quoted(tree)


def backticked_names(tree: exp.Expression, schema: Schema) -> str | None:
    return _requoted(_quoted(tree), "`", "`")


def bracketed_names(tree: exp.Expression, schema: Schema) -> str | None:
    return _requoted(_quoted(tree), "[", "]")


def _requoted(sql: str, opening: str, closing: str) -> str | None:
    for token in reversed(tokenize(sql)):
        if token.kind == "double":
            name = token.text[1:-1]
            if '"' in name or opening in name or closing in name:
                return None
            sql = sql[: token.start] + opening + name + closing + sql[token.end :]
    return sql


def commuted_connectives(tree: exp.Expression, schema: Schema) -> str | None:
    return _edited(tree, (exp.And, exp.Or), lambda node: type(node)(this=node.expression.copy(), expression=node.this))


def mirrored_comparisons(tree: exp.Expression, schema: Schema) -> str | None:
    def mirror(node: exp.Expression) -> exp.Expression:
        return _MIRRORED[type(node)](this=_operand(node.expression), expression=_operand(node.this))

    return _edited(tree, tuple(_MIRRORED), mirror)


def negated_comparisons(tree: exp.Expression, schema: Schema) -> str | None:
    def negate(node: exp.Expression) -> exp.Expression | None:
        if literal_value(node.expression) is None:
            return None  # a join without an index is a true rewrite, but may pass the budget of steps
        opposite = _OPPOSITE[type(node)](this=_operand(node.this), expression=_operand(node.expression))
        return exp.Paren(this=exp.Not(this=exp.Paren(this=opposite)))

    return _edited(tree, tuple(_OPPOSITE), negate)


def double_negation(tree: exp.Expression, schema: Schema) -> str | None:
    def negate(node: exp.Expression) -> exp.Expression:
        inner = exp.Not(this=wrapped(node.this))
        return type(node)(this=exp.Not(this=exp.Paren(this=inner)))

    return _edited(tree, (exp.Where, exp.Having), negate)


def de_morgan(tree: exp.Expression, schema: Schema) -> str | None:
    def turn(node: exp.Expression) -> exp.Expression:
        other = exp.Or if isinstance(node, exp.And) else exp.And
        parts = [exp.Not(this=wrapped(side)) for side in (node.this, node.expression)]
        return exp.Paren(this=exp.Not(this=exp.Paren(this=other(this=parts[0], expression=parts[1]))))

    return _edited(tree, (exp.And, exp.Or), turn)


def between_as_comparisons(tree: exp.Expression, schema: Schema) -> str | None:
    def split(node: exp.Between) -> exp.Expression:
        low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
        high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
        return exp.Paren(this=exp.And(this=low, expression=high))

    return _edited(tree, exp.Between, split)


def comparisons_as_between(tree: exp.Expression, schema: Schema) -> str | None:
    def join(node: exp.And) -> exp.Expression | None:
        low, high = node.this.unnest(), node.expression.unnest()
        if isinstance(low, exp.LTE) and isinstance(high, exp.GTE):
            low, high = high, low
        if isinstance(low, exp.GTE) and isinstance(high, exp.LTE) and low.this == high.this:
            return exp.Between(this=low.this.copy(), low=low.expression.copy(), high=high.expression.copy())
        return None

    return _edited(tree, exp.And, join)


def in_list_as_or(tree: exp.Expression, schema: Schema) -> str | None:
    def split(node: exp.In) -> exp.Expression | None:
        values = node.expressions
        if not values or any(literal_value(value) is None for value in values):
            return None
        parts = [exp.EQ(this=node.this.copy(), expression=value.copy()) for value in values]
        return exp.Paren(this=exp.or_(*parts, copy=False))

    return _edited(tree, exp.In, split)


def or_as_in_list(tree: exp.Expression, schema: Schema) -> str | None:
    def join(node: exp.Or) -> exp.Expression | None:
        left, right = node.this.unnest(), node.expression.unnest()
        same = isinstance(left, exp.EQ) and isinstance(right, exp.EQ) and left.this == right.this
        if not same or not isinstance(left.this, exp.Column):
            return None
        if literal_value(left.expression) is None or literal_value(right.expression) is None:
            return None
        return exp.In(this=left.this.copy(), expressions=[right.expression.copy(), left.expression.copy()])

    return _edited(tree, exp.Or, join)


def equality_as_in_list(tree: exp.Expression, schema: Schema) -> str | None:
    def join(node: exp.EQ) -> exp.Expression | None:
        if not isinstance(node.this, exp.Column) or literal_value(node.expression) is None:
            return None
        return exp.In(this=node.this.copy(), expressions=[node.expression.copy()])

    return _edited(tree, exp.EQ, join)


def condition_as_case(tree: exp.Expression, schema: Schema) -> str | None:
    def wrap(node: exp.Expression) -> exp.Expression:
        branch = exp.If(this=node.this.copy(), true=exp.Literal.number(1))
        return type(node)(this=exp.Case(ifs=[branch], default=exp.Literal.number(0)))

    return _edited(tree, (exp.Where, exp.Having), wrap)


def idle_conditions(tree: exp.Expression, schema: Schema) -> str | None:
    def pad(node: exp.Expression) -> exp.Expression:
        one = exp.Literal.number(1)
        yes = exp.EQ(this=one.copy(), expression=one.copy())
        no = exp.GT(this=one.copy(), expression=exp.Literal.number(2))
        inner = exp.Paren(this=exp.Or(this=wrapped(node.this), expression=no))
        return type(node)(this=exp.And(this=yes, expression=inner))

    return _edited(tree, (exp.Where, exp.Having), pad)


def like_negated_outside(tree: exp.Expression, schema: Schema) -> str | None:
    """a NOT LIKE b and a NOT IN (...) as NOT (a LIKE b); a LIKE b as NOT (a NOT LIKE b)."""

    def turn(node: exp.Expression) -> exp.Expression | None:
        if isinstance(node.parent, exp.Escape):
            return None
        inner = exp.Paren(this=exp.Not(this=node.copy()))
        return exp.Paren(this=exp.Not(this=inner))

    return _edited(tree, (exp.Like, exp.In), turn)


def null_tests(tree: exp.Expression, schema: Schema) -> str | None:
    sql = render(tree)
    changed = re.sub(r"\bNOT ([\w.]+) IS NULL\b", r"\1 NOTNULL", sql)
    if "'" in sql or '"' in sql:
        return None  # the words might stand in a literal
    changed = re.sub(r"\bIS NULL\b", "ISNULL", changed)
    return changed if changed != sql else None


def cast_text_to_real(tree: exp.Expression, schema: Schema) -> str | None:
    """CAST(column AS REAL) where a text column is compared with a number: true where the column holds numbers."""

    def cast(node: exp.Expression) -> exp.Expression | None:
        left, right = node.this, node.expression
        if not isinstance(left, exp.Column) or not isinstance(literal_value(right), (int, float)):
            return None
        kinds = {
            table.columns[left.name.lower()].affinity
            for table in schema.tables.values()
            if left.name.lower() in table.columns
        }
        if kinds != {"text"}:
            return None
        return type(node)(this=exp.cast(left.copy(), "REAL"), expression=right.copy())

    return _edited(tree, (exp.GT, exp.GTE, exp.LT, exp.LTE, exp.EQ, exp.NEQ), cast)


# Each gold gets one of these, because they apply to all.
SPELLING = (rendered, lower_case_keywords, upper_case_names, quoted_names, backticked_names, bracketed_names)
ALWAYS = (
    commuted_connectives,
    mirrored_comparisons,
    negated_comparisons,
    double_negation,
    de_morgan,
    between_as_comparisons,
    comparisons_as_between,
    in_list_as_or,
    or_as_in_list,
    equality_as_in_list,
    condition_as_case,
    idle_conditions,
    like_negated_outside,
    null_tests,
)
NATURAL = (cast_text_to_real,)
