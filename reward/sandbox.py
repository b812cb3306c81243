"""The parent's half of the sandbox: one worker process, started, fed, watched, killed and started again."""

import contextlib
import marshal
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from reward.connection import OUT_OF_MEMORY
from reward.worker import NOT_BEGUN

_PROJECT = Path(__file__).resolve().parent.parent
_OPEN_DATABASES = 160  # each open file costs the worker a descriptor, of which it has 256


class Database(NamedTuple):
    """A database to run on. `key` names its content; `path` is a file, else it is made of `ddl` and `rows`.

    `tier`: given, tidy or near. `rows`: (table, number of columns, row tuples) for each table.
    """

    key: str
    name: str
    tier: str
    path: str | None = None
    ddl: tuple[str, ...] = ()
    rows: tuple[tuple[str, int, list[tuple]], ...] = ()


class Job(NamedTuple):
    """Statements for one database, of which each outcome keeps at most `keep_rows` rows.

    `reverse`: visit unordered rows backwards. `answers`: fingerprints of results that need not be sent.
    """

    database: Database
    statements: list[str]
    keep_rows: int
    reverse: bool = False
    answers: frozenset[bytes] = frozenset()


class Outcome(NamedTuple):
    """What one statement did.

    `status`: ok, refused, sql_error, timeout, memory, rows_limit, volatile (not run), lost (the worker died twice), or
    same: ok with rows that the caller knows by their `fingerprint`, so that they and their columns are not sent.
    `rows` holds at most the number asked for, `row_count` all of them.
    """

    status: str
    columns: tuple[str, ...] = ()
    rows: list[tuple] = []
    row_count: int = 0
    steps: int = 0
    message: str = ""
    fingerprint: bytes = b""


class DatabaseError(ValueError):
    """A schema does not load or a file is no SQLite database."""


class WorkerLost(Exception):
    """The worker process ended or fell silent while it was needed."""


class Sandbox:
    """Runs statements in a worker process; a statement that kills or hangs the worker costs only itself.

    vm_step_budget decides timeouts, so load changes no verdict; cpu_limit_s and wall_limit_s only stop what the
    budget cannot see (one endless SQLite function, a stopped process). Limits with `mib` are in 2**20 bytes.
    """

    def __init__(
        self,
        *,
        vm_step_budget: int = 20_000_000,
        heap_limit_mib: int = 96,
        process_limit_mib: int = 240,
        row_limit: int = 100_000,
        byte_limit_mib: int = 16,
        length_limit_bytes: int = 150_000,
        cpu_limit_s: float = 6.0,
        wall_limit_s: float = 60.0,
    ):
        self.limits = {
            "vm_step_budget": vm_step_budget,
            "heap_limit_mib": heap_limit_mib,
            "process_limit_mib": process_limit_mib,
            "row_limit": row_limit,
            "byte_limit": byte_limit_mib << 20,
            "length_limit_bytes": length_limit_bytes,
            "cpu_limit_s": cpu_limit_s,
        }
        self.wall_limit_s = wall_limit_s
        self.process: subprocess.Popen | None = None
        self.restarts = 0
        self._open: OrderedDict[str, None] = OrderedDict()
        self._buffer = bytearray()
        self._at_work = memoryview(b"")

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; the next call would start another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(OSError):  # what was not yet written to a dead worker
                self.process.stdin.close()
            self.process.stdout.close()
            self.process = None
        self._open.clear()
        self._buffer.clear()

    def run(self, database: Database, statements: list[str], keep_rows: int, reverse: bool = False) -> list[Outcome]:
        """One outcome a statement, in order. Raises DatabaseError where the database itself cannot be opened.

        reverse: visit unordered rows backwards.
        """
        return self.run_jobs([Job(database, statements, keep_rows, reverse)])[0]

    def run_jobs(self, jobs: list[Job]) -> list[list[Outcome]]:
        """The outcomes of each job, in order; the jobs of up to 100 databases cost one message each way."""
        with self._whole_exchange():
            outcomes = self._run_all(jobs)
            for index, outcome in enumerate(outcomes):
                if outcome.status == "memory" and outcome.message == OUT_OF_MEMORY:
                    # What else the worker held must not decide: once more in a new one.
                    self.close()
                    [outcomes[index]] = self._run_all(_part(jobs, index, index + 1))
        rest = iter(outcomes)
        return [list(islice(rest, len(job.statements))) for job in jobs]

    def describe(self, database: Database, sample_size: int = 0) -> tuple:
        """The DDL and tables of a database as `reward.connection.Database.describe` gives them."""
        with self._whole_exchange():
            for attempt in (1, 2):
                try:
                    self._ensure_open(database)
                    self._send(("describe", (database.key, sample_size)))
                    fine, answer = self._receive()
                    break
                except WorkerLost as error:
                    self.close()
                    self.restarts += 1
                    if attempt == 2:
                        raise DatabaseError(f"reading the schema ended the worker twice: {error}") from None
        if not fine:
            raise DatabaseError(answer)
        return answer

    @contextlib.contextmanager
    def _whole_exchange(self) -> Iterator[None]:
        """Ends a worker whose answers are not waited for any more (Ctrl-C, an alarm): the next statements would get
        them.
        """
        try:
            yield
        except DatabaseError:
            raise
        except BaseException:
            self.close()
            raise

    def _run_all(self, jobs: list[Job]) -> list[Outcome]:
        """All outcomes, one after the other. A statement at which the worker was lost is run alone the second time."""
        outcomes: list[Outcome] = []
        count = sum(len(job.statements) for job in jobs)
        same: dict[bytes, Outcome] = {}
        suspect = -1
        while (start := len(outcomes)) < count:
            end = start + 1 if suspect == start else suspect if suspect > start else count
            part = _part(jobs, start, end)
            try:
                for job in part:
                    self._ensure_open(job.database)
                self._send(("run", [(job.database.key, *job[1:]) for job in part]))
                while len(outcomes) < end:
                    for answer in self._receive():
                        if answer.__class__ is not bytes:
                            outcomes.append(Outcome._make(answer))
                            continue
                        if answer not in same:
                            same[answer] = Outcome("same", fingerprint=answer)
                        outcomes.append(same[answer])
            except WorkerLost as error:
                at_work = self._at_work[0]
                self.close()
                self.restarts += 1
                if suspect == start == end - 1:
                    outcomes.append(Outcome("lost", message=str(error)))
                else:
                    suspect = len(outcomes) if at_work == NOT_BEGUN else start + at_work
        return outcomes

    def _ensure_open(self, database: Database) -> None:
        if self.process is None:
            self._start()
        if database.key in self._open:
            self._open.move_to_end(database.key)
            return
        while len(self._open) >= _OPEN_DATABASES:
            key, _ = self._open.popitem(last=False)
            self._send(("close", (key,)))
        self._send(("open", (database.key, database.path, list(database.ddl), list(database.rows))))
        fine, message = self._receive()
        if not fine:
            raise DatabaseError(message)
        self._open[database.key] = None

    def _start(self) -> None:
        # The worker writes here which statement of a batch it runs: no message is needed, and its death leaves it.
        with tempfile.TemporaryFile() as progress_file:
            progress_file.write(NOT_BEGUN.to_bytes(4, sys.byteorder))
            progress_file.flush()
            progress_descriptor = progress_file.fileno()
            self._at_work = memoryview(mmap.mmap(progress_descriptor, 4)).cast("I")
            # A new interpreter, never a fork: the parent may hold threads, CUDA and gigabytes.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reward.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=_PROJECT,
                pass_fds=[progress_descriptor],
            )
        try:
            self._send((self.limits, progress_descriptor))
            self._receive()
        except WorkerLost as error:
            self.close()
            raise RuntimeError(
                f"the SQL worker does not start ({error}); it needs apsw and {self.limits['process_limit_mib']} MiB of "
                "address space; run `python -m reward.worker < /dev/null` to see why"
            ) from None

    def _send(self, message: object) -> None:
        body = marshal.dumps(message)
        try:
            self.process.stdin.write(len(body).to_bytes(4, "big") + body)
            self.process.stdin.flush()
        except OSError:
            raise WorkerLost(self._cause()) from None

    def _receive(self) -> tuple | list:
        self._fill(4)
        size = 4 + int.from_bytes(self._buffer[:4], "big")
        self._fill(size)
        with memoryview(self._buffer) as view:
            message = marshal.loads(view[4:size])
        del self._buffer[:size]
        return message

    def _fill(self, size: int) -> None:
        """Reads until the buffer holds `size` bytes. Raises WorkerLost when the worker ends, or neither answers nor
        gets on with its batch.
        """
        descriptor = self.process.stdout.fileno()
        seen = self._at_work[0]
        while len(self._buffer) < size:
            ready, _, _ = select.select([descriptor], [], [], self.wall_limit_s)
            if ready:
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    raise WorkerLost(self._cause())
                self._buffer += chunk
            elif self._at_work[0] != seen:
                seen = self._at_work[0]
            else:
                raise WorkerLost(f"timeout: no answer within {self.wall_limit_s:g} s")

    def _cause(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGPROF:
            return f"timeout: {self.limits['cpu_limit_s']:g} s of CPU inside one SQLite function"
        return f"worker: ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _part(jobs: list[Job], start: int, end: int) -> list[Job]:
    """The statements `start` to `end`, counted through all jobs."""
    part = []
    first = 0
    for job in jobs:
        last = first + len(job.statements)
        if first < end and last > start:
            part.append(job._replace(statements=job.statements[max(0, start - first) : end - first]))
        first = last
    return part
