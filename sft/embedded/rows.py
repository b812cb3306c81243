"""Rows of the invented databases: drawn from the value descriptions of a schema, the same for the same seed."""

import datetime
import math
import random
import sqlite3
import string
from pathlib import Path

from sft.embedded.schema import Column, Database, Table

FIRST_NAMES = (
    "Ana Bruno Carla Dmitri Elena Farid Grace Hugo Ines Jonas Katya Liam Mara Nadia Oscar Paula Quentin Rosa Samuel "
    "Tara Umar Vera Walter Ximena Yusuf Zoe Amir Bianca Cyrus Daria Emil Fiona Goran Hanna Ivan Julia Kofi Leila "
    "Milan Nora Olga Pedro Rania Stefan Tomas Ursula Viktor Wanda"
).split()
LAST_NAMES = (
    "Abara Becker Castillo Dubois Eriksen Farrell Grant Haddad Ivanov Jansen Keller Lindqvist Moreau Novak Okafor "
    "Petrov Quinn Rossi Sato Tanaka Ueda Vargas Weber Xu Yilmaz Zeman Alvarez Brandt Costa Doyle Egger Fischer "
    "Gallo Hughes Ibsen Jovic Kaya Larsen Mendes Nilsen Ortega Park Romero Schmidt Toth Urban Voss Walsh"
).split()


def draw_rows(database: Database, seed: int) -> dict[str, list[dict]]:
    """Rows of every table, by table name: {"cake": [{"cake_id": 1, "name": ...}, ...], ...}."""
    rows: dict[str, list[dict]] = {}
    for table in database.tables:
        rng = random.Random(f"{seed}/{database.name}/{table.name}")
        columns = {}
        for column in table.columns:
            values = _values(column, table, rows, columns, rng)
            if column.null:
                values = [None if rng.random() < column.null else value for value in values]
            columns[column.name] = values
        records = [dict(zip(columns, record, strict=True)) for record in zip(*columns.values(), strict=True)]
        rows[table.name] = _without_repeated_links(table, records)
    return rows


def write_database(database: Database, rows: dict[str, list[dict]], path: Path) -> None:
    """Writes the SQLite file, replacing what is there."""
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(database.ddl)
        for table in database.tables:
            marks = ", ".join("?" * len(table.columns))
            connection.executemany(
                f"INSERT INTO {table.name} VALUES ({marks})", [tuple(row.values()) for row in rows[table.name]]
            )
    connection.close()


def _values(column: Column, table: Table, rows: dict, drawn: dict, rng: random.Random) -> list:
    spec, number = column.values, table.rows
    if column.role == "key":
        return list(range(spec.get("start", 1), spec.get("start", 1) + number))
    if column.role == "reference":
        return _references([row[spec["key"]] for row in rows[column.to]], spec.get("skew", 0.6), number, rng)
    if column.role == "flag":
        return [int(rng.random() < spec.get("share", 0.4)) for _ in range(number)]
    if "person" in spec:
        return rng.sample([f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES], number)
    if "list" in spec:
        return rng.sample(spec["list"], number)
    if "pairs" in spec:
        return rng.sample([f"{left} {right}" for left in spec["pairs"][0] for right in spec["pairs"][1]], number)
    if "pattern" in spec:
        return [_pattern(spec["pattern"], rng) for _ in range(number)]
    if "choice" in spec:
        choice = spec["choice"]
        weights = (
            list(choice.values()) if isinstance(choice, dict) else [1 / (i + 1) ** 0.6 for i in range(len(choice))]
        )
        return rng.choices(list(choice), weights, k=number)
    if "dates" in spec:
        first, last = (datetime.date(spec["dates"][0], 1, 1), datetime.date(spec["dates"][1], 12, 31))
        return [(first + datetime.timedelta(rng.randint(0, (last - first).days))).isoformat() for _ in range(number)]
    if "after" in spec:  # some days after another column of the same row
        low, high = spec["days"]
        starts = [datetime.date.fromisoformat(start) for start in drawn[spec["after"]]]
        return [(start + datetime.timedelta(rng.randint(low, high))).isoformat() for start in starts]
    return [_number(spec, rng) for _ in range(number)]


def _references(keys: list, skew: float, number: int, rng: random.Random) -> list:
    """Keys of the parent with Zipf-like frequencies; about one parent in eight is left without children."""
    chosen = rng.sample(keys, max(1, round(len(keys) * 0.88)))
    return rng.choices(chosen, [1 / (rank + 1) ** skew for rank in range(len(chosen))], k=number)


def _number(spec: dict, rng: random.Random) -> int | float:
    if "int" in spec:
        value = rng.uniform(*spec["int"])
    elif "normal" in spec:
        value = rng.gauss(*spec["normal"])
    else:
        median, sigma = spec["skew"]
        value = median * math.exp(rng.gauss(0, sigma))
    low, high = spec.get("low", -math.inf), spec.get("high", math.inf)
    value = min(max(value, low), high)
    step, digits = spec.get("step", 0), spec.get("round", 0)
    if step:
        value = round(value / step) * step
    return round(value, digits) if digits else round(value)


def _pattern(pattern: str, rng: random.Random) -> str:
    """`#` becomes a digit, `@` a capital letter."""
    return "".join(
        rng.choice(string.digits) if sign == "#" else rng.choice(string.ascii_uppercase) if sign == "@" else sign
        for sign in pattern
    )


def _without_repeated_links(table: Table, records: list[dict]) -> list[dict]:
    """A table that links two others holds each pair once."""
    if table.link is None:
        return records
    seen, kept = set(), []
    for record in records:
        pair = (record[table.link[0]], record[table.link[1]])
        if pair not in seen:
            seen.add(pair)
            kept.append(record)
    return kept
