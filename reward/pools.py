"""Pools of values: what the columns that gold or a foreign key ties together may hold in a generated database."""

import random

from reward.checks import read_checks
from reward.conditions import Condition, Reading
from reward.dates import is_date
from reward.schema import ColumnKey, Schema
from reward.values import candidates_for, fresh_value, holds, near_misses, random_value

Wanted = list[tuple[Condition, bool]]
"""Conditions, and whether each of them is to hold."""


class Pools:
    """Values by column. `flat`: measures that gold compares with no literal have one value, so that it is its own
    average.
    """

    def __init__(self, schema: Schema, reading: Reading, near: bool, rng: random.Random, flat: bool):
        self.schema = schema
        self.reading = reading
        self.near = near
        self.rng = rng
        self.flat = flat
        self.checks = read_checks(schema)
        self.parents = self._foreign_keys()
        self._root: dict[ColumnKey, ColumnKey] = {}
        self._members = self._tie_columns()
        self._pools: dict[ColumnKey, list] = {}
        self._asked = {table for scope in reading.scopes for table in scope.tables.values()}
        self._used: dict[ColumnKey, set] = {}

    def is_key(self, key: ColumnKey) -> bool:
        """Whether the column is unique in its table, by declaration, by its name or because gold needs it."""
        return key in self.reading.keys or self.schema.tables[key[0]].is_key(key[1])

    def nullable(self, key: ColumnKey) -> bool:
        """Whether a near database may have NULL there: not in keys, nor in what settles columns shown bare."""
        table = self.schema.tables[key[0]]
        if table.columns[key[1]].required or any(key[1] in columns for columns in table.keys):
            return False
        return key not in self.reading.determining

    def pick(self, key: ColumnKey) -> object:
        """A value of the column's pool; numbers sometimes outside it, so that sums and orders have few ties."""
        root = self._find(key)
        if root == key and not self.flat and key not in self.checks:
            alone = key[0] not in self._asked and len(self._members[root]) == 1 and not self.schema.column(key).samples
            # Of tables that gold does not name, columns that nothing refers to need no pool.
            if alone or (self._is_measure(key) and self.rng.random() < 0.4):
                return random_value(self.schema.column(key), key in self.reading.numeric, self.rng, key in self.reading.dated)
        pool = self._pool(root)
        return pool[min(int(self.rng.random() ** 1.3 * len(pool)), len(pool) - 1)]

    def choose(self, key: ColumnKey, wanted: Wanted, keyed: bool = False) -> object:
        """A value for which each condition holds or fails as wanted; the pool's where none does.

        keyed: one that no witness took before where there is one, because two rows with the same key cannot both stay.
        """
        options = list(self._pool(self._find(key)))
        wanted = wanted + [(check, True) for check in self.checks.get(key, ())]
        column = self.schema.column(key)
        dated = key in self.reading.dated or is_date(column)
        for condition, _ in wanted:
            options += candidates_for(condition, dated)
        if any(condition.operator == "null" for condition, _ in wanted):
            options.append(None)
        fitting = [value for value in options if all(holds(condition, value) == want for condition, want in wanted)]
        if not keyed:
            return self.rng.choice(fitting or options)
        used = self._used.setdefault(self._find(key), set())
        unused = [value for value in fitting if value not in used]
        if not unused and not wanted:
            unused = [fresh_value(used | set(options), options[0], self.rng)]
        value = self.rng.choice(unused or fitting or options)
        used.add(value)
        return value

    def beyond(self, key: ColumnKey, above: bool) -> object:
        """A number greater (or less) than all of the pool; None where the pool holds something else."""
        pool = self._pool(self._find(key))
        if key in self.checks or not all(isinstance(value, (int, float)) for value in pool):
            return None
        return int(max(pool)) + self.rng.randint(1, 300) if above else int(min(pool)) - self.rng.randint(1, 300)

    def unused(self, key: ColumnKey, outside: bool = False) -> object:
        """A value that no witness took before; `outside`: nor any row ever takes from the pool."""
        used = self._used.setdefault(self._find(key), set())
        pool = self._pool(self._find(key))
        value = None if outside else next((value for value in pool if value not in used), None)
        if value is None:
            value = fresh_value(used | set(pool), self.rng.choice(pool), self.rng)
        used.add(value)
        return value

    def _foreign_keys(self) -> dict[ColumnKey, ColumnKey]:
        """Declared parents, and those that gold's joins suggest: the other side is a key."""
        parents = {}
        for name, table in self.schema.tables.items():
            for child, parent, target in table.foreign_keys:
                parents[(name, child)] = (parent, target)
        for pair in self.reading.shared:
            for child, parent in (pair, pair[::-1]):
                if self.is_key(parent) and not self.is_key(child) and child[0] != parent[0]:
                    parents.setdefault(child, parent)
        return parents

    def _tie_columns(self) -> dict[ColumnKey, list[ColumnKey]]:
        """The columns that share a pool, under one that stands for them."""
        for name, table in self.schema.tables.items():
            for column in table.columns:
                self._root[(name, column)] = (name, column)
        for left, right in [*self.reading.shared, *self.parents.items()]:
            first, second = self._find(left), self._find(right)
            if first != second:
                self._root[max(first, second)] = min(first, second)
        members: dict[ColumnKey, list[ColumnKey]] = {}
        for key in self._root:
            members.setdefault(self._find(key), []).append(key)
        return members

    def _pool(self, root: ColumnKey) -> list:
        if root not in self._pools:
            self._pools[root] = self._make_pool(self._members[root])
        return self._pools[root]

    def _make_pool(self, keys: list[ColumnKey]) -> list:
        pool: list = []
        for key in keys:
            for literal in self.reading.literals.get(key, ()):
                fits = "%" not in str(literal) and "_" not in str(literal)
                pool += [literal] * 2 * fits + near_misses(literal, self.near)
        samples = [value for key in keys for value in self.schema.column(key).samples]
        keyed = any(self.is_key(key) for key in keys)
        numeric, dated = (any(key in named for key in keys) for named in (self.reading.numeric, self.reading.dated))
        if self.flat and not pool and not keyed and self._is_measure(keys[0]):
            value = samples[0] if samples else random_value(self.schema.column(keys[0]), numeric, self.rng)
            return [round(value) if isinstance(value, float) else value]  # an average of fractions may be rounded
        if samples:
            pool += self.rng.sample(samples, min(8, len(samples)))
        wanted = 12 if keyed else 5
        while len(pool) < wanted or (not samples and len(pool) < wanted + 3 and self.rng.random() < 0.7):
            pool.append(random_value(self.schema.column(keys[0]), numeric, self.rng, dated))
        checks = [check for key in keys for check in self.checks.get(key, ())]
        if checks:
            for check in checks:
                pool += candidates_for(check)
                pool += [v + self.rng.randint(1, 500) for v in check.values if isinstance(v, (int, float))]
            pool = [value for value in pool if all(holds(check, value) for check in checks)] or pool
        return pool

    def _is_measure(self, key: ColumnKey) -> bool:
        column = self.schema.column(key)
        if key in self.reading.numeric:
            return True
        return column.affinity in ("integer", "real", "numeric") and not column.samples

    def _find(self, key: ColumnKey) -> ColumnKey:
        while self._root[key] != key:
            key = self._root[key]
        return key
