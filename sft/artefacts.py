"""Files of a run: written atomically, identified by content, and complete only once their mark says so."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_SIZE = 10_000  # rows


def content_hash(value: object) -> str:
    """SHA-256 (hex) of a JSON-serialisable value in canonical form: sorted keys, no spaces. Any text, lone surrogates too."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_hash(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{path} {_NOT_WRITTEN.format(error.strerror)}") from error
    finally:
        temporary.unlink(missing_ok=True)


_NOT_WRITTEN = (
    "could not be written: {}. What was there before is unchanged. Free space or rights there (or choose another folder "
    "with the key `run`) and run the same command again: it goes on from the last complete step"
)


@contextmanager
def library_writes(folder: Path) -> Iterator[None]:
    """Say what to do where torch, safetensors or a trainer cannot write into `folder`; they raise errors of their own."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch: "[enforce fail at inline_container.cc:672] . unexpected pos"; safetensors: "I/O error: No space left".
        if isinstance(error, OSError):
            written = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and "could not be written" not in str(error)
        else:
            written = re.search(r"inline_container\.cc|PytorchStreamWriter|I/O error", str(error))
        if not written:
            raise
        raise OSError(f"{folder} {_NOT_WRITTEN.format(str(error).splitlines()[0])}") from error


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically; NaN is refused with a ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows with an explicit schema, atomically. A key that the schema lacks is an error, a missing key is null."""
    known = set(schema.names)
    for row in rows:
        if not row.keys() <= known:
            raise AssertionError(f"columns {sorted(row.keys() - known)} are not in the schema of {path.name}")
    with atomic_path(path) as temporary:
        # Few rows a group, so that one row of a large file can be read without the rest.
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, row_group_size=ROW_GROUP_SIZE)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> list[dict]:
    """All rows of a Parquet file as dictionaries, of these columns (None: all); a missing or damaged file is a ValueError that names it."""
    try:
        return pq.read_table(path, columns=columns).to_pylist()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist. Run the step that writes it first.") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}). Delete it and run its step again.") from None


def mark_path(target: Path) -> Path:
    """Where a step's mark stands: `folder/complete.json` for a folder, `name.complete.json` beside a file."""
    return target.with_suffix(".complete.json") if target.suffix else target / "complete.json"


def is_complete(target: Path, inputs: dict, overwrite: bool = False) -> bool:
    """Whether `target` was completely written for exactly these inputs; if not, say that it is being made for them.

    Raises ValueError where it was made, or begun, for other inputs, naming those that differ: work is never overwritten
    without a word. With `overwrite` such a target is deleted instead.
    """
    wanted = json.loads(json.dumps(inputs))
    for mark in (mark_path(target), _begun_path(target)):
        if not mark.exists():
            continue
        found = json.loads(mark.read_text(encoding="utf-8"))["inputs"]
        if found == wanted:
            if mark == mark_path(target) and target.exists():
                return True
            continue
        if overwrite or not _holds_work(target):
            discard(target)
            break
        differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        shown = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in differing)
        raise ValueError(
            f"{target} was made with other settings or inputs ({shown[:1500]}). Finished work is not overwritten: choose "
            "another folder (--set run=FOLDER; of a comparison --output), go back to the old settings, or add --overwrite to make this step and "
            "what follows anew."
        )
    write_json(_begun_path(target), {"inputs": wanted})
    return False


def recorded_inputs(target: Path) -> dict | None:
    """The inputs that `target` was made for, or is being made for; None where it was never begun."""
    mark = next((mark for mark in (mark_path(target), _begun_path(target)) if mark.exists()), None)
    return json.loads(mark.read_text(encoding="utf-8"))["inputs"] if mark else None


def discard(target: Path) -> None:
    """Delete a step's output, whole or in part, and its marks."""
    for mark in (mark_path(target), _begun_path(target)):
        mark.unlink(missing_ok=True)
    for place in (target, shard_folder(target)):
        if place.is_dir():
            shutil.rmtree(place)
    target.unlink(missing_ok=True)


def _holds_work(target: Path) -> bool:
    """Whether there is anything of a step but the mark that it was begun."""
    parts = [place for place in (target, shard_folder(target)) if place.is_dir()]
    return target.is_file() or any(path.name != "begun.json" for place in parts for path in place.iterdir())


def shard_folder(target: Path) -> Path:
    """Where the shards of a file that is made in parts stand until they are put together: `name/` beside `name.parquet`."""
    return target.with_suffix("")


def _begun_path(target: Path) -> Path:
    """Where the inputs of a step that is under way stand."""
    return mark_path(target).with_name(mark_path(target).name.replace("complete.json", "begun.json"))


def mark_complete(target: Path, inputs: dict, rows: dict) -> None:
    """Say that `target` is completely written: its inputs, row counts and what else it tells, as the last file, by atomic
    rename.
    """
    write_json(mark_path(target), {"inputs": inputs, "rows": rows})
    _begun_path(target).unlink(missing_ok=True)


def make_in_shards(target: Path, items: list, shard_size: int, schema: pa.Schema, make, *, part: int, parts: int) -> None:
    """Write this part's shards of `target`: fixed runs of `shard_size` items that do not depend on the number of parts.

    `make(items) -> rows` makes one shard. A shard that is there is not made again. `part` of `parts` takes every
    parts-th shard.
    """
    for path, shard in shards_to_make(target, items, shard_size, part=part, parts=parts):
        write_parquet(path, make(shard), schema)


def shards_to_make(target: Path, items: list, shard_size: int, *, part: int, parts: int) -> list[tuple[Path, list]]:
    """The file and the items of each shard that this part has still to make: see `make_in_shards`."""
    shards = [(shard_folder(target) / f"shard-{index:05d}.parquet", items[start : start + shard_size])
              for index, start in enumerate(range(0, len(items), shard_size))]
    return [(path, shard) for path, shard in shards[part::parts] if not path.exists()]


def join_shards(target: Path, schema: pa.Schema) -> int:
    """Put the shards of `target` together in their order, delete them, and give the number of rows."""
    folder = shard_folder(target)
    rows = [row for path in sorted(folder.glob("shard-*.parquet")) for row in read_parquet(path)]
    write_parquet(target, rows, schema)
    shutil.rmtree(folder, ignore_errors=True)
    return len(rows)
