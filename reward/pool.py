"""Spreads questions over processes and answers in the order of the questions; each process holds a judge with its own
sandbox and its own suites.
"""

import itertools
import pickle
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

from reward.child import Child

_AHEAD_PER_WORKER = 96
_AHEAD_BYTES = 32 << 20
_LARGEST_BATCH = 32
_BATCH_S = (0.03, 0.15)  # a batch that took less is followed by a larger one, one that took more by a smaller
_REMEMBERED_PLACES = 4096


class _Entry:
    """A question on its way: read, taken by a process, answered."""

    __slots__ = ("question", "body", "place", "answer", "done")

    def __init__(self, question: object, body: bytes, place: int):
        self.question = question
        self.body = body
        self.place = place
        self.answer: object = None
        self.done = False


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
        self._children = [Child(arguments) for _ in range(workers)]

    def close(self) -> None:
        """Ends the processes."""
        for child in self._children:
            child.close()

    def answer(
        self, work: Callable[[object, list], list], questions: Iterable, task: Callable[[object], dict]
    ) -> Iterator[tuple[object, object]]:
        """(question, its answer or Lost) in order. Questions are read only a little ahead, so memory stays flat.

        `work` is a function of a module, called in a process as work(judge, questions), or `Each` of one; `task` gives
        a question's task or row. Questions on one database or with one gold go to the process that has had it before,
        unless that would leave another idle. Raises RuntimeError where the processes do not start.
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
        self.places: OrderedDict[int, Child] = OrderedDict()

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

    def serve(self, child: "Child") -> None:
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

    def _take(self, child: "Child", size: int) -> list[_Entry]:
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


def _place(task: dict) -> int:
    """A number for what a process keeps of a task for later ones: a database file, or the suite of one gold."""
    database = task.get("database")
    return hash(database if database is not None else (task.get("context"), task.get("gold", task.get("answer"))))
