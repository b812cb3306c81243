"""CHECK clauses: what a generated row must keep to be stored at all."""

import re

from sqlglot import exp

from reward.conditions import COMPARISONS, Condition, conjuncts, literal_value
from reward.queries import parse
from reward.schema import ColumnKey, Schema

_CHECK = re.compile(r"\bCHECK\s*(\([^()]*(?:\([^()]*\)[^()]*)*\))", re.IGNORECASE)


def read_checks(schema: Schema) -> dict[ColumnKey, list[Condition]]:
    """The conditions of CHECK clauses that compare one column with literals; rows that break them cannot be stored."""
    found: dict[ColumnKey, list[Condition]] = {}
    for statement, (name, table) in zip(schema.ddl, schema.tables.items()):
        for text in _CHECK.findall(statement):
            tree = parse(f"SELECT * FROM t WHERE {text}")
            for part in conjuncts(tree.args["where"].this) if tree is not None else ():
                operator = "in" if isinstance(part, exp.In) else COMPARISONS.get(type(part))
                values = [literal_value(node) for node in part.expressions or [part.args.get("expression")]]
                column = part.this.name.lower() if isinstance(part.this, exp.Column) else ""
                if operator and None not in values and column in table.columns:
                    found.setdefault((name, column), []).append(Condition((name, column), operator, values))
    return found
