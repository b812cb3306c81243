"""The invented databases: reads `schemas/*.yaml` into tables and columns with the words that people use for them."""

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

FOLDER = Path(__file__).parent / "schemas"
SPLITS = ("train", "dev", "test")
TYPES = {
    "key": "INTEGER",
    "label": "TEXT",
    "category": "TEXT",
    "text": "TEXT",
    "number": "INTEGER",
    "year": "INTEGER",
    "date": "DATE",
    "flag": "INTEGER",
    "reference": "INTEGER",
}


@dataclass(frozen=True)
class Column:
    """One column: its role in questions (`is` in the YAML), its description, its words and how its values are drawn."""

    name: str
    role: str  # a key of TYPES
    type: str
    about: str  # description of the column
    words: tuple[str, ...]  # nouns that people use for it, singular
    values: dict  # how rows.py draws values
    null: float = 0.0  # share of rows without a value
    says: tuple[str, ...] = ()  # what follows the table's plural noun; {v} stands for the value ("from {v}")
    adjective: bool = False  # the value may stand before the noun ("chocolate cakes")
    spoken: tuple[tuple[str, str], ...] = ()  # stored code -> word in questions
    unit: str = ""  # after a number in questions ("dollars")
    count: str = ""  # what the number counts ("seats"): "with more than 40 seats"
    top: str = ""  # adjective for the row with the largest value ("most expensive")
    bottom: str = ""
    sums: bool = False  # adding the values up makes sense
    set: str = ""  # flag: phrase for 1, "that are vegan"
    unset: str = ""  # flag: phrase for 0
    to: str = ""  # reference: the parent table
    has: str = ""  # reference: parent's side, "who baked {}"; {} is filled by "more than 3 cakes"

    @property
    def evidence(self) -> str | None:
        """What a question must be told because the schema does not show it: what stored codes mean."""
        if self.role == "flag" or self.spoken:
            return f"{self.name}: {self.about}"
        return None

    def spoken_value(self, value: object) -> str:
        """The word that a question uses for a stored value."""
        return dict(self.spoken).get(str(value), str(value))


@dataclass(frozen=True)
class Table:
    """One table with its columns in order; `nouns` are singular words for one row."""

    name: str
    about: str
    nouns: tuple[str, ...]
    person: bool  # its rows are people: "who", "their"
    rows: int
    columns: tuple[Column, ...]
    link: tuple[str, str, str, str] | None = None  # (reference, reference, "enrolled in {v}", "taken by {v}")

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)

    def of_role(self, *roles: str) -> list[Column]:
        """Columns with one of the roles, in order."""
        return [column for column in self.columns if column.role in roles]

    @property
    def key(self) -> Column:
        """The primary key."""
        return self.of_role("key")[0]

    @property
    def label(self) -> Column | None:
        """The column whose unique text names a row, if the table has one."""
        return next(iter(self.of_role("label")), None)

    @property
    def ddl(self) -> str:
        """CREATE TABLE statement on one line."""
        parts = []
        for column in self.columns:
            suffix = " PRIMARY KEY" if column.role == "key" else ""
            if column.role == "reference":
                suffix = f" REFERENCES {column.to}({column.values['key']})"
            parts.append(f"{column.name} {column.type}{suffix}")
        return f"CREATE TABLE {self.name} ({', '.join(parts)});"


@dataclass(frozen=True)
class Database:
    """One invented database; its split is fixed in its file, so that no seed moves a test schema into training."""

    name: str
    split: str
    about: str
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        """The table of that name."""
        return next(table for table in self.tables if table.name == name)

    @property
    def ddl(self) -> str:
        """All CREATE TABLE statements, one table a line."""
        return "\n".join(table.ddl for table in self.tables)


def load_databases(folder: Path = FOLDER) -> list[Database]:
    """Reads every YAML file of `folder`, in the order of their names.

    Raises: ValueError for a file that does not describe a database.
    """
    reader = YAML(typ="safe")
    return [_database(path, reader.load(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.yaml"))]


def _database(path: Path, raw: dict) -> Database:
    if raw.get("split") not in SPLITS:
        raise ValueError(f"{path}: split {raw.get('split')!r} found; allowed: {', '.join(SPLITS)}; set one of them")
    keys = {
        name: next((column for column, spec in table["columns"].items() if spec["is"] == "key"), None)
        for name, table in raw["tables"].items()
    }
    tables: list[Table] = []
    for name, table in raw["tables"].items():
        columns = tuple(_column(path, name, column, spec, keys) for column, spec in table["columns"].items())
        if keys[name] is None:
            raise ValueError(f"{path}: table {name} has no key; every table needs one; add a column with `is: key`")
        for column in columns:
            if column.to and column.to not in {earlier.name for earlier in tables}:
                raise ValueError(
                    f"{path}: {name}.{column.name} refers to {column.to!r}; only tables above it are "
                    f"allowed; move or rename it"
                )
        link = table.get("link")
        tables.append(
            Table(
                name,
                table["about"],
                tuple(table["nouns"]),
                table.get("person", False),
                table["rows"],
                columns,
                tuple(link) if link else None,
            )
        )
    return Database(path.stem, raw["split"], raw["about"], tuple(tables))


def _column(path: Path, table: str, name: str, spec: dict, keys: dict) -> Column:
    spec = dict(spec)
    role = spec.pop("is")
    if role not in TYPES:
        raise ValueError(f"{path}: {table}.{name} is {role!r}; allowed: {', '.join(TYPES)}; set one of them")
    values = dict(spec.pop("values", {}))
    kind = TYPES[role]
    if role == "number" and values.get("round", 0):
        kind = "REAL"
    if role == "reference":
        values["key"] = keys[spec["to"]]
    says = spec.pop("says", ())
    unknown = set(spec) - set(Column.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"{path}: {table}.{name} has unknown keys {sorted(unknown)}; allowed: "
            f"{', '.join(Column.__dataclass_fields__)}; correct them"
        )
    return Column(
        name=name,
        role=role,
        type=spec.pop("type", kind),
        about=spec.pop("about"),
        words=tuple(spec.pop("words", [name.replace("_", " ")])),
        values=values,
        says=(says,) if isinstance(says, str) else tuple(says),
        spoken=tuple(spec.pop("spoken", {}).items()),
        **spec,
    )
