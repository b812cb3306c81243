"""Which files belong to what was named: a run's folder, one of its files, or any TRL preference dataset."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import duckdb

PREFERENCE_FILES = (".parquet", ".jsonl", ".json", ".arrow")
_CONVERTED = (".jsonl", ".json", ".arrow")
_GUESSED = ("DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "UUID")
_NEEDED = "Needed are the columns chosen and rejected (TRL's preference format), or example_id and completion (samples)"


@dataclass
class Files:
    """`main`: the Parquet files of pairs or candidates, `original`: what those are copies of where they were converted; `run`: the run's folder, None outside of one; `labels`: where
    people's words are kept. The others are files of a run that are there.
    """

    named: Path
    main: list[Path]
    kind: str
    run: Path | None
    labels: Path
    original: list[Path] = field(default_factory=list)
    candidates: list[Path] = field(default_factory=list)
    verdicts: list[Path] = field(default_factory=list)
    dropped: list[Path] = field(default_factory=list)
    examples: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_files(path: Path) -> Files:
    """The files of a run's folder, a round's folder, a dataset's folder or one file. Raises ValueError for others."""
    path = Path(path)
    if path.is_dir():
        for name, kind in (("pairs", "pairs"), ("candidates", "candidates")):
            main = sorted(path.glob(f"round-*/{name}.parquet"), key=_round) or sorted(path.glob(f"{name}.parquet"))
            if main:
                return _with_company(path, main, kind)
        main = [file for pattern in ("*", "data/*", "*/*") for file in sorted(path.glob(pattern))
                if file.suffix in PREFERENCE_FILES and file.is_file() and file.name not in _NO_ROWS][:1000]
        main = list(dict.fromkeys(main))
        if not main:
            raise ValueError(f"{path} holds no pairs: no round-*/pairs.parquet, no candidates and no dataset file "
                             f"({', '.join(PREFERENCE_FILES)}). Make pairs with `accelerate launch preference/dpo.py`, "
                             "or name a file.")
        suffix = next(suffix for suffix in PREFERENCE_FILES if any(file.suffix == suffix for file in main))
        first = [file for file in main if file.suffix == suffix]
        return Files(path, first, "", None, path / "labels.sqlite")
    if not path.exists():
        near = sorted(str(other) for other in path.parent.glob("*")) if path.parent.is_dir() else []
        raise ValueError(f"{path} does not exist. There are: {', '.join(near[:8]) or 'no files'}. Name a run's folder, "
                         "pairs.parquet, candidates.parquet or a preference dataset.")
    if path.suffix not in PREFERENCE_FILES:
        raise ValueError(f"{path} is no preference file: allowed are a run's folder and files that end in "
                         f"{', '.join(PREFERENCE_FILES)}. Name one of those.")
    return _with_company(path, [path], "")


def _round(file: Path) -> tuple[int, str]:
    """Sorts files of rounds by number: round-2 before round-10."""
    number = file.parent.name.removeprefix("round-")
    return int(number) if number.isdecimal() else 0, number


_NO_ROWS = {"complete.json", "begun.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "versions.json", "report.json",
            "dropped.parquet", "verdicts.parquet", "quarantine.jsonl"}


def _with_company(named: Path, main: list[Path], kind: str) -> Files:
    """The files that stand beside pairs or candidates, and the run that they belong to."""
    named = Path(os.path.abspath(named))  # inside a round's folder, `pairs.parquet` and `.` are the run's, too
    main = [Path(os.path.abspath(file)) for file in main]
    folders = list(dict.fromkeys(file.parent for file in main))
    if named.is_dir() and any(folder != named for folder in folders):
        run = named
    else:  # a round's folder, or a file in one
        run = next((place.parent for place in (named, named.parent) if place.is_dir() and place.name.startswith("round-")), None)
    labels = (run / "labels.sqlite" if run else named / "labels.sqlite" if named.is_dir()
              else named.with_name(f"{named.stem}.labels.sqlite"))
    beside = {name: [file for folder in folders if (file := folder / f"{name}.parquet").is_file()]
              for name in ("candidates", "verdicts", "dropped")}
    examples = sorted((run / "data").glob("*.parquet")) if run else []
    return Files(named, main, kind, run, labels, **beside, examples=examples)


def judge_settings(files: Files) -> dict:
    """The judge's part of the run's configuration (`databases`), {} where it is not known."""
    path = files.run / "config.yaml" if files.run else None
    if path is None or not path.is_file():
        return {}
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        stages = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return dict(stages["dpo"]["judge"])
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return {}


def connect() -> duckdb.DuckDBPyConnection:
    """A database in memory that fetches nothing from anywhere and stays within its memory."""
    settings = {"memory_limit": "256MB", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
                "temp_directory": str(Path(tempfile.gettempdir()) / f"inspect-preferences-{os.getpid()}")}
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET enable_progress_bar = false")  # it would go to standard output
    return connection


def parquet(path: Path) -> str:
    """DuckDB's table function for one Parquet file, with the path as a literal; every row has `file_row_number`."""
    return f"read_parquet([{literal(str(path))}], file_row_number = true, hive_partitioning = false)"


def literal(text: str) -> str:
    """A text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def columns_of(connection: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Column names and DuckDB types of a Parquet file. Raises ValueError where it is none, or damaged."""
    try:
        rows = connection.execute(f"DESCRIBE SELECT * EXCLUDE (file_row_number) FROM {parquet(path)}").fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path} is not a readable Parquet file ({first_line(error)}). Allowed are whole files. Copy it "
                         "again, or delete it and run its step again.") from None
    return {row[0]: row[1] for row in rows}


def kind_of(columns: dict[str, str], path: Path) -> str:
    """pairs or candidates, by what a file's columns are. Raises ValueError for neither."""
    if {"chosen", "rejected"} <= columns.keys() or {"chosen_sql", "rejected_sql"} <= columns.keys():
        return "pairs"
    if "example_id" in columns and {"completion", "sql"} & columns.keys():
        return "candidates"
    found = ", ".join(list(columns)[:12]) or "none"
    raise ValueError(f"{path} is no preference file: its columns are {found:.300}. {_NEEDED}. Name pairs.parquet, "
                     "candidates.parquet or a TRL preference dataset.")


def read_columns(connection: duckdb.DuckDBPyConnection, files: Files, folder: Path | None) -> list[dict[str, str]]:
    """Column names and types of each main file; settles `main`, `original` and `kind`, and warns of what cannot be read.

    folder: where files that are no Parquet are copied to as Parquet. Raises ValueError where no main file can be read.
    """
    named, files.main = files.main, []
    columns, problems = [], []
    for file in named:
        try:
            copy = as_parquet(file, folder) if folder else file
            types = columns_of(connection, copy)
            kind = kind_of(types, file)
            if files.kind not in ("", kind):
                raise ValueError(f"{file} holds {kind}, the others {files.kind}. Allowed is one kind. Name one of them.")
        except ValueError as error:
            problems.append(str(error))
            continue
        files.kind = kind
        files.main.append(copy)
        files.original.append(file)
        columns.append(types)
    if not columns:
        raise ValueError("\n".join(problems[:5]))
    for beside in (files.candidates, files.verdicts, files.dropped, files.examples):
        for file in list(beside):
            try:
                columns_of(connection, file)
            except ValueError as error:
                beside.remove(file)
                problems.append(str(error))
    files.warnings += problems
    return columns


def as_parquet(path: Path, folder: Path) -> Path:
    """A file itself where it is Parquet, else a copy as Parquet in `folder`."""
    if path.suffix not in _CONVERTED:
        return path
    target = folder / f"{sha256(str(path).encode()).hexdigest()[:16]}.parquet"
    try:
        _convert(path, target)
    except (duckdb.Error, OSError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as a dataset ({first_line(error)}). Allowed is one JSON object a line, "
                         "or a file that `datasets` saved. Mend that place.") from None
    return target


def _convert(path: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_stream(source)
            with pq.ParquetWriter(target, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        return
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise ValueError("the file is empty")
    source = f"[{literal(str(path))}], sample_size = -1, maximum_object_size = 16777216, hive_partitioning = false"
    with connect() as connection:
        types = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM read_json({source})").fetchall()}
        # Texts that look like dates or ids stay the texts that they are.
        kept = ", ".join(f"{literal(name)}: {literal('VARCHAR' if kind in _GUESSED else kind)}" for name, kind in types.items())
        connection.execute(f"COPY (SELECT * FROM read_json({source}, columns = {{{kept}}})) TO {literal(str(target))} "
                           "(FORMAT parquet)")


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def identity(files: list[Path]) -> tuple[str, str]:
    """(which files, in which state): two short hashes that name an index of them."""
    names = [str(file.resolve()) for file in files]
    states = [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return tuple(sha256(json.dumps(value).encode()).hexdigest()[:16] for value in (names, states))
