"""What `rerun` found, as the tables that a pair's page shows for A, B and gold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def result_tables(found: dict | None, by_letter: Mapping[str, str], blind: bool) -> dict | None:
    """{"databases", "message"}, the tables in the order of the queries, A, B, gold; the first database that tells A and B
    apart is open.

    Blind: marked are the rows that A and B do not share; what gold's rows say of one of them is left to the person.
    """
    if found is None:
        return None
    databases = []
    for database in found["databases"]:
        tables = [{"title": letter if blind else f"{letter} · {side}", **database["tables"][side]}
                  for letter, side in by_letter.items()]
        if blind:
            a, b = (table["rows"] for table in tables)
            tables[0] |= {"differs": rows_apart(a, b), "missing": 0, "difference": None}
            tables[1] |= {"differs": rows_apart(b, a), "missing": 0, "difference": None}
        gold = {"title": "Gold", **database["tables"]["gold"]}
        if gold["status"] != "none":
            tables.append(gold | {"differs": [False] * len(gold["rows"])} if blind else gold)
        databases.append({**database, "tables": tables, "open": False})
    for database in sorted(databases, key=lambda database: not database["told_apart"])[:1]:
        database["open"] = True
    message = found["message"]
    if blind and message:  # "rejected makes no databases" would tell
        parts = [part for part in message.split("; ") if "chosen" not in part and "rejected" not in part]
        message = "; ".join(parts)
    return {"databases": databases, "message": message}


def rows_apart(rows: list, others: list) -> list[bool]:
    """For each row whether `others` lacks it; a row that stands twice here and once there differs once.

    >>> rows_apart([[1], [2], [2]], [[2]])
    [True, False, True]
    """
    left = Counter(map(repr, others))
    apart = []
    for row in map(repr, rows):
        apart.append(left[row] == 0)
        left[row] -= left[row] > 0
    return apart
