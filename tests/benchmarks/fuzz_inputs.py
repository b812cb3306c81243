"""Random inputs for the judge: byte strings, token soups, grammar-made queries over the tables of
tests/reward/cases_database.sql, and spoilt versions of gold.
"""

import random
import re

TABLES = {
    "shop": ("shop_id", "name", "city", "opened", "area"),
    "sale": ("sale_id", "shop_id", "item", "price", "pieces", "note"),
    "member": ("member_id", "nick", "age", "score", "team", "joined", "code", "parent"),
    "big_number": ("n",),
}
_LITERALS = (
    *(
        "0",
        "1",
        "2",
        "3",
        "25",
        "30",
        "100",
        "4.5",
        "-1",
        "1e3",
        "NULL",
        "9007199254740993",
        "'Oslo'",
        "'tea'",
        "'red'",
    ),
    *("''", "'%a%'", "'2015-06-12'", "x'41'", "'O''Hara'", "TRUE"),
)
_FUNCTIONS = (
    "abs",
    "lower",
    "upper",
    "length",
    "typeof",
    "round",
    "trim",
    "hex",
    "date",
    "nosuch",
    "max",
    "min",
    "sum",
)
_AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX", "TOTAL")
_WORDS = (
    "SELECT FROM WHERE AND OR NOT IN LIKE BETWEEN IS NULL GROUP BY ORDER HAVING LIMIT OFFSET JOIN LEFT ON USING NATURAL"
    " UNION ALL INTERSECT EXCEPT DISTINCT AS CASE WHEN THEN ELSE END EXISTS WITH RECURSIVE VALUES CAST COLLATE NOCASE"
    " OVER PARTITION ROWS DESC ASC NULLS LAST DELETE UPDATE SET INSERT INTO DROP TABLE PRAGMA ATTACH EXPLAIN VACUUM"
    " CREATE VIEW RETURNING BEGIN GLOB MATCH REGEXP ESCAPE random() date('now') sqlite_master pragma_table_info"
).split()
_SIGNS = tuple(
    "( ) ( ) , , . ; = < > <= >= <> != + - * / % || -> ->> ' \" ` [ ] ? :a @b $c # ~ & | << >> -- /* */".split()
)
_NAMES = (
    *TABLES,
    *(column for columns in TABLES.values() for column in columns),
    "t0",
    "t1",
    '"name"',
    "[city]",
    "`age`",
)
KINDS = (
    *("bytes", "bytes", "soup", "soup", "soup", "query", "query", "query", "query", "ordered query", "near query"),
    *(
        "near query",
        "spoilt gold",
        "spoilt gold",
        "spoilt gold",
        "sorted gold",
        "sorted gold",
        "spliced",
        "cut",
        "quoted",
        "extreme",
    ),
)


def make_input(kind: str, gold: str, rng: random.Random) -> str:
    """One input of a kind in KINDS; some are made from gold."""
    if kind == "bytes":
        data = bytes(rng.choices(range(256), k=rng.randint(0, 120)))
        text = data.decode("latin-1") if rng.random() < 0.5 else data.decode("utf-8", "surrogateescape")
        return rng.choice(("", "", "SELECT ", "SELECT '")) + text
    if kind == "soup":
        start = rng.choice(("", "SELECT", "SELECT name FROM shop WHERE", "WITH t0 AS (SELECT 1)"))
        tokens = [rng.choice(rng.choice((_WORDS, _SIGNS, _NAMES, _LITERALS))) for _ in range(rng.randint(1, 25))]
        return " ".join([start, *tokens])
    if kind == "query":
        return random_query(rng, top=False)
    if kind == "ordered query":
        return random_query(rng, top=True)
    if kind == "near query":
        return _spoilt(random_query(rng, top=True), rng)
    if kind == "spoilt gold":
        return _spoilt(gold, rng)
    if kind == "sorted gold":
        body = gold.split(" ORDER BY ")[0]
        orders = (
            "",
            "1",
            "1",
            "1 DESC",
            "1 DESC",
            "1 ASC, 1 DESC",
            "1, 2",
            "1 DESC, 2 DESC",
            "2, 1",
            "1 NULLS LAST",
            "NULL",
        )
        order = rng.choice(orders)
        return rng.choice(("{0}{1}", "SELECT * FROM ({0}) {1}")).format(body, f" ORDER BY {order}" if order else "")
    if kind == "spliced":
        other = random_query(rng, top=True)
        return gold[: rng.randint(0, len(gold))] + other[rng.randint(0, len(other)) :]
    if kind == "cut":
        return gold[: rng.randint(0, len(gold))] if rng.random() < 0.5 else gold[rng.randint(0, len(gold)) :]
    if kind == "quoted":
        return re.sub(
            r"'([^']*)'|\b(name|city|item|team|nick)\b", lambda m: f'"{m.group(1) or m.group(2) or ""}"', gold
        )
    return _extreme(rng)


def _spoilt(sql: str, rng: random.Random) -> str:
    """One to three tokens dropped, doubled, swapped or replaced by one that may stand there."""
    tokens = re.findall(r"'(?:[^']|'')*'|\w+|<=|>=|<>|\s+|.", sql)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        index = rng.randrange(len(tokens)) if tokens else 0
        action = rng.random()
        if not tokens or action < 0.2:
            del tokens[index : index + 1]
        elif action < 0.3:
            tokens.insert(index, tokens[index])
        elif action < 0.4:
            other = rng.randrange(len(tokens))
            tokens[index], tokens[other] = tokens[other], tokens[index]
        else:
            places = [place for place, token in enumerate(tokens) if _alternatives(token)]
            if places:
                place = rng.choice(places)
                tokens[place] = rng.choice(_alternatives(tokens[place]))
    return "".join(tokens)


def _alternatives(token: str) -> tuple[str, ...]:
    """What may stand in a token's place without breaking the syntax."""
    for group in (
        ("=", "<", ">", "<=", ">=", "<>", " IS ", " LIKE "),
        ("AND", "OR"),
        _AGGREGATES,
        ("UNION", "INTERSECT", "EXCEPT", "UNION ALL"),
        ("JOIN", "LEFT JOIN", "CROSS JOIN", "NATURAL JOIN"),
        _LITERALS,
        *TABLES.values(),
    ):
        if token in group:
            return tuple(other for other in group if other != token)
    return ()


def _extreme(rng: random.Random) -> str:
    size = rng.choice((50, 150, 300, 3_000, 30_000))
    return rng.choice(
        (
            "SELECT " + "(" * size + "1" + ")" * size,
            "SELECT " + "-" * size + "1",
            "SELECT " + "NOT " * size + "1",
            "SELECT 1" + " UNION ALL SELECT 1" * size,
            "SELECT " + ", ".join("1" for _ in range(size)),
            "SELECT '" + "a" * size + "'",
            "SELECT name FROM shop WHERE city IN (" + ", ".join("'x'" for _ in range(size)) + ")",
            "SELECT name FROM shop WHERE " + " OR ".join("area > 1" for _ in range(size)),
            "SELECT " + "a" * size,
            "SELECT * FROM " + ", ".join("shop" for _ in range(size)),
            "SELECT name FROM shop WHERE shop_id IN (" * (size % 400) + "1" + ")" * (size % 400),
            " " * size,
            "/*" * size,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
            "SELECT replace(hex(zeroblob(100000)), '0', 'ab')",
            "SELECT COUNT(*) FROM shop, sale, member, shop b, sale c, member d, shop e, sale f",
        )
    )


def random_query(rng: random.Random, top: bool) -> str:
    """A query that mostly runs; `top`: with ORDER BY, LIMIT, set operations and WITH around it."""
    width = rng.choice((1, 1, 1, 2, 2, 3))
    sql = _select(rng, width, 2)
    if rng.random() < 0.15:
        sql += f" {rng.choice(('UNION', 'UNION ALL', 'INTERSECT', 'EXCEPT'))} {_select(rng, width, 1)}"
    if top and rng.random() < 0.3:
        sql = f"WITH q AS ({sql}) SELECT * FROM q"
    if top and rng.random() < 0.7:
        sql += f" ORDER BY {rng.randint(1, width)}{rng.choice(('', ' DESC', ' NULLS LAST', ' COLLATE NOCASE'))}"
    if top and rng.random() < 0.5:
        sql += f" LIMIT {rng.choice((0, 1, 2, 5, -1))}{rng.choice(('', ' OFFSET 1'))}"
    return sql


def _select(rng: random.Random, width: int, depth: int) -> str:
    count = rng.choice((1, 1, 1, 2, 2, 3))
    tables = [(f"t{index}", rng.choice(tuple(TABLES)[:3])) for index in range(count)]
    source = f"{tables[0][1]} AS t0"
    for alias, table in tables[1:]:
        left = f"t0.{rng.choice(TABLES[tables[0][1]])}"
        condition = "t0.shop_id = " + alias + ".shop_id"
        if "member" in (table, tables[0][1]):
            condition = f"{left} = {alias}.{rng.choice(TABLES[table])}"
        source += f" {rng.choice(('JOIN', 'JOIN', 'LEFT JOIN'))} {table} AS {alias} ON {condition}"
    columns = [f"{alias}.{column}" for alias, table in tables for column in TABLES[table]]
    where = f" WHERE {_condition(rng, columns, depth)}" if rng.random() < 0.7 else ""
    if rng.random() < 0.3:
        keys = rng.sample(columns, width - 1)
        shown = [*keys, f"{rng.choice(_AGGREGATES)}({rng.choice(columns)})"]
        group = f" GROUP BY {', '.join(keys)}" if keys else ""
        having = f" HAVING COUNT(*) > {rng.randint(0, 2)}" if keys and rng.random() < 0.4 else ""
        return f"SELECT {', '.join(shown)} FROM {source}{where}{group}{having}"
    shown = [rng.choice(columns) if rng.random() < 0.8 else _expression(rng, columns, depth) for _ in range(width)]
    return f"SELECT {rng.choice(('', '', 'DISTINCT '))}{', '.join(shown)} FROM {source}{where}"


def _expression(rng: random.Random, columns: list[str], depth: int) -> str:
    choice = rng.random()
    if depth <= 0 or choice < 0.5:
        return rng.choice(columns) if rng.random() < 0.6 else rng.choice(_LITERALS)
    left, right = _expression(rng, columns, depth - 1), _expression(rng, columns, depth - 1)
    if choice < 0.75:
        return f"({left} {rng.choice(('+', '-', '*', '/', '||', '%'))} {right})"
    if choice < 0.9:
        return f"{rng.choice(_FUNCTIONS[:8])}({left})"
    return f"CASE WHEN {_condition(rng, columns, depth - 1)} THEN {left} ELSE {right} END"


def _condition(rng: random.Random, columns: list[str], depth: int) -> str:
    choice = rng.random()
    column = rng.choice(columns)
    if depth > 0 and choice < 0.25:
        sides = _condition(rng, columns, depth - 1), _condition(rng, columns, depth - 1)
        return f"({sides[0]} {rng.choice(('AND', 'OR'))} {sides[1]})"
    if depth > 0 and choice < 0.32:
        return f"NOT {_condition(rng, columns, depth - 1)}"
    if depth > 0 and choice < 0.42:
        return f"{column} {rng.choice(('IN', 'NOT IN'))} ({_select(rng, 1, depth - 1)})"
    if depth > 0 and choice < 0.47:
        return f"EXISTS ({_select(rng, 1, depth - 1)})"
    if choice < 0.55:
        return f"{column} IS {rng.choice(('', 'NOT '))}NULL"
    if choice < 0.62:
        return f"{column} BETWEEN {rng.choice(_LITERALS)} AND {rng.choice(_LITERALS)}"
    if choice < 0.7:
        return f"{column} IN ({', '.join(rng.sample(_LITERALS, 3))})"
    if choice < 0.76:
        return f"{column} LIKE {rng.choice(_LITERALS)}"
    operator = rng.choice(("=", "=", "<", ">", "<=", ">=", "<>"))
    return f"{column} {operator} {_expression(rng, columns, depth - 1)}"
