"""Spreads questions over processes, answers in the order of the questions; each process holds a judge with its own
worker.

A child is started with `python -m reward.pool`, never by fork, and speaks JSON lines. A child that dies is replaced
and its question asked once more.
"""

import json
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent
_AHEAD_PER_WORKER = 8


class _Child:
    """One process that answers questions, started again when it has died."""

    def __init__(self, kind: str, arguments: dict):
        self.greeting = json.dumps({"kind": kind, "arguments": arguments})
        self.process: subprocess.Popen | None = None

    def ask(self, question: dict) -> dict:
        line = json.dumps(question)
        for _ in range(2):
            if self.process is None:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "reward.pool"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    cwd=_PROJECT,
                )
                line_start = self.greeting + "\n"
            else:
                line_start = ""
            try:
                self.process.stdin.write(line_start + line + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            except OSError:
                answer = ""
            if answer.endswith("\n"):
                return json.loads(answer)
            self.close()
        raise RuntimeError(f"judging question {question.get('id')!r} ended its process twice; run it alone to see why")

    def close(self) -> None:
        if self.process is not None:
            try:
                self.process.stdin.close()  # the child ends at the end of its input, and its own worker with it
            except OSError:
                pass
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self.process = None


def map_in_processes(kind: str, arguments: dict, questions: Iterable[dict], workers: int) -> Iterator[dict]:
    """Answers in the order of `questions`, read only a little ahead, so memory stays flat. `kind`: judge or audit."""
    children = [_Child(kind, arguments) for _ in range(workers)]
    free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for child in children:
        free.put(child)

    def ask(question: dict) -> dict:
        child = free.get()
        try:
            return child.ask(question)
        finally:
            free.put(child)

    pending: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for question in questions:
                pending.append(threads.submit(ask, question))
                if len(pending) >= workers * _AHEAD_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            for child in children:
                child.close()


def with_progress(lines: Iterator[dict], questions: Iterable[dict], label: str, progress: bool) -> Iterator[dict]:
    """The lines themselves, with a progress bar on standard error where wanted."""
    if not progress:
        return lines
    from tqdm import tqdm

    return tqdm(lines, total=len(questions) if hasattr(questions, "__len__") else None, desc=label, unit="question")


def main() -> None:
    from reward.audit import audit_example
    from reward.judge import Judge

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the end of its input ends this process
    greeting = json.loads(sys.stdin.readline())
    with Judge(**greeting["arguments"]) as judge:
        for line in sys.stdin:
            question = json.loads(line)
            answer = judge.question(question) if greeting["kind"] == "judge" else audit_example(judge, question)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
