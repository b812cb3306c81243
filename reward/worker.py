"""The child process that runs SQL which nobody has read: `python -m reward.worker`, killable at any moment.

Messages in both directions are a length (4 bytes, big endian) and a marshal of a tuple. The parent's half is
`reward.sandbox`. Guards, from the outside in: resource limits of the process, a CPU timer that kills it even inside
one SQLite function, SQLite's heap limit, an authorizer that allows by list, lowered limits, a budget of VM steps,
caps on rows and bytes.
"""

import marshal
import os
import resource
import signal
import sys
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
# Reported and not run: their value is another one next time.
_VOLATILE = frozenset(
    "random randomblob current_date current_time current_timestamp last_insert_rowid changes total_changes"
    " sqlite_version sqlite_source_id".split()
)
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
_PROGRESS_STEPS = 1000


class _RowLimit(Exception):
    """A result passed the cap on rows or bytes."""


class Database:
    """One guarded connection: built from DDL and rows in memory, or a file that is opened read-only and immutable."""

    def __init__(self, limits: dict, path: str | None, ddl: list[str], rows: list[tuple[str, int, list[tuple]]]):
        self.limits = limits
        self.steps = 0
        self.volatile = False
        self.sql = ""
        self.columns: tuple[str, ...] = ()
        self.statements = 0
        if path is None:
            self.connection = apsw.Connection(":memory:", statementcachesize=0)
        else:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            uri = f"file:{quote(path)}?mode=ro&immutable=1"
            self.connection = apsw.Connection(uri, flags=flags, statementcachesize=0)
        self._lower_limits()
        self.connection.set_progress_handler(self._count_steps, _PROGRESS_STEPS)
        self.connection.execute("PRAGMA temp_store = MEMORY; PRAGMA mmap_size = 0; PRAGMA trusted_schema = 0")
        if path is None:
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
        self.columns = tuple(name for name, _ in cursor.get_description())
        self.statements += 1
        return self.statements == 1 and not self.volatile

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in (apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE):
            return apsw.SQLITE_OK
        if action == apsw.SQLITE_READ:
            name = (first or "").lower()
            # A common table expression of which no column is read comes with the column "".
            unread = second == "" and name not in self.modules and not name.startswith(("sqlite_", "pragma_"))
            if name in self.tables or unread or name in ("json_each", "json_tree"):
                return apsw.SQLITE_OK
        if action == apsw.SQLITE_FUNCTION:
            name = (second or "").lower()
            if name in _VOLATILE:
                # A column's DEFAULT CURRENT_TIMESTAMP comes by here too, and no query reads it.
                self.volatile |= name in self.sql
                return apsw.SQLITE_OK
            if name in _FUNCTIONS:
                return apsw.SQLITE_OK
        return apsw.SQLITE_DENY

    def run(self, sql: str, keep_rows: int) -> tuple:
        """(status, columns, rows, row count, VM steps, message) of one statement; keeps `keep_rows` rows."""
        self.steps = 0
        self.volatile = False
        self.sql = sql.lower()
        self.columns = ()
        self.statements = 0
        rows: list[tuple] = []
        row_count = byte_count = 0
        cursor = self.connection.cursor()
        message = ""
        try:
            for row in cursor.execute(sql):
                row_count += 1
                byte_count += 16 * len(row) + sum(len(cell) for cell in row if cell.__class__ in (str, bytes))
                if row_count > self.limits["row_limit"] or byte_count > self.limits["byte_limit"]:
                    raise _RowLimit(f"more than {row_count - 1} rows or {byte_count} bytes")
                if row_count <= keep_rows:
                    rows.append(row)
            status = "ok" if self.statements else "sql_error"
        except _RowLimit as error:
            status, message = "rows_limit", str(error)
        except apsw.InterruptError:
            status, message = "timeout", f"more than {self.limits['vm_step_budget']} VM steps"
        except (MemoryError, apsw.NoMemError, apsw.TooBigError) as error:
            status, message = "memory", str(error) or "out of memory"
        except apsw.ExecTraceAbort:
            status, message = "refused", "more than one statement"
            if self.volatile and self.statements == 1:
                status, message = "volatile", "its answer depends on chance or on the clock"
        except (apsw.AuthError, apsw.ReadOnlyError) as error:
            status, message = "refused", str(error)
        except Exception as error:  # whatever apsw or the conversion of a value raises is the statement's own failure
            status, message = "sql_error", f"{error}"
        finally:
            try:
                cursor.close(True)
            except apsw.Error:
                pass  # closing repeats the error of the statement
        if status != "ok":
            rows = []
        return status, self.columns, rows, row_count, self.steps, message[:500]

    def reverse(self, reverse: bool) -> None:
        """Lets SQLite visit unordered rows backwards: an answer that changes depends on what nobody asked for."""
        self._trusted(f"PRAGMA reverse_unordered_selects = {int(reverse)}")

    def describe(self, sample_size: int) -> tuple:
        """(DDL statements, tables with their columns, keys and up to `sample_size` distinct values of each column)."""
        tables = []
        master = self._trusted(
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql IS NOT NULL"
            " AND type IN ('table', 'view') ORDER BY type, rowid"
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
                if row[2]:
                    index = row[1].replace('"', '""')
                    unique.append([entry[2] for entry in self._trusted(f'PRAGMA index_info("{index}")')])
            samples = {}
            for column, *_ in columns if sample_size else ():
                cell = '"' + column.replace('"', '""') + '"'
                query = f"SELECT DISTINCT {cell} FROM (SELECT {cell} FROM {quoted} LIMIT 2000) LIMIT {sample_size}"
                samples[column] = [value for (value,) in self._trusted(query) if value is not None]
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


def _confine(limits: dict) -> None:
    """Limits of the whole process; none of them can be raised again."""
    for kind, value in (
        (resource.RLIMIT_AS, limits["process_limit_mib"] << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    apsw.hard_heap_limit(limits["heap_limit_mib"] << 20)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _serve(receive, send) -> None:
    limits = receive()
    _confine(limits)
    send((True, "ready"))
    databases: dict[str, Database] = {}
    while (request := receive()) is not None:
        operation, key, *arguments = request
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_limit_s"])
        if operation == "open":
            try:
                databases[key] = Database(limits, *arguments)
                send((True, ""))
            except Exception as error:  # a schema that does not load, a file that is no database: told, not raised
                send((False, f"{error}" or type(error).__name__))
        elif operation == "close":
            databases.pop(key).connection.close(True)
        elif operation == "describe":
            try:
                send((True, databases[key].describe(*arguments)))
            except Exception as error:  # a damaged file shows only now
                send((False, f"{error}" or type(error).__name__))
        elif operation == "run":
            statements, keep_rows, reverse = arguments
            database = databases[key]
            if reverse:
                database.reverse(True)
            for sql in statements:
                signal.setitimer(signal.ITIMER_PROF, limits["cpu_limit_s"])
                send(database.run(sql, keep_rows))
            if reverse:
                database.reverse(False)
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Nothing else may write into the stream of messages.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def receive() -> tuple | dict | None:
        header = source.read(4)
        return marshal.loads(source.read(int.from_bytes(header, "big"))) if len(header) == 4 else None

    def send(message: tuple) -> None:
        body = marshal.dumps(message)
        sink.write(len(body).to_bytes(4, "big") + body)
        sink.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _serve(receive, send)


if __name__ == "__main__":
    main()
