"""Conditions on one column: the SQL and the English of each, with values taken from the rows."""

import random
from collections import Counter
from dataclasses import dataclass

from sft.embedded.phrases import MONTHS, spoken_date, spoken_number
from sft.embedded.schema import Column, Table

ADJECTIVE, PLACE, WITH, CLAUSE = range(4)  # where a phrase stands around the noun, from left to right


@dataclass(frozen=True)
class Condition:
    """`sql` has @ for the column's qualifier ("" or "T1."); `text` follows or (rank ADJECTIVE) precedes the noun."""

    column: Column
    sql: str
    text: str
    rank: int
    whose: str  # the same as "whose price is above 5 dollars", for alternatives

    def where(self, qualifier: str = "") -> str:
        """SQL with qualified columns."""
        return self.sql.replace("@", qualifier)


def literal(value: object) -> str:
    """SQL literal."""
    return (
        "'" + value.replace("'", "''") + "'"
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def where(conditions: list[Condition], qualifier: str = "", joint: str = "AND") -> str:
    """WHERE clause with a leading space, or nothing."""
    return " WHERE " + f" {joint} ".join(c.where(qualifier) for c in conditions) if conditions else ""


def noun_phrase(noun: str, conditions: list[Condition]) -> str:
    """A plural noun with its conditions: "chocolate cakes with a price above 5 dollars that are vegan"."""
    before = [c.text for c in conditions if c.rank == ADJECTIVE]
    after = [c for c in sorted(conditions, key=lambda c: c.rank) if c.rank != ADJECTIVE]
    text = " ".join([*before, noun])
    previous = None
    for condition in after:
        joint = " and " if previous == condition.rank else " "
        text += joint + condition.text
        previous = condition.rank
    return text


def either(noun: str, first: Condition, second: Condition) -> str:
    """A plural noun with two alternatives."""
    return f"{noun} {first.whose} or {second.whose}"


def draw_condition(
    table: Table, rows: list[dict], rng: random.Random, besides: tuple[str, ...] = ()
) -> Condition | None:
    """A condition on a random column not in `besides`; None where no column can carry one."""
    roles = ("category", "number", "date", "flag", "year")
    columns = [c for c in table.of_role(*roles) if c.name not in besides]
    if not columns:
        return None
    column = rng.choice(columns)
    values = [row[column.name] for row in rows if row[column.name] is not None]
    return CONDITIONS[column.role](column, values, rng)


def _category(column: Column, values: list[str], rng: random.Random) -> Condition:
    noun = rng.choice(column.words)
    value = rng.choice(values)
    others = sorted(set(values) - {value})
    spoken = column.spoken_value(value)
    draw = rng.random()
    if draw < 0.14 and len(others) > 2:
        other = rng.choice(others)
        pair = f"{spoken} or {column.spoken_value(other)}"
        whose = f"whose {noun} is either {pair}"
        says = [s for s in column.says if not s.startswith("that are {v}")]
        text = rng.choice(says).format(v=pair) if says else whose
        return Condition(column, f"@{column.name} IN ({literal(value)}, {literal(other)})", text, rank(text), whose)
    if draw < 0.24 and not column.null:
        whose = f"whose {noun} is {rng.choice(('not', 'not', 'different from'))} {spoken}"
        return Condition(column, f"@{column.name} <> {literal(value)}", whose, CLAUSE, whose)
    sql = f"@{column.name} = {literal(value)}"
    whose = f"whose {noun} is {spoken}"
    if column.adjective and rng.random() < 0.6:
        return Condition(column, sql, spoken, ADJECTIVE, whose)
    texts = [s.format(v=spoken) for s in column.says] * 2 + [whose]
    text = rng.choice(texts)
    return Condition(column, sql, text, rank(text), whose)


def rank(text: str) -> int:
    """Where a phrase stands after the noun, by its first word."""
    first = text.split()[0]
    return CLAUSE if first in ("who", "that", "whose") else WITH if first in ("with", "without") else PLACE


def threshold(values: list[float], rng: random.Random, low: float = 0.15, high: float = 0.85) -> float:
    """A round number between two quantiles of the values."""
    ordered = sorted(values)
    value = ordered[int(rng.uniform(low, high) * (len(ordered) - 1))]
    spread = ordered[int(0.9 * (len(ordered) - 1))] - ordered[int(0.1 * (len(ordered) - 1))]
    for step in (5000, 1000, 500, 100, 50, 10, 5, 1, 0.5):
        if spread >= 8 * step or (step == 1 and all(isinstance(v, int) for v in values)):
            return int(round(value / step) * step) if step >= 1 else round(round(value / step) * step, 1)
    return round(value, 1)


def _number(column: Column, values: list[float], rng: random.Random) -> Condition:
    noun = rng.choice(column.words)
    name = f"@{column.name}"
    draw = rng.random()
    if draw < 0.16:
        low, high = sorted((threshold(values, rng, 0.1, 0.5), threshold(values, rng, 0.5, 0.9)))
        if low < high:
            first = spoken_number(low, "", rng, short=False)
            last = spoken_number(high, "" if column.count else column.unit, rng, short=False)
            if last.startswith("$"):
                first = "$" + first
            sql = f"{name} BETWEEN {literal(low)} AND {literal(high)}"
            whose = f"whose {noun} is between {first} and {last}"
            text = (
                f"with between {first} and {last} {column.count}"
                if column.count
                else rng.choice(
                    (whose, f"with a {noun} between {first} and {last}", f"with a {noun} from {first} to {last}")
                )
            )
            return Condition(column, sql, text, rank(text), whose)
    few = Counter(values)
    if draw < 0.26 and len(few) <= 15 and all(isinstance(value, int) for value in values):
        value = rng.choice(values)
        amount = spoken_number(value, "" if column.count else column.unit, rng)
        whose = f"whose {noun} is {rng.choice(('exactly ', ''))}{amount}"
        text = (
            f"with exactly {amount} {column.count}"
            if column.count
            else rng.choice((whose, f"with a {noun} of {amount}"))
        )
        return Condition(column, f"{name} = {literal(value)}", text, rank(text), whose)
    value = threshold(values, rng)
    amount = spoken_number(value, "" if column.count else column.unit, rng)
    sign = rng.choice((">", ">", ">", "<", "<", "<", ">=", "<="))
    whose = f"whose {noun} is {rng.choice(WHOSE[sign])} {amount}"
    if column.count:
        text = f"with {rng.choice(COUNTED[sign])} {amount} {column.count}"
    else:
        text = rng.choice((whose, f"with a {noun} {rng.choice(WITH_A[sign])} {amount}"))
    return Condition(column, f"{name} {sign} {literal(value)}", text, rank(text), whose)


WHOSE = {
    ">": ("above", "more than", "over", "greater than", "higher than"),
    "<": ("below", "less than", "under", "lower than"),
    ">=": ("at least", "greater than or equal to", "no less than"),
    "<=": ("at most", "less than or equal to", "no more than"),
}
WITH_A = {
    ">": ("above", "of more than", "over", "greater than", "higher than"),
    "<": ("below", "of less than", "under", "lower than"),
    ">=": ("of at least", "of no less than"),
    "<=": ("of at most", "of no more than"),
}
COUNTED = {
    ">": ("more than", "over"),
    "<": ("fewer than", "under"),
    ">=": ("at least", "no fewer than"),
    "<=": ("at most", "no more than"),
}


def _year(column: Column, values: list[int], rng: random.Random) -> Condition:
    says, noun = rng.choice(column.says), rng.choice(column.words)
    ordered = sorted(values)
    value = rng.choice(ordered[len(ordered) // 8 : -len(ordered) // 8])
    later = rng.choice(ordered[len(ordered) // 2 :])
    options = [
        ("= {0}", "in {0}", "is {0}"),
        ("> {0}", "after {0}", "is after {0}"),
        ("< {0}", "before {0}", "is before {0}"),
        (">= {0}", "in {0} or later", "is {0} or later"),
        (">= {0}", "since {0}", "is {0} or later"),
    ]
    if later > value:
        options.append(("BETWEEN {0} AND {1}", "between {0} and {1}", "is between {0} and {1}"))
    sql, time, whose = (part.format(value, later) for part in rng.choice(options))
    return Condition(column, f"@{column.name} {sql}", f"{says} {time}", rank(says), f"whose {noun} {whose}")


def _date(column: Column, values: list[str], rng: random.Random) -> Condition:
    says, noun = rng.choice(column.says), rng.choice(column.words)
    ordered = sorted(values)
    date = rng.choice(ordered[len(ordered) // 8 : -len(ordered) // 8])
    year, month = date[:4], f"{MONTHS[int(date[5:7]) - 1]} {date[:4]}"
    years = sorted({value[:4] for value in values})
    name = f"@{column.name}"
    draw = rng.random()
    if draw < 0.35:
        sql, time = f"strftime('%Y', {name}) = '{year}'", f"in {year}"
    elif draw < 0.5:
        sql, time = f"strftime('%Y-%m', {name}) = '{date[:7]}'", f"in {month}"
    elif draw < 0.6 and year > years[0]:
        sql, time = f"{name} < '{year}-01-01'", f"before {year}"
    elif draw < 0.7 and year < years[-1]:
        sql, time = f"{name} > '{year}-12-31'", f"after {year}"
    elif draw < 0.78 and year > years[0]:
        sql, time = f"{name} >= '{year}-01-01'", f"{rng.choice(('since the start of', 'in or after'))} {year}"
    elif draw < 0.85:
        sql, time = f"{name} > '{date}'", f"after {spoken_date(date, rng)}"
    elif draw < 0.92:
        sql, time = f"{name} < '{date}'", f"before {spoken_date(date, rng)}"
    else:
        first, last = sorted((date, rng.choice(ordered)))
        style = rng.getrandbits(32)  # both ends written alike
        sql = f"{name} BETWEEN '{first}' AND '{last}'"
        time = f"between {spoken_date(first, random.Random(style))} and {spoken_date(last, random.Random(style))}"
    whose = f"whose {noun} is {time.replace('since the start of', 'in or after')}"
    return Condition(column, sql, f"{says} {time}", rank(says), whose)


def _flag(column: Column, values: list[int], rng: random.Random) -> Condition:
    if rng.random() < 0.65:
        return Condition(column, f"@{column.name} = 1", column.set, rank(column.set), column.set)
    return Condition(column, f"@{column.name} = 0", column.unset, rank(column.unset), column.unset)


CONDITIONS = {"category": _category, "number": _number, "year": _year, "date": _date, "flag": _flag}


def missing(column: Column, rng: random.Random, absent: bool = True) -> Condition:
    """IS NULL, or IS NOT NULL where not `absent`."""
    noun = rng.choice(column.words)
    texts = (
        (
            f"with no {noun} recorded",
            f"whose {noun} is missing",
            f"whose {noun} is unknown",
            f"without a {noun} on file",
            f"that have no {noun}",
        )
        if absent
        else (
            f"with a known {noun}",
            f"whose {noun} is recorded",
            f"whose {noun} is not missing",
            f"that have a {noun} on file",
        )
    )
    text = rng.choice(texts)
    return Condition(column, f"@{column.name} IS {'NULL' if absent else 'NOT NULL'}", text, rank(text), text)


def like(column: Column, values: list[str], rng: random.Random) -> Condition:
    """LIKE on a text column: a word inside, a first word or letter, an ending."""
    noun = rng.choice(column.words)
    words = rng.choice(values).split()
    draw = rng.random()
    if draw < 0.4:
        word = rng.choice(words)
        pattern, verb = f"%{word}%", rng.choice(("contains", "includes"))
        texts = (f"whose {noun} {verb} '{word}'", f"with '{word}' as part of their {noun}")
    elif draw < 0.7:
        start = rng.choice((words[0], words[0][0]))
        pattern = f"{start}%"
        what = f"the letter {start}" if len(start) == 1 else f"'{start}'"
        texts = (
            f"whose {noun} starts with {what}",
            f"whose {noun} begins with {what}",
            f"with a {noun} starting with {what}",
        )
    else:
        end = rng.choice((words[-1], words[-1][-1]))
        pattern = f"%{end}"
        what = f"the letter {end}" if len(end) == 1 else f"'{end}'"
        texts = (f"whose {noun} ends with {what}", f"whose {noun} ends in {what}", f"with a {noun} ending in {what}")
    text = rng.choice(texts)
    return Condition(column, f"@{column.name} LIKE {literal(pattern)}", text, rank(text), text)
