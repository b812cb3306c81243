"""Small generated databases that tell a right query from a nearly right one, made from gold's own conditions.

Tidy databases keep the natural constraints (no NULLs, valid foreign keys, unique keys and labels); near ones break
them. Both hold gold's literals, near misses, random values, and for each SELECT rows that satisfy it or break one
condition alone. Everything follows from (schema, reading, tier, seed).
"""

import hashlib
import marshal
import random

from reward.conditions import Condition, Reading, Scope
from reward.names import Place
from reward.sandbox import Database
from reward.schema import ColumnKey, Schema, Table
from reward.values import candidates_for, fresh_value, holds, near_misses, random_value

_RANDOM_ROWS = (3, 6, 6, 9, 14)  # a table; few rows show what many hide, as a group of one row does
_MAX_ROUNDS = 12
_MAX_LINKED = 4
_MAX_GROUP = 260
_MAX_CUT = 40
Row = dict[str, object]
Wanted = list[tuple[Condition, bool]]


def make_database(schema: Schema, reading: Reading, tier: str, seed: str, unique_labels: bool = True) -> Database:
    """One database; `tier` is tidy or near, `seed` any text. `unique_labels` False where gold groups rows by label."""
    rows = _Filler(schema, reading, tier, random.Random(seed), unique_labels).fill()
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
    def __init__(self, schema: Schema, reading: Reading, tier: str, rng: random.Random, unique_labels: bool):
        self.schema = schema
        self.reading = reading
        self.near = tier == "near"
        self.rng = rng
        self.unique_labels = unique_labels and not self.near
        self.parents = self._foreign_keys()
        self.root: dict[ColumnKey, ColumnKey] = {}
        self.pools = self._make_pools()
        self.rows: dict[str, list[Row]] = {name: [] for name in schema.tables}
        self.outputs: dict[int, list] = {}
        self.shown: dict[int, list[dict[Place, object]]] = {}
        self.used_keys: dict[ColumnKey, set] = {}
        self.childless: dict[ColumnKey, set] = {}
        self.twins: list[tuple[str, Row]] = []

    def fill(self) -> dict[str, list[Row]]:
        """Rows of every table: witnesses first, so that repairs change random rows rather than them."""
        # Subqueries come first: what links to them takes the values of their witnesses.
        for index, scope in reversed(list(enumerate(self.reading.scopes))):
            self._witnesses(index, scope)
        for scope in self.reading.scopes:
            for alias in list(scope.tables)[1:]:
                self._dangling(scope, alias)
            if scope.groups:
                self._groups(scope)
        count = self.rng.choice(_RANDOM_ROWS)
        used = {table for scope in self.reading.scopes for table in scope.tables.values()}
        for name, table in self.schema.tables.items():
            for _ in range(count if name in used or not used else 3):
                self.rows[name].append({})
            if self.near and self.rows[name]:
                self.rows[name] += [dict(self.rng.choice(self.rows[name])) for _ in range(2)]
        for name, table in self.schema.tables.items():
            for row in self.rows[name]:
                for column in table.columns:
                    if column not in row:
                        row[column] = self._pick((name, column))
        self._add_twins()
        for (name, column), value in self.reading.single:
            others = near_misses(value, near=False)
            for row in [row for row in self.rows[name] if row[column] == value][1:]:
                row[column] = self.rng.choice(others)
        for name, table in self.schema.tables.items():
            self._make_unique(name, table)
        for name, table in self.schema.tables.items():
            self._settle_dependents(name)
            if self.near:
                self._add_orphans(name)
                self._add_nulls(name, table)
            else:
                self._repair_foreign_keys(name, table)
            self.rng.shuffle(self.rows[name])
        return self.rows

    def _foreign_keys(self) -> dict[ColumnKey, ColumnKey]:
        """Declared parents, and those that gold's joins suggest: the other side is a key."""
        parents = {}
        for name, table in self.schema.tables.items():
            for child, parent, target in table.foreign_keys:
                parents[(name, child)] = (parent, target)
        for pair in self.reading.shared:
            for child, parent in (pair, pair[::-1]):
                if self._is_key(parent) and not self._is_key(child) and child[0] != parent[0]:
                    parents.setdefault(child, parent)
        return parents

    def _is_key(self, key: ColumnKey) -> bool:
        return key in self.reading.keys or self.schema.tables[key[0]].is_key(key[1])

    def _make_pools(self) -> dict[ColumnKey, list]:
        """One pool of values for all columns that gold or a foreign key ties together."""
        for name, table in self.schema.tables.items():
            for column in table.columns:
                self.root[(name, column)] = (name, column)
        for left, right in [*self.reading.shared, *self.parents.items()]:
            first, second = self._find(left), self._find(right)
            if first != second:
                self.root[max(first, second)] = min(first, second)
        members: dict[ColumnKey, list[ColumnKey]] = {}
        for key in self.root:
            members.setdefault(self._find(key), []).append(key)
        pools = {}
        for root, keys in members.items():
            pool: list = []
            for key in keys:
                for literal in self.reading.literals.get(key, ()):
                    fits = "%" not in str(literal) and "_" not in str(literal)
                    pool += [literal] * 2 * fits + near_misses(literal, self.near)
            samples = [value for key in keys for value in self.schema.column(key).samples]
            if samples:
                pool += self.rng.sample(samples, min(8, len(samples)))
            keyed = any(self._is_key(key) for key in keys)
            numeric = any(key in self.reading.numeric for key in keys)
            wanted = 12 if keyed else 5
            while len(pool) < wanted or (not samples and wanted and len(pool) < wanted + 3 and self.rng.random() < 0.7):
                pool.append(random_value(self.schema.column(keys[0]), numeric, self.rng))
            pools[root] = pool
        return pools

    def _find(self, key: ColumnKey) -> ColumnKey:
        while self.root[key] != key:
            key = self.root[key]
        return key

    def _pick(self, key: ColumnKey) -> object:
        """A value of the column's pool; numbers sometimes outside it, so that sums and orders have few ties."""
        pool = self.pools[self._find(key)]
        column = self.schema.column(key)
        measured = column.affinity in ("integer", "real", "numeric") or key in self.reading.numeric
        if measured and self._find(key) == key and not column.samples and self.rng.random() < 0.4:
            return random_value(column, key in self.reading.numeric, self.rng)
        return pool[min(int(self.rng.random() ** 1.3 * len(pool)), len(pool) - 1)]

    def _witnesses(self, index: int, scope: Scope) -> None:
        """Rows that satisfy a SELECT, that break one condition alone, that take the other branch of an OR, that LIMIT
        cuts off, that a subquery holds or does not hold, and that the other side of a set operation shows too.
        """
        satisfied = [(condition, True) for condition in scope.conditions]
        rounds = [satisfied] * (4 if scope.output else 2)
        outputs = self.outputs.setdefault(index, [])
        for broken in scope.conditions:
            rounds.append([(condition, condition is not broken) for condition in scope.conditions])
        for first, second in scope.choices:
            others = [(condition, True) for condition in scope.conditions if condition not in first]
            rounds.append(others + [(c, False) for c in first] + [(c, True) for c in second])
        for number, wanted in enumerate(rounds[:_MAX_ROUNDS]):
            given: dict[Place, object] = {}
            for place, inner, positive in scope.links:
                inside = self.outputs.get(inner)
                if inside and positive:
                    given[place] = inside[number % min(4, len(inside))]
                elif inside:
                    given[place] = fresh_value(set(inside), self._pick((scope.tables[place[0]], place[1])), self.rng)
            values = self._witness(scope, wanted, given)
            if wanted is satisfied:
                self.shown.setdefault(index, []).append(values)
            if scope.output:
                outputs.append(values[scope.output])
        for place, inner, _ in scope.links:
            for value in self.outputs.get(inner, [])[-_MAX_LINKED:]:
                self._witness(scope, satisfied, {place: value})
        if scope.twin and scope.twin[0] in self.shown:
            self._witness(scope, satisfied, {mine: self.shown[scope.twin[0]][0].get(other) for mine, other in scope.twin[1] if other in self.shown[scope.twin[0]][0]})
        for _ in range(min(scope.cut, _MAX_CUT) if scope.cut > 1 else scope.cut):
            groups = {place: self._unused_value((scope.tables[place[0]], place[1])) for place in scope.groups if not any(c.place == place for c in scope.conditions)}
            self._witness(scope, satisfied, groups)

    def _witness(self, scope: Scope, wanted: Wanted, given: dict[Place, object], upto: str | None = None) -> dict[Place, object]:
        """Adds one row a table that together make the conditions hold or fail as wanted, with the given values.

        upto: only the tables before this alias in FROM.
        """
        aliases = list(scope.tables)
        aliases = aliases[: aliases.index(upto)] if upto else aliases
        values = dict(given)
        groups: dict[Place, Place] = {}
        for left, right in scope.equal:
            if left[0] in aliases and right[0] in aliases:
                first, second = self._group(groups, left), self._group(groups, right)
                groups[first] = second
        tests: dict[Place, Wanted] = {}
        for condition, want in wanted:
            if condition.place[0] in aliases:
                tests.setdefault(self._group(groups, condition.place), []).append((condition, want))
        places = {place for pair in scope.equal for place in pair} | {condition.place for condition, _ in wanted}
        places |= set(values) | ({scope.output} if scope.output else set())
        places |= {place for pair in (scope.twin[1] if scope.twin else ()) for place in pair[:1]}
        chosen: dict[Place, object] = {}
        # What is given settles the places that must be equal to it.
        for place in sorted((place for place in places if place[0] in aliases), key=lambda p: (p not in given, p)):
            leader = self._group(groups, place)
            if place in given:
                chosen.setdefault(leader, given[place])
            if leader not in chosen:
                keyed = any(
                    self._is_key((scope.tables[alias], column))
                    for alias, column in places
                    if alias in aliases and self._group(groups, (alias, column)) == leader
                )
                chosen[leader] = self._choose((scope.tables[leader[0]], leader[1]), tests.get(leader, []), keyed)
            values[place] = chosen[leader]
        for alias in aliases:
            row = {column: value for (owner, column), value in values.items() if owner == alias}
            self.rows[scope.tables[alias]].append(row)
            if upto is None and all(want for _, want in wanted):
                self.twins.append((scope.tables[alias], row))
        return values

    def _dangling(self, scope: Scope, alias: str) -> None:
        """A row of the tables before `alias` that satisfies all their conditions and has no partner in it.

        Tidy databases have it only where no foreign key forbids it.
        """
        before = list(scope.tables)[: list(scope.tables).index(alias)]
        given: dict[Place, object] = {}
        for pair in scope.equal:
            for place, partner in (pair, pair[::-1]):
                if partner[0] != alias or place[0] not in before:
                    continue
                key = (scope.tables[place[0]], place[1])
                if not self.near and self.parents.get(key) == (scope.tables[alias], partner[1]):
                    return
                pool = self.pools[self._find(key)]
                used = self.used_keys.setdefault(self._find(key), set())
                given[place] = fresh_value(used | set(pool), self.rng.choice(pool), self.rng)
                used.add(given[place])
                self.childless.setdefault(key, set()).add(given[place])
        if given:
            satisfied = [(condition, True) for condition in scope.conditions if condition.place not in given]
            self._witness(scope, satisfied, given, alias)

    def _add_twins(self) -> None:
        """Copies of some satisfying rows, with another value in one column: duplicates of what gold shows, and ties."""
        for name, row in self.rng.sample(self.twins, min(len(self.twins), 4)):
            twin = dict(row)
            column = self.rng.choice(list(self.schema.tables[name].columns))
            if self.rng.random() < 0.7:
                twin[column] = self._pick((name, column))
            self.rows[name].append(twin)

    def _unused_value(self, key: ColumnKey) -> object:
        used = self.used_keys.setdefault(self._find(key), set())
        pool = self.pools[self._find(key)]
        value = next((value for value in pool if value not in used), None)
        value = fresh_value(used | set(pool), self.rng.choice(pool), self.rng) if value is None else value
        used.add(value)
        return value

    def _group(self, groups: dict[Place, Place], place: Place) -> Place:
        while groups.get(place, place) != place:
            place = groups[place]
        return place

    def _choose(self, key: ColumnKey, wanted: list[tuple], keyed: bool = False) -> object:
        """A value for which each condition holds or fails as wanted; the pool's where none does.

        keyed: one that no witness took before where there is one, because two rows with the same key cannot both stay.
        """
        options = list(self.pools[self._find(key)])
        for condition, _ in wanted:
            options += candidates_for(condition)
        if any(condition.operator == "null" for condition, _ in wanted):
            options.append(None)
        fitting = [value for value in options if all(holds(condition, value) == want for condition, want in wanted)]
        if keyed:
            used = self.used_keys.setdefault(self._find(key), set())
            unused = [value for value in fitting if value not in used]
            if not unused and not wanted:
                unused = [fresh_value(used | set(options), options[0], self.rng)]
            fitting = unused or fitting
        value = self.rng.choice(fitting or options)
        if keyed:
            used.add(value)
        return value

    def _groups(self, scope: Scope) -> None:
        """Groups of one row less than HAVING asks, as many, and one more; without HAVING some of different sizes."""
        sizes = {count + step for count in scope.counts for step in (-1, 0, 1)} or {1, 3, self.rng.randint(2, 5)}
        many = self._many_side(scope)
        if not many:
            return
        for size in sorted(size for size in sizes if 0 < size <= _MAX_GROUP):
            satisfied = [(condition, True) for condition in scope.conditions]
            values = self._witness(scope, satisfied, {place: self._group_value(scope, place) for place in scope.groups})
            fixed = {place: value for place, value in values.items() if place[0] in many}
            for _ in range(size - 1):
                for alias in many:
                    self.rows[scope.tables[alias]].append({p[1]: v for p, v in fixed.items() if p[0] == alias})

    def _group_value(self, scope: Scope, place: Place) -> object:
        return self._choose(
            (scope.tables[place[0]], place[1]), [(c, True) for c in scope.conditions if c.place == place]
        )

    def _many_side(self, scope: Scope) -> list[str]:
        """The aliases of which a group can hold several rows: not joined or grouped by their own key."""
        joined = {place for pair in scope.equal for place in pair} | set(scope.groups)
        unique = {alias for alias, column in joined if self._is_key((scope.tables[alias], column))}
        return [alias for alias in scope.tables if alias not in unique][:1]

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
        for (owner, column), dependents in self.reading.determining.items():
            firsts: dict[object, Row] = {}
            for row in self.rows[name] if owner == name else ():
                first = firsts.setdefault(row[column], row)
                row.update((dependent, first[dependent]) for dependent in dependents - set(self._unique_columns(name)))

    def _unique_columns(self, name: str) -> list[str]:
        return [column for column in self.schema.tables[name].columns if (column,) in self.schema.tables[name].keys]

    def _repair_foreign_keys(self, name: str, table: Table) -> None:
        """Children point at parents that exist, and some parents have no child."""
        for (child_table, child), (parent, target) in self.parents.items():
            if child_table != name or not self.rows[parent]:
                continue
            existing = [row[target] for row in self.rows[parent]]
            known = set(existing)
            childless = self.childless.get((parent, target), set())
            eligible = [value for value in existing[: max(1, len(existing) * 2 // 3)] if value not in childless]
            for row in self.rows[name]:
                if row[child] not in known:
                    row[child] = self.rng.choice(eligible or existing)

    def _add_orphans(self, name: str) -> None:
        """One row a foreign key points at no parent, unless the column is a key itself."""
        for (child_table, child), (parent, target) in self.parents.items():
            if child_table == name and self.rows[name] and not self._is_key((name, child)):
                existing = {row[target] for row in self.rows[parent]}
                row = self.rng.choice(self.rows[name])
                row[child] = fresh_value(existing, row[child], self.rng)

    def _add_nulls(self, name: str, table: Table) -> None:
        keys = {column for key in table.keys for column in key}
        for (owner, column), dependents in self.reading.determining.items():
            keys |= {column, *dependents} if owner == name else set()
        for column, declared in table.columns.items():
            if column in keys or declared.required:
                continue
            certain = self.rng.choice(self.rows[name]) if self.rows[name] else None
            for row in self.rows[name]:
                if row is certain or self.rng.random() < 0.06:
                    row[column] = None
