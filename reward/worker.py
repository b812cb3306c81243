"""The child process that runs SQL which nobody has read: `python -m reward.worker`, killable at any moment.

Messages in both directions are a length (4 bytes, big endian) and a marshal of a tuple or list. The parent's half is
`reward.sandbox`. Guards, from the outside in:

- before the worker: the text gate (`reward.gate`), and the parent's watchdog over a worker that falls silent;
- limits of the process: address space, files written 0 bytes, open files, no core; a CPU timer set anew for every
  statement, which kills the worker even inside one SQLite function;
- SQLite's heap limit; an authorizer that allows by list; lowered limits (no ATTACH, length, depth, columns, operations);
- files opened read-only and immutable; query_only, DEFENSIVE, untrusted schema, no extensions, no triggers, no mmap,
  temporary storage in memory; double-quoted text is never a string; one statement;
- a budget of VM steps, so that load changes no verdict; caps on rows and bytes.
"""

import gc
import marshal
import mmap
import os
import resource
import signal
import sys

import apsw

from reward.connection import Database

NOT_BEGUN = 0xFFFFFFFF
_MESSAGE_BYTES = 1 << 20  # outcomes are sent together until their rows pass this


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
    if (greeting := receive()) is None:
        return
    limits, progress_descriptor = greeting
    at_work = memoryview(mmap.mmap(progress_descriptor, 4)).cast("I")
    _confine(limits)
    # A collection amid thousands of rows would look at all of them.
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)
    send((True, "ready"))
    databases: dict[str, Database] = {}
    while (request := receive()) is not None:
        operation, arguments = request
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_limit_s"])
        if operation == "run":
            _run(databases, arguments, limits["cpu_limit_s"], at_work, send)
        elif operation == "open":
            try:
                _make_room(databases, limits)
                key, *content = arguments
                databases[key] = Database(limits, *content)
                send((True, ""))
            except Exception as error:  # a schema that does not load, a file that is no database: told, not raised
                send((False, f"{error}" or type(error).__name__))
        elif operation == "close":
            databases.pop(*arguments).connection.close(True)
        elif operation == "describe":
            try:
                key, sample_size = arguments
                send((True, databases[key].describe(sample_size)))
            except Exception as error:  # a damaged file shows only now
                send((False, f"{error}" or type(error).__name__))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _run(databases: dict[str, Database], jobs: list[tuple], cpu_limit_s: float, at_work: memoryview, send) -> None:
    """Sends lists of outcomes; `at_work` holds the number of the statement that runs, for the parent of a dead worker."""
    outcomes: list[tuple | bytes] = []
    waiting_bytes = 0
    number = 0
    for key, statements, keep_rows, reverse, answers in jobs:
        database = databases[key]
        if reverse:
            database.reverse(True)
        for sql in statements:
            at_work[0] = number
            number += 1
            signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
            outcomes.append(database.run(sql, keep_rows, answers))
            waiting_bytes += database.byte_count
            if waiting_bytes > _MESSAGE_BYTES:
                send(outcomes)
                outcomes = []
                waiting_bytes = 0
        if reverse:
            database.reverse(False)
    at_work[0] = NOT_BEGUN
    if outcomes:
        send(outcomes)


def _make_room(databases: dict[str, Database], limits: dict) -> None:
    """Empties the page caches of all open databases when they hold much of what one statement may need."""
    if apsw.memory_used() > limits["heap_limit_mib"] << 18:
        for database in databases.values():
            database.connection.release_memory()


def main() -> None:
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Nothing else may write into the stream of messages.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def receive() -> tuple | list | None:
        header = source.read(4)
        return marshal.loads(source.read(int.from_bytes(header, "big"))) if len(header) == 4 else None

    def send(message: tuple | list) -> None:
        body = marshal.dumps(message)
        sink.write(len(body).to_bytes(4, "big"))
        sink.write(body)
        sink.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _serve(receive, send)


if __name__ == "__main__":
    main()
