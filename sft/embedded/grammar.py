"""What the question templates share: a database with rows to draw from, and a question with its SQL."""

import random
from dataclasses import dataclass, field

from sft.embedded.conditions import Condition, draw_condition
from sft.embedded.schema import Column, Database, Table


@dataclass(frozen=True)
class Draft:
    """A question before it is executed. `tie` is the sort key of a query that ends with LIMIT."""

    question: str
    sql: str
    columns: tuple[Column, ...] = ()  # columns whose stored codes may have to be explained
    tie: str | None = None


@dataclass
class World:
    """One database with its rows, and the random generator that templates draw from."""

    database: Database
    rows: dict[str, list[dict]]
    rng: random.Random
    relations: list["Relation"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.relations = [
            Relation(table, column, self.database.table(column.to))
            for table in self.database.tables
            for column in table.of_role("reference")
        ]

    def table(self) -> Table:
        """A random table that is more than a link between two others."""
        return self.rng.choice([table for table in self.database.tables if not table.link])

    def labelled(self) -> Table | None:
        """A random table whose rows have names."""
        tables = [table for table in self.database.tables if table.label]
        return self.rng.choice(tables) if tables else None

    def values(self, table: Table, column: Column) -> list:
        """Values of a column without NULLs."""
        return [row[column.name] for row in self.rows[table.name] if row[column.name] is not None]

    def noun(self, table: Table) -> str:
        """One of the table's singular nouns."""
        return self.rng.choice(table.nouns)

    def word(self, column: Column) -> str:
        """One of the column's singular nouns."""
        return self.rng.choice(column.words)

    def condition(self, table: Table, besides: tuple[str, ...] = ()) -> Condition | None:
        """A condition on a column of the table not in `besides`."""
        return draw_condition(table, self.rows[table.name], self.rng, besides)

    def plain_condition(self, table: Table, besides: tuple[str, ...] = ()) -> Condition | None:
        """A condition without a negation, for places where "not" would read badly."""
        for _ in range(5):
            condition = self.condition(table, besides)
            if condition is None or not ("<>" in condition.sql or condition.sql.endswith("= 0")):
                return condition
        return None

    def projection(self, table: Table, count: int, besides: tuple[str, ...] = ()) -> list[Column]:
        """`count` columns to show: the label nearly always, then others; in the order of the question."""
        others = [c for c in table.columns if c.role in ("category", "text", "number", "year", "date")]
        others = [c for c in others if c.name not in besides]
        label = table.label
        if label and (self.rng.random() < 0.75 or not others):
            return [label, *self.rng.sample(others, min(count - 1, len(others)))]
        return self.rng.sample(others, min(count, len(others)))


@dataclass(frozen=True)
class Relation:
    """A foreign key: rows of `child` point to a row of `parent` by `reference`."""

    child: Table
    reference: Column
    parent: Table

    def join(self, child: str, parent: str) -> str:
        """ON condition between two aliases."""
        return f"{child}.{self.reference.name} = {parent}.{self.parent.key.name}"


def named(table: Table, noun: str, label: object, rng: random.Random) -> str:
    """One row by its name: "Anna Smith" or "the cake called Lemon Delight"."""
    if table.label.says:
        return f"the {noun} {table.label.says[0].format(v=label)}"
    if table.person:
        return rng.choice((str(label), str(label), f"the {noun} {label}", f"the {noun} named {label}"))
    return rng.choice(
        (f"the {noun} {label}", f"the {noun} '{label}'", f"the {noun} called {label}", f"the {noun} named {label}")
    )


def named_with(relation: Relation, label: object, rng: random.Random) -> str:
    """The parent's name inside a phrase about its children: "baked by Anna Smith"."""
    text = str(label)
    if not relation.parent.person and rng.random() < 0.35:
        text = f"the {rng.choice(relation.parent.nouns)} {text}"
    return rng.choice(relation.reference.says).format(v=text)
