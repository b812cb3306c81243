"""Suites kept on disk by what they follow from, in one SQLite file that all processes of a machine share.

A suite costs tens of milliseconds to make and a fraction of one to read. Its key covers everything that it follows
from, the code too, so a stored suite is never wrong, only unused. A file that cannot be used costs a warning and
speed, never an answer.
"""

import functools
import hashlib
import importlib.metadata
import io
import os
import pickle
import sqlite3
import sys
import time
import warnings
import zlib
from pathlib import Path

from reward.suite import Suite, SuiteBuilder

LIMIT_MIB = 1024
# These judge, store and print; all other files of the package decide what a suite holds.
_NOT_MAKING_SUITES = frozenset(
    f"{name}.py"
    for name in "answering audit audit_table cache child command json_lines judge pool progress trace verdicts".split()
)
# These only end a worker that hangs, and a suite that lost its worker is not stored.
_NOT_DECIDING = ("cpu_limit_s", "wall_limit_s")
_FORMAT = "suites 1"
_LARGEST_BYTES = 1 << 20
_WRITES_BETWEEN_CHECKS = 32
_USE_PERIOD_S = 3600  # the time of the last use is written at most so often
_BUSY_S = 5.0


def default_folder() -> Path:
    """`$TEXT_TO_SQL_CACHE`, else `text-to-sql-preference` in $XDG_CACHE_HOME, else in ~/.cache."""
    if chosen := os.environ.get("TEXT_TO_SQL_CACHE"):
        return Path(os.path.expanduser(chosen))
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    folder = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~")) / ".cache"
    return folder / "text-to-sql-preference"


@functools.cache
def source_hash(excluded: frozenset[str] = frozenset()) -> str:
    """A hash of the package's source files, and of the versions that it runs on; `excluded` are file names."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in excluded:
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    versions = [importlib.metadata.version(name) for name in ("sqlglot", "apsw")]
    digest.update(repr((versions, sys.version_info[:3])).encode())
    return digest.hexdigest()


class SuiteCache:
    """A `builder` of suites that reads what was built before. `settings`: the arguments and limits of the builder.

    The file is bounded by `limit_mib` (2**20 bytes, met to within some suites); what was not used for longest goes
    first. It carries the machine's name, because SQLite's write-ahead log must not be shared over a network. A killed
    process leaves whole suites or none: each is written in one transaction.
    """

    def __init__(
        self, folder: str | os.PathLike, builder: SuiteBuilder, settings: dict, limit_mib: float = LIMIT_MIB
    ):
        self.builder = builder
        self.folder = Path(folder)
        self.path = self.folder / f"suites-{os.uname().nodename}.sqlite"
        self.limit_bytes = int(limit_mib * 2**20)
        deciding = sorted((name, value) for name, value in settings.items() if name not in _NOT_DECIDING)
        self._settings = repr((_FORMAT, source_hash(_NOT_MAKING_SUITES), deciding))
        self._files: dict[str, tuple[tuple, str]] = {}
        self._writes = 0
        self._connection: sqlite3.Connection | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    @property
    def usable(self) -> bool:
        """Whether suites are read and written; False once the file has failed."""
        return self._connection is not None

    def close(self) -> None:
        """Closes the file; nothing is read or written afterwards."""
        if self._connection is not None:
            try:
                self._connection.close()
            except sqlite3.Error:
                pass  # whatever the file suffers from, nothing more is asked of it
            self._connection = None

    def build(self, gold: str, database: str | None, context: str | None) -> Suite:
        """The suite of one question, read or made. Raises OSError where the database cannot be read."""
        key = self.key(gold, database, context)
        suite = self.get(key) if key is not None else None
        if suite is None:
            restarts = self.builder.sandbox.restarts
            suite = self.builder.build(gold, database, context)
            # A suite that lost a worker on its way may lack what it would have on a quieter machine.
            if key is not None and self.builder.sandbox.restarts == restarts:
                self.put(key, suite)
        return suite

    def key(self, gold: str, database: str | None, context: str | None) -> bytes | None:
        """What a question's suite is stored under; None where it must not be stored.

        A database file counts by content and place, because the suite says where it lies. Raises OSError where it
        cannot be read.
        """
        if database is None:
            content = ("context", context)
        else:
            place = os.path.realpath(database)
            status = os.stat(place)
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if place not in self._files:
                with open(place, "rb") as file:
                    self._files[place] = (signature, hashlib.file_digest(file, "sha256").hexdigest())
            first, content_hash = self._files[place]
            if first != signature:
                return None  # changed while it is in use: which of both contents a suite saw cannot be told
            content = ("database", place, content_hash)
        text = repr((self._settings, gold, content))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def get(self, key: bytes) -> Suite | None:
        """The stored suite, or None."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT value, used FROM suite WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            now = int(time.time()) // _USE_PERIOD_S
            if row[1] != now:
                self._connection.execute("UPDATE suite SET used = ? WHERE key = ?", (now, key))
        except sqlite3.Error as error:
            self._failed(error)
            return None
        try:
            return unpack(row[0])
        except ValueError:
            return None  # zlib's checksum tells a damaged value; it will be written anew

    def put(self, key: bytes, suite: Suite) -> None:
        """Stores a suite, unless it is too large for reading it to save anything."""
        if self._connection is None:
            return
        value = pack(suite)
        if len(value) > min(_LARGEST_BYTES, self.limit_bytes):
            return
        now = int(time.time()) // _USE_PERIOD_S
        try:
            self._connection.execute("INSERT OR REPLACE INTO suite VALUES (?, ?, ?)", (key, now, value))
            if self._writes % _WRITES_BETWEEN_CHECKS == 0:
                self._shrink()
            self._writes += 1
        except sqlite3.Error as error:
            self._failed(error)

    def _open(self) -> None:
        for attempt in range(20):
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # Switching a new file to WAL does not wait for another process that does just that.
                if not _is_busy(error) or attempt == 19:
                    raise
                time.sleep(0.05)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        # The index finds what was used longest ago without reading any value.
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS suite (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL)"
        )
        self._connection.execute("CREATE INDEX IF NOT EXISTS suite_used ON suite (used)")
        self._connection.execute("SELECT key, used, value FROM suite LIMIT 1").fetchone()

    def _shrink(self) -> None:
        while self._used_bytes() > self.limit_bytes:
            removed = self._connection.execute(
                "DELETE FROM suite WHERE rowid IN (SELECT rowid FROM suite ORDER BY used, rowid LIMIT"
                " (SELECT 1 + count(*) / 10 FROM suite))"
            ).rowcount
            if not removed:
                return

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _failed(self, error: sqlite3.Error) -> None:
        """A file that others hold locked is left alone this once; any other failure ends its use."""
        if not _is_busy(error):
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.close()
        warnings.warn(
            f"the cache of suites {self.path} cannot be used ({error}); judging goes on without it, slower; "
            "delete the file, or choose another folder",
            RuntimeWarning,
            stacklevel=3,
        )


def pack(suite: Suite) -> bytes:
    """A suite as bytes; `unpack` makes an equal one of them."""
    return zlib.compress(pickle.dumps(suite, protocol=5), 1)


def unpack(value: bytes) -> Suite:
    """The suite that `pack` was given. Raises ValueError where the bytes hold anything else."""
    try:
        suite = _Unpickler(io.BytesIO(zlib.decompress(value))).load()
    except (zlib.error, pickle.UnpicklingError, EOFError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"no suite: {error}") from None
    if not isinstance(suite, Suite):
        raise ValueError(f"a {type(suite).__name__} is no suite")
    return suite


class _Unpickler(pickle.Unpickler):
    """Knows the package's tuples and nothing else: whoever writes into the file runs no code here."""

    def find_class(self, module: str, name: str) -> type:
        found = super().find_class(module, name) if module.startswith("reward.") else None
        if not (isinstance(found, type) and issubclass(found, tuple)):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a suite")
        return found


def _is_busy(error: sqlite3.Error) -> bool:
    # The low byte is the primary code; SQLITE_BUSY_SNAPSHOT and its like differ above it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
