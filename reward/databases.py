"""Small generated databases that tell a right query from a nearly right one, made from gold's own conditions.

Tidy databases keep the natural constraints (no NULLs, valid foreign keys, unique keys and labels); near ones break
them. Both hold gold's literals, near misses, random values, and for each SELECT rows that satisfy it or break one
condition alone. Everything follows from (schema, reading, tier, variant, seed).
"""

import hashlib
import marshal
import random

from reward.conditions import Reading
from reward.pools import Pools
from reward.sandbox import Database
from reward.schema import Schema, Table
from reward.values import fresh_value, holds, near_misses
from reward.witnesses import Row, Witnesses

VARIANTS = ("plain", "flat", "starved")
_RANDOM_ROWS = (3, 6, 6, 9, 14)  # a table; few rows show what many hide, as a group of one row does
_UNUSED_ROWS = 3
_NULL_SHARES = (0.03, 0.06, 0.25)
_TWINS = 4


def make_database(
    schema: Schema, reading: Reading, tier: str, seed: str, unique_labels: bool = True, variant: str = "plain"
) -> Database:
    """One database; `tier` is tidy or near, `seed` any text. `unique_labels` False where gold groups rows by label.

    variant: `flat` has the same number in all rows of a column of measures, `starved` (near only) lacks the rows that
    one condition or one join of gold looks for.
    """
    rows = _Filler(schema, reading, tier, random.Random(seed), unique_labels, variant).fill()
    packed = tuple(
        (
            table.name,
            len(table.columns),
            [tuple(row[column] for column in table.columns) for row in rows[name]],
        )
        for name, table in schema.tables.items()
    )
    ddl = tuple(schema.ddl)
    key = hashlib.sha256(marshal.dumps((ddl, packed), 2)).hexdigest()[:20]
    return Database(key, seed.rsplit("/", 1)[-1], tier, None, ddl, packed)


class _Filler:
    def __init__(
        self, schema: Schema, reading: Reading, tier: str, rng: random.Random, unique_labels: bool, variant: str
    ):
        self.schema = schema
        self.reading = reading
        self.near = tier == "near"
        self.rng = rng
        self.unique_labels = unique_labels and not self.near
        self.starved = variant == "starved"
        self.pools = Pools(schema, reading, self.near, rng, variant == "flat")
        self.witnesses = Witnesses(self.pools, reading.scopes, self.near, rng)
        self.rows = self.witnesses.rows

    def fill(self) -> dict[str, list[Row]]:
        """Rows of every table: witnesses stand first, so that repairs change random rows rather than them."""
        self._add_random_rows()
        self._add_twins()
        for (name, column), value in self.reading.single:
            others = near_misses(value, near=False)
            for row in [row for row in self.rows[name] if row[column] == value][1:]:
                row[column] = self.rng.choice(others)
        for name, table in self.schema.tables.items():
            self._make_unique(name, table)
        for name, table in self.schema.tables.items():
            if self.near:
                self._add_orphans(name)
                self._add_nulls(name, table)
            else:
                self._repair_foreign_keys(name)
        for name in self.schema.tables:
            self._settle_dependents(name)
        if self.near and self.starved:
            self._starve()
        for rows in self.rows.values():
            self.rng.shuffle(rows)
        return self.rows

    def _add_random_rows(self) -> None:
        count = self.rng.choice(_RANDOM_ROWS)
        used = {table for scope in self.reading.scopes for table in scope.tables.values()}
        for name, table in self.schema.tables.items():
            rows = self.rows[name]
            rows += [{} for _ in range(count if name in used or not used else _UNUSED_ROWS)]
            if self.near:
                rows += [dict(self.rng.choice(rows)) for _ in range(2)]
            for row in rows:
                for column in table.columns:
                    if column not in row:
                        row[column] = self.pools.pick((name, column))

    def _add_twins(self) -> None:
        """Copies of some satisfying rows, with another value in one column: duplicates of what gold shows, and ties."""
        satisfying = self.witnesses.satisfying
        for name, row in self.rng.sample(satisfying, min(len(satisfying), _TWINS)):
            twin = dict(row)
            column = self.rng.choice(list(self.schema.tables[name].columns))
            if self.rng.random() < 0.7:
                twin[column] = self.pools.pick((name, column))
            self.rows[name].append(twin)

    def _make_unique(self, name: str, table: Table) -> None:
        """Declared keys are unique in every tier; inferred keys and labels in tidy databases."""
        single = [key[0] for key in table.keys if len(key) == 1]
        single += sorted(column for owner, column in self.reading.keys if owner == name)
        if not self.near:
            single += [inferred] if (inferred := table.inferred_key()) else []
            single += table.labels() if self.unique_labels else []
        for column in dict.fromkeys(single):
            taken: set = set()
            everything = {row[column] for row in self.rows[name]}
            for row in self.rows[name]:
                if row[column] in taken or row[column] is None:
                    row[column] = fresh_value(everything, row[column], self.rng)
                    everything.add(row[column])
                taken.add(row[column])
        for key in (key for key in table.keys if len(key) > 1):
            seen: set = set()
            kept = []
            for row in self.rows[name]:
                values = tuple(row[column] for column in key)
                if values not in seen:
                    kept.append(row)
                seen.add(values)
            self.rows[name] = kept

    def _settle_dependents(self, name: str) -> None:
        """Rows of one table that agree in a determining column agree in what it settles."""
        keys = self.schema.tables[name].keys
        unique = {column for column in self.schema.tables[name].columns if (column,) in keys}
        for (owner, column), dependents in self.reading.determining.items():
            firsts: dict[object, Row] = {}
            for row in self.rows[name] if owner == name else ():
                first = firsts.setdefault(row[column], row)
                row.update((dependent, first[dependent]) for dependent in dependents - unique)

    def _repair_foreign_keys(self, name: str) -> None:
        """Children point at parents that exist, and some parents have no child."""
        for (child_table, child), (parent, target) in self.pools.parents.items():
            if child_table != name or not self.rows[parent]:
                continue
            existing = [row[target] for row in self.rows[parent]]
            known = set(existing)
            childless = self.witnesses.childless.get((parent, target), set())
            eligible = [value for value in existing[: max(1, len(existing) * 2 // 3)] if value not in childless]
            for row in self.rows[name]:
                if row[child] not in known:
                    row[child] = self.rng.choice(eligible or existing)

    def _add_orphans(self, name: str) -> None:
        """One row a foreign key points at no parent, unless the column is a key itself."""
        for (child_table, child), (parent, target) in self.pools.parents.items():
            if child_table == name and self.rows[name] and not self.pools.is_key((name, child)):
                existing = {row[target] for row in self.rows[parent]}
                row = self.rng.choice(self.rows[name])
                row[child] = fresh_value(existing, row[child], self.rng)

    def _add_nulls(self, name: str, table: Table) -> None:
        """One NULL at least in each column that may have it, and in some columns many."""
        for column in table.columns:
            if not self.pools.nullable((name, column)) or not self.rows[name]:
                continue
            certain = self.rng.choice(self.rows[name])
            share = self.rng.choice(_NULL_SHARES)
            for row in self.rows[name]:
                if row is certain or self.rng.random() < share:
                    row[column] = None

    def _starve(self) -> None:
        """Takes away what one join or one condition of gold looks for."""
        targets: list[tuple] = [
            (table, None) for scope in self.reading.scopes for table in list(scope.tables.values())[1:]
        ]
        targets += [
            (scope.tables[condition.place[0]], condition)
            for scope in self.reading.scopes
            for condition in scope.conditions
        ]
        if targets:
            table, condition = self.rng.choice(targets)
            kept = [row for row in self.rows[table] if condition and not holds(condition, row[condition.place[1]])]
            self.rows[table] = kept
