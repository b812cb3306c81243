"""A process that judges for another one: how it is started, asked and ended, and what it does: `python -m reward.child`.

Messages in both directions are pickles: the process is ours, and runs no SQL itself.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from reward.answering import Lost, answer_here

_PROJECT = Path(__file__).resolve().parent.parent


class _Ended(Exception):
    """The process ended before it had answered everything."""


class Child:
    """One process that answers questions, started again when it has died."""

    def __init__(self, arguments: dict):
        self.arguments = arguments
        self.process: subprocess.Popen | None = None
        self.killed = False
        self._asked = threading.Lock()  # two streams of one judge may be read in turns

    def ask(self, work: Callable[[object, list], list], bodies: list[bytes]) -> list[object]:
        """The answers to pickled questions, in order. Raises RuntimeError where the process does not start."""
        answers: list[object] = []
        with self._asked:
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
            [sys.executable, "-m", "reward.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_PROJECT
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
    main()
