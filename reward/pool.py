"""Spreads questions over processes and answers in the order of the questions; each process holds a judge with its own
sandbox and its own suites.

A process is started with `python -m reward.pool`, never by fork, and speaks pickles: it is ours, and runs no SQL
itself. One that dies is replaced and its questions are asked once more, each alone.
"""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_PROJECT = Path(__file__).resolve().parent.parent
_AHEAD_PER_WORKER = 96
_AHEAD_BYTES = 32 << 20
_LARGEST_BATCH = 32
_BATCH_S = (0.03, 0.15)  # a batch that took less is followed by a larger one, one that took more by a smaller
_REMEMBERED_PLACES = 4096


class Lost(NamedTuple):
    """In place of an answer: the question ended its process twice, or raised what is our own mistake."""

    detail: str


class _Ended(Exception):
    """The process ended before it had answered everything."""


class _Entry:
    """A question on its way: read, taken by a process, answered."""

    __slots__ = ("question", "body", "place", "answer", "done")

    def __init__(self, question: object, body: bytes, place: int):
        self.question = question
        self.body = body
        self.place = place
        self.answer: object = None
        self.done = False


class Each(NamedTuple):
    """The work of one question, as work of several."""

    answer: Callable[[object, object], object]

    def __call__(self, judge: object, questions: list) -> list:
        return [self.answer(judge, question) for question in questions]


def answer_here(work: Callable[[object, list], list], judge: object, questions: list) -> list:
    """`work(judge, questions)`; where it raises, each alone, and Lost for the one that brings it about."""
    try:
        return work(judge, questions)
    except Exception as error:  # a mistake of ours must not cost the thousands of questions after this one
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            raise  # the sandbox does not start: so it would for every question
        if len(questions) == 1:
            return [Lost(f"{type(error).__name__}: {error}"[:500])]
    return [answer for question in questions for answer in answer_here(work, judge, [question])]


def batches(questions: Iterable) -> Iterator[list]:
    """Lists of questions, longer while they are answered fast; what `questions` raises comes after those before it."""
    iterator = iter(questions)
    size = 1
    failure = None
    while failure is None:
        batch: list = []
        try:
            batch.extend(itertools.islice(iterator, size))
        except Exception as error:
            failure = error
        if batch:
            started = time.monotonic()
            yield batch
            size = _next_size(size, time.monotonic() - started)
        elif failure is None:
            return
    raise failure


def _next_size(size: int, took_s: float) -> int:
    size = min(2 * size, _LARGEST_BATCH) if took_s < _BATCH_S[0] else size
    return max(1, size // 2) if took_s > _BATCH_S[1] else size


class Pool:
    """`workers` processes, each with a `Judge(**arguments)`, that stay until `close`."""

    def __init__(self, arguments: dict, workers: int):
        self._children = [_Child(arguments) for _ in range(workers)]

    def close(self) -> None:
        """Ends the processes."""
        for child in self._children:
            child.close()

    def answer(
        self, work: Callable[[object, list], list], questions: Iterable, task: Callable[[object], dict]
    ) -> Iterator[tuple[object, object]]:
        """(question, its answer or Lost) in order. Questions are read only a little ahead, so memory stays flat.

        `work` is a function of a module, called in a process as work(judge, questions), or `Each` of one; `task` gives a question's task
        or row. Questions on one database or with one gold go to the process that has had it before, unless that would
        leave another idle. Raises RuntimeError where the processes do not start.
        """
        run = _Run(work, len(self._children))
        threads = [threading.Thread(target=run.serve, args=(child,), daemon=True) for child in self._children]
        for thread in threads:
            thread.start()
        finished = False
        try:
            for question in questions:
                run.add(_Entry(question, pickle.dumps(question), _place(task(question))))
                yield from run.collect(everything=False)
            run.end()
            yield from run.collect(everything=True)
            finished = True
        finally:
            run.end(discard=True)
            if not finished:
                for child in self._children:
                    child.kill()  # nothing that it was still to answer is wanted
            for thread in threads:
                thread.join()
            if not finished:
                self.close()


class _Run:
    """The questions of one call between the thread that reads them and those that feed the processes."""

    def __init__(self, work: Callable[[object, list], list], workers: int):
        self.work = work
        self.workers = workers
        self.changed = threading.Condition()
        self.waiting: deque[_Entry] = deque()  # not taken by any process yet
        self.ahead: deque[_Entry] = deque()  # read and not handed out, in order
        self.ahead_bytes = 0
        self.ended = False
        self.failure: Exception | None = None
        self.places: OrderedDict[int, _Child] = OrderedDict()

    def add(self, entry: _Entry) -> None:
        self.ahead.append(entry)
        self.ahead_bytes += len(entry.body)
        with self.changed:
            self.waiting.append(entry)
            self.changed.notify_all()

    def end(self, discard: bool = False) -> None:
        """No question follows; `discard`: those that wait are not wanted either."""
        with self.changed:
            self.ended = True
            if discard:
                self.waiting.clear()
            self.changed.notify_all()

    def collect(self, everything: bool) -> Iterator[tuple[object, object]]:
        """Hands out what is answered, first come first; waits while too much is read ahead, or for everything."""
        while self.ahead:
            entry = self.ahead[0]
            full = len(self.ahead) >= _AHEAD_PER_WORKER * self.workers or self.ahead_bytes > _AHEAD_BYTES
            if everything or full:
                with self.changed:
                    self.changed.wait_for(lambda: entry.done or self.failure is not None)
            if self.failure is not None:
                raise self.failure
            if not entry.done:
                return
            self.ahead.popleft()
            self.ahead_bytes -= len(entry.body)
            yield entry.question, entry.answer

    def serve(self, child: "_Child") -> None:
        """Feeds one process until no question is left."""
        size = 1
        try:
            while batch := self._take(child, size):
                started = time.monotonic()
                answers = child.ask(self.work, [entry.body for entry in batch])
                size = _next_size(size, time.monotonic() - started)
                with self.changed:
                    for entry, answer in zip(batch, answers, strict=True):
                        entry.answer, entry.done = answer, True
                    self.changed.notify_all()
        except Exception as error:
            with self.changed:
                self.failure = self.failure or error
                self.changed.notify_all()

    def _take(self, child: "_Child", size: int) -> list[_Entry]:
        """The oldest questions of this process's places, else of new places, else the oldest of all."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.ended)
            # Towards the end the rest is shared out evenly.
            size = max(1, min(size, len(self.waiting) // self.workers))
            owned = (entry for entry in self.waiting if self.places.get(entry.place) is child)
            batch = list(itertools.islice(owned, size))
            if not batch:
                new = (entry for entry in self.waiting if entry.place not in self.places)
                batch = list(itertools.islice(new, size)) or list(itertools.islice(self.waiting, size))
            for entry in batch:
                self.waiting.remove(entry)
                self.places[entry.place] = child
                self.places.move_to_end(entry.place)
            while len(self.places) > _REMEMBERED_PLACES:
                self.places.popitem(last=False)
            return batch


class _Child:
    """One process that answers questions, started again when it has died."""

    def __init__(self, arguments: dict):
        self.arguments = arguments
        self.process: subprocess.Popen | None = None
        self.killed = False

    def ask(self, work: Callable[[object, list], list], bodies: list[bytes]) -> list[object]:
        """The answers to pickled questions, in order. Raises RuntimeError where the process does not start."""
        answers: list[object] = []
        try:
            self._ask(work, bodies, answers)
        except _Ended:
            for body in bodies[len(answers) :]:
                try:
                    self._ask(work, [body], answers)
                except _Ended as error:
                    answers.append(Lost(f"its process ended twice, {error}; judge it alone to see why"))
        return answers

    def _ask(self, work: Callable[[object, list], list], bodies: list[bytes], answers: list[object]) -> None:
        if self.process is None:
            self._start()
        try:
            pickle.dump((work, bodies), self.process.stdin)
            self.process.stdin.flush()
            for _ in bodies:
                answer = pickle.load(self.process.stdout)
                if isinstance(answer, RuntimeError):
                    raise answer
                answers.append(answer)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise _Ended(self._cause()) from None

    def _start(self) -> None:
        if self.killed:
            raise RuntimeError("the pool is closed")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reward.pool"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_PROJECT
        )
        try:
            pickle.dump((os.getcwd(), self.arguments), self.process.stdin)
            self.process.stdin.flush()
            pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            cause = self._cause()
            raise RuntimeError(
                f"a judging process does not start ({cause}); it needs this Python with sqlglot and apsw, and about "
                "150 MiB of memory; read its own message above, and try workers=1"
            ) from None

    def _cause(self) -> str:
        process, self.process = self.process, None
        code = process.wait()
        process.stdout.close()
        try:
            process.stdin.close()
        except OSError:
            pass  # what was not yet written to a dead process
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Ends the process at once, from any thread; whoever waits for its answer sees it end."""
        self.killed = True
        if (process := self.process) is not None:
            process.kill()

    def close(self) -> None:
        """Lets the process end: it does at the end of its input, and its own worker with it."""
        if self.process is not None:
            try:
                self.process.stdin.close()
            except OSError:
                pass
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self._cause()
        self.killed = False


def _place(task: dict) -> int:
    """A number for what a process keeps of a task for later ones: a database file, or the suite of one gold."""
    database = task.get("database")
    return hash(database if database is not None else (task.get("context"), task.get("gold", task.get("answer"))))


def main() -> None:
    """Answers batches of questions from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the end of its input ends this process
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write into the stream of answers
    folder, arguments = pickle.load(source)
    os.chdir(folder)  # relative paths mean what they mean to whoever asks

    from reward.judge import Judge

    try:
        with Judge(**arguments) as judge:
            pickle.dump("ready", sink)
            sink.flush()
            while True:
                try:
                    work, bodies = pickle.load(source)
                except EOFError:
                    return
                try:
                    answers = answer_here(work, judge, [pickle.loads(body) for body in bodies])
                except RuntimeError as error:
                    answers = [error]
                for answer in answers:
                    pickle.dump(answer, sink)
                sink.flush()
    except BrokenPipeError:
        os._exit(1)  # whoever asked is gone, and with it every reader of a message


if __name__ == "__main__":
    # Under its own name: what is pickled here is to be found under that name there.
    from reward import pool

    pool.main()
