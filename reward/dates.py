"""Columns of dates, and the dates that gold asks for when it compares a part of one."""

import datetime
import re
from collections.abc import Iterator

from sqlglot import exp

from reward.schema import Column

_FUNCTIONS = ("DATE", "DATETIME", "JULIANDAY", "UNIXEPOCH", "STRFTIME")
# A year, month and day, of which the end may be missing, as in 2016-05- of LIKE '2016-05-%'.
_DATE_PART = re.compile(r"([12]\d{3})(?:-(0[1-9]|1[0-2])(?:-(\d\d))?)?-?", re.ASCII)
_ISO_DATE = re.compile(r"[12]\d{3}-(0[1-9]|1[0-2])-\d\d", re.ASCII)
_NAMED_DATE = re.compile(r"(?<!candi)(?<!man)date")
_FIRST_DAY = datetime.date(2015, 6, 1)
_MOST_DAYS = 9999  # a difference of more is none of days


def is_date(column: Column) -> bool:
    """Whether a column holds dates, by its name and type: birthdate or DATETIME, but no text named candidate, no INTEGER or REAL."""
    declared = column.declared.upper() if column.affinity == "numeric" else ""
    return may_hold_dates(column) and (is_named_date(column) or "DATE" in declared or "TIME" in declared)


def is_named_date(column: Column) -> bool:
    """Whether a column's name speaks of dates; where gold calls a date function on it, it holds some whatever its type."""
    return _NAMED_DATE.search(column.name.lower()) is not None


def may_hold_dates(column: Column) -> bool:
    """Whether dates suit a column's type."""
    return column.affinity not in ("integer", "real")


def compared_with_dates(tree: exp.Expression) -> Iterator[exp.Column]:
    """The columns that a query compares with a date of the form 2020-01-31: they hold such dates, whatever they are called.

    Not those of LIKE: '2020-01-31%' speaks of texts that go on.
    """
    for comparison in tree.find_all(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In):
        sides = list(comparison.iter_expressions())
        if any(isinstance(side, exp.Literal) and side.is_string and _ISO_DATE.match(side.this) for side in sides):
            yield from (side for side in sides if isinstance(side, exp.Column))


def read_as_date(call: exp.Expression) -> exp.Expression | None:
    """What a call of a date function reads as a date: its first argument, of strftime the second; None for other calls."""
    value = call.this
    if isinstance(call, exp.Anonymous):
        name, arguments = call.name.upper(), call.expressions
        first = 1 if name == "STRFTIME" else 0
        value = arguments[first] if name in _FUNCTIONS and len(arguments) > first else None
    return value.this if isinstance(value, exp.TsOrDsToTimestamp) else value


def whole_date(part: object) -> str | None:
    """A date with the part that gold asks for: a year, a year and month, a month or day; None for others.

    >>> whole_date("2016"), whole_date("2016-11"), whole_date(7), whole_date("31"), whole_date("Paris")
    ('2016-05-06', '2016-11-06', '2015-07-07', '2015-05-31', None)
    """
    if found := _DATE_PART.fullmatch(str(part)):
        return f"{found[1]}-{found[2] or '05'}-{found[3] or '06'}"
    number = int(part) if re.fullmatch(r"\d\d?", str(part), re.ASCII) else 0
    if not 1 <= number <= 31:
        return None
    return f"2015-{number if number <= 12 else 5:02d}-{number:02d}"


def date_starting(start: object) -> str | None:
    """A date that begins with a year, or a year and month; None where no date does."""
    return whole_date(start) if _DATE_PART.fullmatch(str(start)) else None


def date_like(pattern: object) -> str | None:
    """A date that a pattern like '2016%' matches; None for patterns of another kind."""
    return date_starting(pattern[:-1]) if isinstance(pattern, str) and pattern.endswith("%") else None


def dates_for(values: list, compared: exp.Expression, certain: bool) -> list:
    """What a column of dates is to hold where `compared`, made of it, is compared with `values`. certain: gold calls a date
    function on the column, so it has nothing but dates; otherwise what is no beginning of a date stays as it is.

    Example: strftime('%Y', day) = '2016' -> 2016-05-06; julianday(day) - julianday(start) > 30 -> 2015-06-01, 2015-07-01.
    """
    if isinstance(compared, exp.Column):
        return [date_like(value) or value for value in values]
    if not certain:
        parts = [part.args.get("start") for part in compared.find_all(exp.Substring)]
        begins = any(isinstance(start, exp.Literal) and start.this == "1" for start in parts)
        return [date_starting(value) or value for value in values] if begins else values
    if isinstance(compared, exp.Sub):
        days = [int(value) for value in values if isinstance(value, (int, float)) and abs(value) <= _MOST_DAYS]
        return [(_FIRST_DAY + datetime.timedelta(days=number)).isoformat() for number in (0, *days)]
    return [date for value in values if (date := whole_date(value))]
