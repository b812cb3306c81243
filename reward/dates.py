"""Columns of dates, and the dates that gold asks for when it compares a part of one."""

import re

from reward.schema import Column

# A year, month and day, of which the end may be missing, as in LIKE '2016-05-%'.
_DATE_PART = re.compile(r"([12]\d{3})(?:-(\d\d)(?:-(\d\d))?)?-?%?", re.ASCII)


def is_date(column: Column) -> bool:
    """Whether a column holds dates, by its name and type."""
    declared = column.declared.upper() if column.affinity == "numeric" else ""
    return "date" in column.name.lower() or "DATE" in declared or "TIME" in declared


def whole_date(part: object) -> str | None:
    """A date with the part that gold asks for: a year, a year and month (also as patterns), a month or day; None for others.

    >>> whole_date("2016"), whole_date("2016-11%"), whole_date(7), whole_date("Paris")
    ('2016-05-06', '2016-11-06', '2015-07-07', None)
    """
    if found := _DATE_PART.fullmatch(str(part)):
        return f"{found[1]}-{found[2] or '05'}-{found[3] or '06'}"
    number = int(part) if re.fullmatch(r"\d\d?", str(part), re.ASCII) else 0
    if not 1 <= number <= 28:
        return None
    return f"2015-{number if number <= 12 else 5:02d}-{number:02d}"
