"""Witnesses: rows made for one SELECT, so that it and what is nearly the same answer differently."""

import random
from itertools import product

from reward.conditions import Scope
from reward.names import Place
from reward.pools import Pools, Wanted
from reward.schema import ColumnKey
from reward.values import fresh_value

_MAX_ROUNDS = 12
_MAX_LINKED = 4
_MAX_GROUP = 260
_MAX_CUT = 40
Row = dict[str, object]


class Witnesses:
    """Rows by table, in which columns that do not matter are left out.

    `satisfying`: the (table, row) of those that satisfy all conditions. `childless`: values of a column that no row of
    another table may refer to.
    """

    def __init__(self, pools: Pools, scopes: list[Scope], near: bool, rng: random.Random):
        self.pools = pools
        self.near = near
        self.rng = rng
        self.rows: dict[str, list[Row]] = {name: [] for name in pools.schema.tables}
        self.satisfying: list[tuple[str, Row]] = []
        self.childless: dict[ColumnKey, set] = {}
        self._outputs: dict[int, list] = {}
        self._first: dict[int, dict[Place, object]] = {}
        # Subqueries come first: what links to them takes the values of their witnesses.
        for index, scope in reversed(list(enumerate(scopes))):
            self._conditions(index, scope)
        for scope in scopes:
            if scope.twin:
                self._sides(scope, scopes[scope.twin[0]])
            for alias in list(scope.tables)[1:]:
                self._dangling(scope, alias)
            if scope.groups:
                self._groups(scope)

    def _conditions(self, index: int, scope: Scope) -> None:
        """Rows that satisfy a SELECT, that break one condition alone, that take the other branch of an OR, that a
        subquery holds or does not hold, that the other side of a set operation shows too, that look the same and are
        not, and that LIMIT cuts off.
        """
        satisfied: Wanted = [(condition, True) for condition in scope.conditions]
        rounds = [satisfied] * (4 if scope.output else 2)
        for broken in scope.conditions:
            rounds.append([(condition, condition is not broken) for condition in scope.conditions])
        for first, second in scope.choices:
            others = [(condition, True) for condition in scope.conditions if condition not in first]
            rounds.append(others + [(c, False) for c in first] + [(c, True) for c in second])
        outputs = self._outputs.setdefault(index, [])
        for number, wanted in enumerate(rounds[:_MAX_ROUNDS]):
            values = self._witness(scope, wanted, self._linked(scope, number))
            self._first.setdefault(index, values)
            if scope.output:
                outputs.append(values[scope.output])
        for place, inner, _ in scope.links:
            for value in self._outputs.get(inner, [])[-_MAX_LINKED:]:
                self._witness(scope, satisfied, {place: value})
        if scope.twin and scope.twin[0] in self._first:
            other = self._first[scope.twin[0]]
            self._witness(scope, satisfied, {mine: other[theirs] for mine, theirs in scope.twin[1] if theirs in other})
        self._witness(scope, satisfied, self._shown_again(scope, self._first[index]))
        for place, descending in scope.first if scope.cut and not scope.groups else ():
            # The first row once more, further behind: DISTINCT may take either of them for both.
            end = self.pools.beyond(_key(scope, place), descending)
            tested = place in {condition.place for condition in scope.conditions}
            if end is not None and not tested and self.rng.random() < 0.5:
                self._witness(scope, satisfied, self._shown_again(scope, self._first[index]) | {place: end})
        for _ in range(min(scope.cut, _MAX_CUT)):
            tested = {condition.place for condition in scope.conditions}
            groups = {place: self.pools.unused(_key(scope, place)) for place in scope.groups if place not in tested}
            self._witness(scope, satisfied, groups)

    def _sides(self, left: Scope, right: Scope) -> None:
        """What one side of a set operation shows and the other one would, but for one condition."""
        pairs = left.twin[1]
        # Where both sides group, the same group in both, of sizes about those that HAVING asks.
        sizes = [[count + step for count in side.counts[:1] or [1] for step in (-1, 0, 1)] for side in (left, right)]
        for left_size, right_size in product(*sizes) if left.groups and right.groups else ():
            values = [self.pools.unused(_key(left, mine), outside=True) for mine, _ in pairs]
            for side, size, index in ((left, left_size, 0), (right, right_size, 1)):
                if 0 < size <= _MAX_GROUP:
                    wanted = [(condition, True) for condition in side.conditions]
                    self._group(side, wanted, {pair[index]: value for pair, value in zip(pairs, values)}, size)
        for side, other, places in ((left, right, pairs), (right, left, [pair[::-1] for pair in pairs])):
            for broken in side.conditions[:_MAX_LINKED]:
                values = [self.pools.unused(_key(side, mine)) for mine, _ in places]
                shown = {theirs: value for (_, theirs), value in zip(places, values)}
                self._witness(other, [(condition, True) for condition in other.conditions], shown)
                wanted = [(condition, condition is not broken) for condition in side.conditions]
                self._witness(side, wanted, {mine: value for (mine, _), value in zip(places, values)})

    def _linked(self, scope: Scope, number: int) -> dict[Place, object]:
        """Values for the places that a subquery must hold, or must not."""
        given: dict[Place, object] = {}
        for place, inner, positive in scope.links:
            inside = self._outputs.get(inner)
            if inside and positive:
                given[place] = inside[number % min(4, len(inside))]
            elif inside:
                given[place] = fresh_value(set(inside), self.pools.pick(_key(scope, place)), self.rng)
        return given

    def _shown_again(self, scope: Scope, values: dict[Place, object]) -> dict[Place, object]:
        """What a witness showed, but for keys and what is joined: the same answer from other rows."""
        fixed = {place for pair in scope.equal for place in pair} | set(scope.groups)
        shown = (place for place in scope.shown if place not in fixed and not self.pools.is_key(_key(scope, place)))
        return {place: values[place] for place in shown if place in values}

    def _witness(
        self, scope: Scope, wanted: Wanted, given: dict[Place, object], upto: str | None = None
    ) -> dict[Place, object]:
        """Adds one row a table that together make the conditions hold or fail as wanted, with the given values.

        upto: only the tables before this alias in FROM.
        """
        aliases = list(scope.tables)
        aliases = aliases[: aliases.index(upto)] if upto else aliases
        leaders = _equal_places(scope, aliases)
        tests: dict[Place, Wanted] = {}
        for condition, want in wanted:
            tests.setdefault(leaders.get(condition.place, condition.place), []).append((condition, want))
        places = {place for pair in scope.equal for place in pair} | {condition.place for condition, _ in wanted}
        places |= {*given, *scope.shown} | ({scope.output} if scope.output else set())
        members: dict[Place, list[Place]] = {}
        for place in sorted(place for place in places if place[0] in aliases):
            members.setdefault(leaders.get(place, place), []).append(place)
        values: dict[Place, object] = {}
        for leader, group in members.items():
            settled = next((place for place in group if place in given), None)
            if settled is not None:
                value = given[settled]
            else:
                keyed = any(self.pools.is_key(_key(scope, place)) for place in group)
                value = self.pools.choose(_key(scope, leader), tests.get(leader, []), keyed)
            values.update((place, value) for place in group)
        for alias in aliases:
            row = {column: value for (owner, column), value in values.items() if owner == alias}
            self.rows[scope.tables[alias]].append(row)
            if upto is None and all(want for _, want in wanted):
                self.satisfying.append((scope.tables[alias], row))
        return values

    def _dangling(self, scope: Scope, alias: str) -> None:
        """A row of the tables before `alias` that satisfies all their conditions and has no partner in it.

        Tidy databases have it only where no foreign key forbids it; near ones sometimes so often that it is the
        greatest group.
        """
        before = list(scope.tables)[: list(scope.tables).index(alias)]
        given: dict[Place, object] = {}
        for pair in scope.equal:
            for place, partner in (pair, pair[::-1]):
                if partner[0] != alias or place[0] not in before:
                    continue
                key = _key(scope, place)
                if not self.near and self.pools.parents.get(key) == _key(scope, partner):
                    return
                given[place] = self.pools.unused(key, outside=True)
                self.childless.setdefault(key, set()).add(given[place])
        if given:
            satisfied = [(condition, True) for condition in scope.conditions if condition.place not in given]
            often = self.near and not any(self.pools.is_key(_key(scope, place)) for place in given)
            for _ in range(self.rng.choice((1, max((2, *scope.counts)) + 4)) if often else 1):
                self._witness(scope, satisfied, given, alias)

    def _groups(self, scope: Scope) -> None:
        """Groups of one row less than HAVING asks, as many, and one more; without HAVING some of different sizes.

        Also two that look the same, those whose total is about what HAVING compares it with, greater ones that break
        a condition where LIMIT cuts, and in near databases great ones of NULLs.
        """
        sizes = {count + step for count in scope.counts for step in (-1, 0, 1)} or {1, 3, self.rng.randint(2, 5)}
        ordered = sorted(size for size in sizes if 0 < size <= _MAX_GROUP)
        satisfied: Wanted = [(condition, True) for condition in scope.conditions]
        for place, total in scope.totals:
            for value in (total - 1, total, total + 1):
                given = {other: 0 for other, _ in scope.totals} | {place: value}
                self._witness(scope, satisfied, given | self._group_values(scope))
        if not ordered:
            return
        values: dict[Place, object] = {}
        for size in ordered:
            values = self._group(scope, satisfied, self._group_values(scope), size)
        self._group(scope, satisfied, self._group_values(scope) | self._shown_again(scope, values), ordered[-1])
        for broken in scope.conditions[:3] if scope.cut else ():
            wanted = [(condition, condition is not broken) for condition in scope.conditions]
            self._group(scope, wanted, {}, ordered[-1] + self.rng.randint(1, 2))
        if self.near:
            nothing = {place: None for place in scope.groups if self.pools.nullable(_key(scope, place))}
            empty = not nothing or self.rng.random() < 0.5
            given = self._group_values(scope) if empty else nothing
            self._group(scope, satisfied, given, ordered[-1] + self.rng.randint(1, 6), empty)

    def _group(self, scope: Scope, wanted: Wanted, given: dict[Place, object], size: int, empty: bool = False) -> dict:
        """One group; `empty`: with NULL in all columns that do not matter."""
        begin = {alias: len(self.rows[table]) for alias, table in scope.tables.items()}
        values = self._witness(scope, wanted, given)
        for alias in self._many_side(scope):
            fixed = {column: value for (owner, column), value in values.items() if owner == alias}
            self.rows[scope.tables[alias]] += [dict(fixed) for _ in range(size - 1)]
        for alias, table in scope.tables.items() if empty else ():
            for row in self.rows[table][begin[alias] :]:
                for column in self.pools.schema.tables[table].columns:
                    if column not in row and self.pools.nullable((table, column)):
                        row[column] = None
        return values

    def _group_values(self, scope: Scope) -> dict[Place, object]:
        """A new value for each key of the group that has no condition, so that no other row joins the group."""
        values: dict[Place, object] = {}
        for place in scope.groups:
            tests = [(condition, True) for condition in scope.conditions if condition.place == place]
            key = _key(scope, place)
            values[place] = self.pools.choose(key, tests) if tests else self.pools.unused(key, outside=True)
        return values

    def _many_side(self, scope: Scope) -> list[str]:
        """The alias of which a group can hold several rows: not joined or grouped by its own key."""
        joined = {place for pair in scope.equal for place in pair} | set(scope.groups)
        unique = {place[0] for place in joined if self.pools.is_key(_key(scope, place))}
        return [alias for alias in scope.tables if alias not in unique][:1]


def _key(scope: Scope, place: Place) -> ColumnKey:
    return scope.tables[place[0]], place[1]


def _equal_places(scope: Scope, aliases: list[str]) -> dict[Place, Place]:
    """For each place that must equal others the one that stands for all of them."""
    leaders: dict[Place, Place] = {}
    for left, right in scope.equal:
        if left[0] in aliases and right[0] in aliases:
            old, new = leaders.setdefault(left, left), leaders.setdefault(right, right)
            leaders.update((place, new) for place, leader in list(leaders.items()) if leader == old)
    return leaders
