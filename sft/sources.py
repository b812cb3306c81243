"""Readers: rows of local JSON, JSONL, CSV and Parquet files, of Spider's layout and of hub data sets, as examples."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sft.artefacts import content_hash, file_hash
from sft.ddl import from_spider_tables, from_sqlite

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
# The names that a column has where `data.columns` says nothing.
PLAIN_COLUMNS = {"question": "question", "context": "context", "gold": "answer"}
# What stands beside the questions in Spider's layout; those of its test set are of their own.
SPIDER_TABLES, SPIDER_DATABASES = ("tables.json", "test_tables.json"), ("database", "test_database")
SPIDER_COLUMNS = {"question": "question", "database": "db_id", "gold": "query"}
# The files that a folder may hold for each split, without their ending.
SPLIT_FILES = {"train": ("train_spider", "train_others", "train"), "dev": ("dev",), "test": ("test",)}
HUB_SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}
LICENSES = {"b-mc2/sql-create-context": "CC BY 4.0"}


class Row(NamedTuple):
    """One row as it was read: an example without audited gold, or what is wrong with it."""

    example: dict
    file: str
    number: int  # of the row in its file, from 1
    content: dict  # the row as found
    cut_key: str  # what decides its split where splits are cut
    problem: tuple[str, str] | None  # (reason, detail)


def local_path(where: str, key: str) -> Path | None:
    """The file or folder that `where` names, or None where it names a hub data set (`owner/name`).

    `key`: what the user set, for the messages. Development and test rows of their own come from files only.
    """
    path = Path(where).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in FORMATS):
        return path
    endings = ", ".join(FORMATS)
    if path.is_file():
        raise ValueError(
            f"{key}: {where} ends in {path.suffix or 'nothing'}. Readable are {endings} files and folders. "
            "Convert the file, or give it the ending of what it holds."
        )
    hub = key not in ("data.dev", "data.test")
    if hub and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", where) and path.suffix.lower() not in FORMATS:
        return None
    allowed = [f"a {endings} file", "a folder of them or in Spider's layout"]
    allowed += ["a hub data set (owner/name)"] if hub else []
    allowed += ["`embedded`"] if key == "data.source" else []
    raise ValueError(
        f"{key}: there is no file or folder {where}. Allowed are {', '.join(allowed)}. "
        "Correct the name; relative paths start where the command is run."
    )


def split_files(path: Path, split: str) -> list[Path]:
    """The files of a split: the path itself if it is a file, else those of SPLIT_FILES that the folder holds."""
    if path.is_file():
        return [path]
    found = []
    for stem in SPLIT_FILES[split]:
        files = [path / (stem + ending) for ending in FORMATS if (path / (stem + ending)).is_file()]
        if len(files) > 1:
            raise ValueError(
                f"{path} holds {' and '.join(file.name for file in files)}. One file a split is read. "
                "Keep one of them, or name the file itself in the config (data.source, data.dev, data.test)."
            )
        found += files
    return found


def identify(path: Path, split: str) -> dict[str, str]:
    """What identifies the content of a split: hashes of its files and of tables.json, sizes of Spider's databases."""
    folder = path if path.is_dir() else path.parent
    files = [*split_files(path, split), *(folder / name for name in SPIDER_TABLES)]
    identity = {file.name: file_hash(file) for file in files if file.is_file()}
    for name in SPIDER_DATABASES:
        if (folder / name).is_dir():
            databases = sorted((folder / name).rglob("*.sqlite"))
            identity[name] = content_hash([[file.stem, file.stat().st_size] for file in databases])
    return identity


def read_files(files: list[Path], columns: dict[str, str], prefix: str = "") -> list[Row]:
    """The rows of local files as examples; `columns` maps our names to theirs, `prefix` goes before example ids.

    A row that cannot become an example carries its problem; a file that cannot be read or lacks a needed column raises
    ValueError.
    """
    rows = []
    for file in files:
        records = _records(file)
        names, spider = _names(records, columns, str(file))
        schemas = _spider_schemas(file, {str(record.get(names["database"])) for record in records}) if spider else None
        source = f"{file.resolve().parent.name}/{file.name}"
        rows += [
            _row(record, number, names, schemas, file=str(file), source=source, stem=prefix + file.stem)
            for number, record in enumerate(records, start=1)
        ]
    return rows


def read_hub(name: str, columns: dict[str, str]) -> dict[str, list[Row]]:
    """The rows of a data set on the Hugging Face hub, for each of our splits that it has."""
    from datasets import load_dataset

    try:
        loaded = load_dataset(name)
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        raise ValueError(
            f"{name} is no local file or folder, and the hub data set could not be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Allowed are "
            "`embedded`, local files and hub data sets that can be reached or are cached. Without a connection use "
            "`data.source: embedded`, or name a local JSON, JSONL, CSV or Parquet file."
        ) from error
    splits: dict[str, list[Row]] = {}
    for hub_split, data in loaded.items():
        if split := HUB_SPLITS.get(hub_split):
            label = f"{name}/{hub_split}"
            records = data.to_list()
            names, spider = _names(records, columns, label)
            if spider:
                raise ValueError(
                    f"{label} names databases ({names['database']}) but a hub data set does not carry them. Needed is "
                    "a schema in each row (context), or Spider's layout on disk. Download it and name its folder."
                )
            stem = f"{name.split('/')[-1]}-{hub_split}"
            splits[split] = [
                _row(record, number, names, None, file=label, source=name, stem=stem)
                for number, record in enumerate(records, start=1)
            ]
    return splits


def _names(records: list[dict], columns: dict[str, str], label: str) -> tuple[dict[str, str], bool]:
    """Names of the columns to read in these records, and whether they are rows of Spider's layout."""
    found = list(dict.fromkeys(key for record in records for key in record if key is not None))
    allowed = [*PLAIN_COLUMNS, "database", "evidence"]
    if unknown := sorted(columns.keys() - set(allowed)):
        raise ValueError(
            f"data.columns has the unknown key {', '.join(unknown)}. Allowed are {', '.join(allowed)}, each with the "
            "name that the column has in your file. Correct the key."
        )
    if {"context", "database"} <= columns.keys():
        raise ValueError(f"data.columns maps context ({columns['context']}) and database ({columns['database']}). A row's schema comes from its "
                         "database where it has one. Take one of the two out.")
    plain = columns.get("context", PLAIN_COLUMNS["context"]) in found
    spider = "database" in columns or (SPIDER_COLUMNS["database"] in found and not plain)
    names = (SPIDER_COLUMNS if spider else PLAIN_COLUMNS) | columns
    missing = [key for key, name in names.items() if name not in found]
    if records and missing and not (spider and missing == ["context"]):
        wanted = ", ".join(f"{name} (for {key})" for key, name in names.items())
        raise ValueError(
            f"{label} lacks the column {', '.join(names[key] for key in missing)}. Found are {', '.join(found)}; "
            f"needed are {wanted}. Map the names with the key data.columns, for example "
            f"data.columns: {{{missing[0]}: {found[0] if found else 'name'}}}."
        )
    return {"evidence": "evidence"} | names, spider


def folded(text: str | None) -> str:
    """A question or query as it is compared with others: in small letters, white space as single spaces."""
    return " ".join((text or "").lower().split())


def _text(value: object) -> str | None:
    """The text of a cell without surrounding space; None where there is none."""
    return value.strip() or None if isinstance(value, str) else None


def _row(
    record: dict, number: int, names: dict[str, str], schemas: dict | None, *, file: str, source: str, stem: str
) -> Row:
    """One record as an example, or with the problem that keeps it from being one."""
    question, gold = _text(record.get(names["question"])), record.get(names["gold"])
    problem = database = None
    if schemas is None:
        context, cut_key = _text(record.get(names["context"])), (question or "").lower()
        if not context:
            problem = "no_context", f"the column {names['context']} holds no text"
    else:
        cut_key = str(record.get(names["database"]))
        context, database, fault = schemas[cut_key]
        if fault:
            problem = "no_database", fault
    if not question:
        problem = "no_question", f"the column {names['question']} holds no text"
    elif names["gold"] not in record:
        problem = "no_gold", f"the row has no {names['gold']}; write null where the schema cannot answer the question"
    elif gold is not None and not _text(gold):
        problem = "no_gold", f"the column {names['gold']} holds no query"
    elif None in record:
        problem = "malformed_row", f"the row has {'more' if record[None] else 'fewer'} cells than the header"
    gold = gold if isinstance(gold, str) else None  # the quarantine shows what was there
    for name in names.values():
        try:
            (_text(record.get(name)) or "").encode()
        except UnicodeEncodeError as error:
            problem = "malformed_text", f"the column {name} holds half a character (a lone surrogate) at character {error.start + 1}"
    example = {
        "example_id": f"{stem}-{number}",
        "source": source,
        "question": question,
        "context": context,
        "gold": gold,
        "gold_sql": None,
        "database": database,
        "evidence": _text(record.get(names["evidence"])),
        "answerable": gold is not None,
        "kind": [],
        "license": _text(record.get("license")) or LICENSES.get(source, "unknown"),
    }
    return Row(example, file, number, record, cut_key, problem)


def _records(file: Path) -> list[dict]:
    """The rows of one file as dictionaries. An empty CSV cell is null; a CSV row with more or fewer cells than the header has
    the key None, with what was too many.
    """
    ending = file.suffix.lower()
    try:
        if ending == ".parquet":
            return pq.read_table(file).to_pylist()
        if ending == ".csv":
            with open(file, encoding="utf-8-sig", newline="") as opened:
                csv.field_size_limit(2**31 - 1)  # by default 131,072 characters, and schemas can be longer
                rows = csv.DictReader(opened, strict=True)
                return [{key: value or None for key, value in row.items() if key is not None}
                        | ({None: row.get(None, [])} if None in row or None in row.values() else {}) for row in rows]
        text = file.read_text(encoding="utf-8-sig")
    except (pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
        kind = {".parquet": "a Parquet file", ".csv": "a CSV file in UTF-8"}.get(ending, "text in UTF-8")
        at = f", in the row that starts on line {rows.line_num + 1}" if isinstance(error, csv.Error) else ""
        raise ValueError(f"{file}{at}: {error}. Expected is {kind}. Repair the file or export it again.") from None
    return _json_records(file, text, lines=ending == ".jsonl")


def _json_records(file: Path, text: str, *, lines: bool) -> list[dict]:
    """The objects of a JSON list or of JSON lines."""
    shape = "one JSON object a line" if lines else "one JSON list of objects"
    unit, items, number = ("line", [], 0) if lines else ("item", [], 1)
    try:
        if lines:
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    items.append((number, json.loads(line)))
        else:
            parsed = json.loads(text)
            if not isinstance(parsed, list):
                raise ValueError(
                    f"{file} holds one JSON {type(parsed).__name__}. Expected is {shape}. Rewrite it in that shape."
                )
            items = list(enumerate(parsed, start=1))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {number + error.lineno - 1}, column {error.colno}: {error.msg}. Expected is {shape}. "
            + ("JSON lines belong in a file that ends in .jsonl: rename it." if error.msg == "Extra data" and not lines
               else "Repair or delete that line.")
        ) from None
    for number, item in items:
        if not isinstance(item, dict):
            raise ValueError(
                f"{file}, {unit} {number} is a JSON {type(item).__name__}. Expected is {shape}. Repair or delete it."
            )
    return [item for _, item in items]


def _spider_schemas(file: Path, names: set[str]) -> dict[str, tuple[str | None, str | None, str | None]]:
    """For each database name of a Spider file: (context, path of its SQLite file or None, what is wrong or None)."""
    folder, tables = file.parent, {}
    for listing in SPIDER_TABLES:
        if (folder / listing).is_file():
            tables = {entry.get("db_id"): entry for entry in _records(folder / listing)} | tables
    if not tables and not any((folder / place).is_dir() for place in SPIDER_DATABASES):
        raise ValueError(
            f"{file} names databases, but beside it stand neither database/ nor tables.json. Spider's layout has "
            "database/<id>/<id>.sqlite or database/<id>.sqlite (or at least tables.json) beside its questions. "
            "Put them there, or give each row a schema in the column context."
        )
    schemas = {}
    for name in names:
        if Path(name).name != name:
            schemas[name] = None, None, f"{name!r} is not the name of a database"
            continue
        candidates = [folder / place / inner for place in SPIDER_DATABASES for inner in (Path(name, f"{name}.sqlite"), f"{name}.sqlite")]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        try:
            if path:
                schemas[name] = from_sqlite(path), str(path.resolve()), None
            elif name in tables:
                schemas[name] = from_spider_tables(tables[name]), None, None
            else:
                schemas[name] = None, None, f"neither {candidates[0].name} in database/ nor an entry in tables.json"
        except ValueError as error:
            schemas[name] = None, None, str(error)
        except (KeyError, IndexError, TypeError) as error:
            schemas[name] = None, None, f"the entry of tables.json is malformed ({type(error).__name__}: {error})"
    return schemas
