"""One guarded SQLite connection, as the worker process holds it: it runs statements that nobody has read."""

import hashlib
import marshal
import os
from itertools import islice
from urllib.parse import quote

import apsw

# Deterministic functions without side effects. What is not listed is refused, so a newer SQLite brings nothing in.
_FUNCTIONS = frozenset(
    "-> ->> abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling char coalesce concat concat_ws cos"
    " cosh count cume_dist date datetime degrees dense_rank exp first_value floor format glob group_concat hex"
    " if ifnull iif instr json json_array json_array_length json_extract json_group_array json_group_object"
    " json_insert json_object json_patch json_quote json_remove json_replace json_set json_type json_valid"
    " julianday lag last_value lead length like likelihood likely ln log log10 log2 lower ltrim max median min"
    " mod nth_value ntile nullif octet_length percent_rank percentile percentile_cont percentile_disc pi pow"
    " power printf quote radians rank replace round row_number rtrim sign sin sinh sqrt strftime string_agg"
    " substr substring sum tan tanh time timediff total trim trunc typeof unhex unicode unixepoch unlikely"
    " upper zeroblob".split()
)
# Reported and not run: their value is another one next time. What tells of the connection or of SQLite is refused.
_VOLATILE = frozenset(("random", "randomblob", "current_date", "current_time", "current_timestamp"))
_SCHEMA_ACTIONS = frozenset(
    (
        apsw.SQLITE_CREATE_TABLE,
        apsw.SQLITE_CREATE_INDEX,
        apsw.SQLITE_CREATE_VIEW,
        apsw.SQLITE_INSERT,
        apsw.SQLITE_UPDATE,
        apsw.SQLITE_READ,
        apsw.SQLITE_SELECT,
        apsw.SQLITE_FUNCTION,
        apsw.SQLITE_REINDEX,
        apsw.SQLITE_TRANSACTION,
    )
)
_PROGRESS_STEPS = 5000
OUT_OF_MEMORY = "out of memory"
VOLATILE = "its answer depends on chance or on the clock"


class _Clock(apsw.VFS):
    """SQLite's access to files, with a clock that stands still and tells that it was asked."""

    def __init__(self):
        super().__init__("clock", "")
        self.asked = False

    def xCurrentTimeInt64(self) -> int:
        self.asked = True
        return 211_845_067_200_000  # 2001-01-01, in milliseconds since the Julian epoch

    def xCurrentTime(self) -> float:
        return self.xCurrentTimeInt64() / 86_400_000


_CLOCK = _Clock()


class _RowLimit(Exception):
    """A result passed the cap on rows or bytes."""


def fingerprint(width: int, rows: list[tuple]) -> bytes:
    """Names a result: equal types and values in equal order under the same number of columns, and nothing else."""
    digest = hashlib.sha256(width.to_bytes(4, "big"))
    digest.update(_row_bytes(rows))
    return digest.digest()


def _row_bytes(rows: list[tuple]) -> bytes:
    # Version 2 has no references to earlier objects, so equal rows give equal bytes; the first 5 are the list's length.
    return marshal.dumps(rows, 2)[5:]


class Database:
    """One guarded connection: built from DDL and rows in memory, or a file that is opened read-only and immutable."""

    def __init__(self, limits: dict, path: str | None, ddl: list[str], rows: list[tuple[str, int, list[tuple]]]):
        self.limits = limits
        self.steps = 0
        self.volatile = False
        self.sql = ""
        self.description: tuple[tuple[str, str | None], ...] = ()
        self.byte_count = 0
        self.statements = 0
        # What was allowed before, as often as the schema's columns: the list below is not gone through again.
        self._allowed: set[tuple[int, str | None, str | None]] = set()
        if path is None:
            self.connection = apsw.Connection(":memory:", vfs="clock", statementcachesize=0)
        else:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            # apsw's file access takes SQLite's note that a path holds a link for an error.
            uri = f"file:{quote(os.path.realpath(path))}?mode=ro&immutable=1"
            self.connection = apsw.Connection(uri, flags=flags, vfs="clock", statementcachesize=0)
        try:
            self._set_up(path is None, ddl, rows)
        except Exception:
            self.connection.close(True)
            raise

    def _set_up(self, in_memory: bool, ddl: list[str], rows: list[tuple[str, int, list[tuple]]]) -> None:
        self._lower_limits()
        self.connection.set_progress_handler(self._count_steps, _PROGRESS_STEPS)
        self.connection.execute("PRAGMA temp_store = MEMORY; PRAGMA mmap_size = 0; PRAGMA trusted_schema = 0")
        if in_memory:
            self.connection.authorizer = lambda action, *_: (
                apsw.SQLITE_OK if action in _SCHEMA_ACTIONS else apsw.SQLITE_DENY
            )
            with self.connection:
                for statement in ddl:
                    self.connection.execute(statement)
                for table, width, values in rows:
                    marks = ", ".join("?" * width)
                    name = table.replace('"', '""')
                    self.connection.executemany(f'INSERT OR IGNORE INTO "{name}" VALUES ({marks})', values)
            self.connection.authorizer = None
        query = "SELECT lower(name) FROM sqlite_master WHERE type IN ('table', 'view')"
        self.tables = {name for (name,) in self.connection.execute(query)} - {"sqlite_master", "sqlite_schema"}
        self.modules = {name.lower() for (name,) in self.connection.execute("PRAGMA module_list")}
        self.connection.execute("PRAGMA query_only = 1")
        # Double-quoted text is a name here, never a string: reward.queries decides which ones become strings.
        for option, value in (
            (apsw.SQLITE_DBCONFIG_DQS_DML, 0),
            (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),
            (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
            (apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
            (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0),
        ):
            self.connection.config(option, value)
        self.connection.exec_trace = self._on_statement
        self.connection.authorizer = self._authorize

    def _lower_limits(self) -> None:
        for limit, value in (
            (apsw.SQLITE_LIMIT_ATTACHED, 0),
            (apsw.SQLITE_LIMIT_LENGTH, self.limits["length_limit_bytes"]),
            (apsw.SQLITE_LIMIT_SQL_LENGTH, 1_000_000),
            (apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
            (apsw.SQLITE_LIMIT_EXPR_DEPTH, 200),
            (apsw.SQLITE_LIMIT_COMPOUND_SELECT, 100),
            (apsw.SQLITE_LIMIT_COLUMN, 500),
            (apsw.SQLITE_LIMIT_VDBE_OP, 1_000_000),
            (apsw.SQLITE_LIMIT_VARIABLE_NUMBER, 600),
            (apsw.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
            (apsw.SQLITE_LIMIT_WORKER_THREADS, 0),
        ):
            self.connection.limit(limit, value)

    def _count_steps(self) -> bool:
        self.steps += _PROGRESS_STEPS
        return self.steps > self.limits["vm_step_budget"]

    def _on_statement(self, cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        # Here, before the first step, is the only place where apsw tells the columns of a result without rows.
        self.description = cursor.get_description()
        self.statements += 1
        return self.statements == 1 and not self.volatile

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        asked = (action, first, second)
        if asked in self._allowed:
            return apsw.SQLITE_OK
        if action in (apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE):
            self._allowed.add(asked)
            return apsw.SQLITE_OK
        if action == apsw.SQLITE_READ:
            name = (first or "").lower()
            if name in self.tables:
                self._allowed.add(asked)
                return apsw.SQLITE_OK
            # A common table expression of which no column is read comes with the column "".
            unread = second == "" and name not in self.modules and not name.startswith(("sqlite_", "pragma_"))
            if unread or name in ("json_each", "json_tree"):
                return apsw.SQLITE_OK
        if action == apsw.SQLITE_FUNCTION:
            name = (second or "").lower()
            if name in _VOLATILE:
                # A column's DEFAULT CURRENT_TIMESTAMP comes by here too, and no query reads it.
                self.volatile |= name in self.sql.lower()
                return apsw.SQLITE_OK
            if name in _FUNCTIONS:
                return apsw.SQLITE_OK
        return apsw.SQLITE_DENY

    def run(self, sql: str, keep_rows: int, answers: frozenset[bytes]) -> tuple | bytes:
        """(status, columns, rows, row count, VM steps, message, fingerprint) of one statement; keeps `keep_rows` rows.

        Only the fingerprint where it is one of `answers`: the parent knows those rows.
        """
        self.steps = 0
        self.volatile = _CLOCK.asked = False
        self.sql = sql
        self.description = ()
        self.byte_count = 0
        self.statements = 0
        rows: list[tuple] = []
        row_count = 0
        status = "ok"
        message = ""
        name = b""
        cursor = self.connection.cursor()
        try:
            cursor.execute(sql)
            width = len(self.description)
            digest = hashlib.sha256(width.to_bytes(4, "big"))
            # So many at once that the longest cells pass the cap on bytes by one row at most.
            step = max(1, self.limits["byte_limit"] // (self.limits["length_limit_bytes"] * max(1, width)))
            while chunk := list(islice(cursor, step)):
                row_count += len(chunk)
                data = _row_bytes(chunk)
                self.byte_count += 16 * width * len(chunk) + len(data)
                if row_count > self.limits["row_limit"]:
                    raise _RowLimit(f"more than {self.limits['row_limit']} rows")
                if self.byte_count > self.limits["byte_limit"]:
                    raise _RowLimit(f"more than {self.limits['byte_limit']} bytes of cells")
                digest.update(data)
                if len(rows) < keep_rows:
                    rows += chunk[: keep_rows - len(rows)]
                if len(chunk) < step:
                    break
            name = digest.digest()
            if not self.statements:
                status = "sql_error"
            elif _CLOCK.asked:
                status, message = "volatile", VOLATILE
            elif name in answers:
                return name
        except _RowLimit as error:
            status, message = "rows_limit", str(error)
        except apsw.InterruptError:
            status, message = "timeout", f"more than {self.limits['vm_step_budget']} VM steps"
        except apsw.TooBigError as error:
            status, message = "memory", str(error)
        except (MemoryError, apsw.NoMemError):
            status, message = "memory", OUT_OF_MEMORY
        except apsw.ExecTraceAbort:
            status, message = "refused", "more than one statement"
            if self.volatile and self.statements == 1:
                status, message = "volatile", VOLATILE
        except (apsw.AuthError, apsw.ReadOnlyError) as error:
            status, message = "refused", str(error)
        except Exception as error:  # whatever apsw or the conversion of a value raises is the statement's own failure
            message = f"{error}"
            status = "refused" if message.startswith("not authorized to use function") else "sql_error"
        finally:
            try:
                cursor.close(True)
            except apsw.Error:
                pass  # closing repeats the error of the statement
        if status != "ok":
            rows = []
        columns = tuple(column for column, _ in self.description)
        return status, columns, rows, row_count, self.steps, message[:500], name

    def reverse(self, reverse: bool) -> None:
        """Lets SQLite visit unordered rows backwards: an answer that changes depends on what nobody asked for."""
        self._trusted(f"PRAGMA reverse_unordered_selects = {int(reverse)}")

    def describe(self, sample_size: int) -> tuple:
        """(DDL statements, tables with their columns, keys and up to `sample_size` distinct values of each column).

        Virtual tables are left out: generated databases could not have them. A column whose values cannot be read (no UTF-8,
        overlong) has no samples.
        """
        tables = []
        master = self._trusted(
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql IS NOT NULL"
            " AND type IN ('table', 'view') AND sql NOT LIKE 'CREATE VIRTUAL %' ORDER BY type, rowid"
        )
        for kind, name, _ in master:
            if kind != "table":
                continue
            quoted = '"' + name.replace('"', '""') + '"'
            columns = [
                (column, declared, bool(required), key)
                for _, column, declared, required, _, key in self._trusted(f"PRAGMA table_info({quoted})")
            ]
            foreign_keys = [(row[3], row[2], row[4]) for row in self._trusted(f"PRAGMA foreign_key_list({quoted})")]
            unique = []
            for row in self._trusted(f"PRAGMA index_list({quoted})"):
                if row[2] and not row[4]:  # an index over some of the rows makes nothing unique
                    index = row[1].replace('"', '""')
                    unique.append([entry[2] for entry in self._trusted(f'PRAGMA index_info("{index}")')])
            samples = {}
            for column, *_ in columns if sample_size else ():
                cell = '"' + column.replace('"', '""') + '"'
                query = f"SELECT DISTINCT {cell} FROM (SELECT {cell} FROM {quoted} LIMIT 2000) LIMIT {sample_size}"
                try:
                    samples[column] = [value for (value,) in self._trusted(query) if value is not None]
                except (UnicodeDecodeError, apsw.TooBigError):
                    samples[column] = []
            tables.append((name, columns, foreign_keys, unique, samples))
        return [sql for _, _, sql in master], tables

    def _trusted(self, sql: str) -> list[tuple]:
        self.steps = 0
        self.statements = 0
        self.volatile = False  # a query that was asked before says nothing of ours
        self.connection.authorizer = None
        try:
            return self.connection.execute(sql).fetchall()
        finally:
            self.connection.authorizer = self._authorize
