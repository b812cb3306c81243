"""A file of JSON lines, read line by line: plain or gzip, UTF-8, with each line's number and what is wrong with it."""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_LINE_MIB = 64
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


class Survey(NamedTuple):
    """`lines`: how many there are, blank ones too; `digest`: of the content, the same packed and unpacked."""

    lines: int
    digest: str


def survey(path: Path) -> Survey:
    """Counts the lines without reading them. Raises ValueError, in three parts, where the file cannot be read."""
    lines, last, digest = 0, b"\n", hashlib.sha256()
    try:
        with _open(path) as file:
            head = file.read(_CHUNK)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{path} is UTF-16; allowed is UTF-8; convert it, for example with iconv")
            while head:
                lines += head.count(b"\n")
                last = head[-1:]
                digest.update(head)
                head = file.read(_CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        detail = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read ({detail}); give a file of JSON lines, plain or .gz") from None
    return Survey(lines + (last != b"\n"), digest.hexdigest())


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of every line that is not blank; None for one longer than MAX_LINE_MIB."""
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_MIB << 20):
            number += 1
            if not line.endswith(b"\n") and (rest := file.readline(_CHUNK)):
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(_CHUNK)
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.isspace() and line:
                yield number, line


def parsed(line: bytes | None) -> object:
    """The JSON value of a line. Raises ValueError, in three parts."""
    if line is None:
        raise ValueError(f"the line is longer than {MAX_LINE_MIB} MiB; shorter ones are read; split or remove it")
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at {error.start} is no UTF-8"
    except json.JSONDecodeError as error:
        found = f"not JSON ({error.msg} at character {error.pos + 1})"
    except RecursionError:
        found = "nested too deeply"
    except ValueError as error:
        found = str(error).partition(";")[0]
    raise ValueError(f"{found}; a line is one JSON object in UTF-8; correct or remove it")


def whole_lines(file: BinaryIO) -> int:
    """How many whole lines a file holds that was opened to read and write; a last one without its end is cut off."""
    lines = size = position = 0
    file.seek(0)
    while chunk := file.read(_CHUNK):
        lines += chunk.count(b"\n")
        if (end := chunk.rfind(b"\n")) >= 0:
            size = position + end + 1
        position += len(chunk)
    file.truncate(size)
    file.seek(size)
    return lines


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text:.40} is larger than any number kept")
    return value


# What Python itself reads as NaN or Infinity it would write on as something that is no JSON.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
