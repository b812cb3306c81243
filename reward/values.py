"""Values for generated databases: near misses of gold's literals, random values that suit a column, and SQL's
comparisons.
"""

import datetime
import random
import re

from reward.conditions import Condition
from reward.dates import date_like, is_date
from reward.schema import Column

_WORDS = (
    "amber birch cedar delta ember fjord grove harbor iris juniper kestrel lagoon maple north opal prairie quartz river"
    " saffron tundra umber valley willow xenia yarrow zephyr"
).split()
DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)([ T]\d\d)(:\d\d(?::\d\d)?)")  # day, hour, rest


def near_misses(value: object, near: bool) -> list:
    """Values that a slightly wrong condition confuses with `value`; other case only for the near tier."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value - 1, value + 1, value + 2, value - 2]
    if isinstance(value, float):
        return [round(value - 0.1, 6), round(value + 0.1, 6), round(value + 1, 6)]
    if not isinstance(value, str):
        return []
    if "%" in value or "_" in value:
        core = value.replace("%", "").replace("_", "x") or "x"
        misses = [core, f"pre{core}", f"{core}post", f"pre{core}post", core[:-1] or "y", f"x{core[1:]}"]
        return misses + ([core.swapcase()] if near else [])
    if DATE.fullmatch(value):
        year, month, day = map(int, value.split("-"))
        misses = [f"{value[:8]}{day % 28 + 1:02d}", f"{year + 1:04d}{value[4:]}", f"{year - 1:04d}{value[4:]}"]
        return misses + [f"{value[:5]}{month % 12 + 1:02d}{value[7:]}"] * (day <= 28)  # no 31st of June
    if (moment := _MOMENT.fullmatch(value)) and DATE.fullmatch(moment[1]):
        day, hour, rest = moment.groups()
        other = "11" if hour[1:] != "11" else "12"
        return [f"{miss}{hour}{rest}" for miss in near_misses(day, near)] + [f"{day}{hour[0]}{other}{rest}"]
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        number = float(value) if "." in value else int(value)
        return [f"{number + 1}", f"{number - 1}", f"{value}0"]
    misses = [f"{value} x", f"the {value}", value[:-1] or "y"]
    if near:
        misses += [value.swapcase(), value.title() if value != value.title() else value.lower()]
    return misses


def random_value(column: Column, numeric: bool, rng: random.Random, dated: bool = False) -> object:
    """One value for a column by its type and name; `numeric`: gold uses a text column as a number; `dated`: as a date."""
    name = column.name.lower()
    affinity = column.affinity
    if "year" in name and (numeric or affinity in ("integer", "numeric")):
        return rng.randint(1985, 2022)
    if dated or (not numeric and is_date(column)):
        return f"{rng.randint(1995, 2021)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if affinity == "real":
        return (1 + int(rng.random() * 2000)) / 8  # three decimals, so that rounding shows; sums are exact
    if affinity == "numeric" and not numeric:
        return (1 + int(rng.random() * 2000)) / 10  # faster than randint, which counts here
    if affinity == "integer" or numeric:
        return 1 + int(rng.random() * 100)
    if rng.random() < 0.5:
        return rng.choice(_WORDS)
    return f"{rng.choice(_WORDS)} {rng.choice(_WORDS)}"


def fresh_value(taken: set, like: object, rng: random.Random) -> object:
    """A value of the same kind as `like` that is not in `taken`."""
    if isinstance(like, (int, float)):
        value = int(like)
        while value in taken:
            value += rng.randint(1, 7)
        return value
    text, number = str(like or "item"), 2
    if DATE.fullmatch(text):
        # From the month's first day on; the text may be no day of the calendar.
        day = datetime.date(min(max(int(text[:4]), 1), 9000), min(max(int(text[5:7]), 1), 12), 1)
        while day.isoformat() in taken:
            day += datetime.timedelta(days=rng.randint(1, 7))
        return day.isoformat()
    while f"{text} {number}" in taken:
        number += 1
    return f"{text} {number}"


def candidates_for(condition: Condition, dated: bool = False) -> list:
    """Values around a condition's literals, some of which hold and some of which do not; `dated`: of a column of dates."""
    values: list = []
    for value in condition.values:
        if dated and condition.operator.endswith("like"):
            value = date_like(value) or value
        values += [value, *near_misses(value, near=False)]
    return values


def holds(condition: Condition, value: object) -> bool:
    """Whether SQLite would take the condition as true for a value of the literal's own type; NULL fails all but IS
    NULL.
    """
    operator = condition.operator
    if operator in ("null", "not null"):
        return (value is None) == (operator == "null")
    if value is None:
        return False
    if operator.startswith("not ") and operator != "not null":
        return not holds(Condition(condition.place, operator[4:], condition.values), value)
    if operator == "like":
        pattern = "".join(".*" if c == "%" else "." if c == "_" else re.escape(c) for c in str(condition.values[0]))
        return re.fullmatch(pattern, str(value), re.IGNORECASE | re.DOTALL) is not None
    if operator == "in":
        return value in condition.values
    first = _rank(condition.values[0])
    mine = _rank(value)
    if operator == "between":
        return first <= mine <= _rank(condition.values[1])
    return {
        "=": mine == first,
        "<>": mine != first,
        "<": mine < first,
        "<=": mine <= first,
        ">": mine > first,
        ">=": mine >= first,
    }[operator]


def _rank(value: object) -> tuple[int, object]:
    """SQLite's order of types: numbers before text before blobs."""
    return (0, value) if isinstance(value, (int, float)) else (1, value) if isinstance(value, str) else (2, value)
