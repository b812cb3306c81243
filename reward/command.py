"""The command lines of the judge and the audit: JSON lines in and out, bad lines told and passed over, resumable.

Beside the output stands a file `.run`: the fingerprint of input, settings and code, and the numbers of the bad lines.
With it a run that was killed goes on after the last whole line, even where a database has vanished since.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from reward.json_lines import numbered_lines, parsed, survey, whole_lines

Question = tuple[int, dict]
"""A line's number, from 1, and its task or row."""

_DATABASES = ("both", "given", "generated")
_AFTERWARDS = """\
Lines are read and written one by one, in order. A line that is no task is told on standard error with its number and
reason and has no line in the output; blank lines are passed over. An interrupted run goes on with the same command;
OUTPUT.run beside the output says which run that is. A relative path of a database is looked for from the current
folder, then beside the input. Suites of databases are kept in a cache, and read instead of made where they are there.

exit status: 0 all lines are done, bad ones told; 1 stopped by an error; 2 wrong usage; 130 interrupted"""


def main_judge(arguments: list[str] | None = None) -> int:
    """`python -m reward.judge`; returns the exit status."""
    parser = _parser(
        "python -m reward.judge",
        "Judge SQL candidates against gold: correct, wrong or unclear, each with a reason and a trace.",
        "tasks: id, gold, candidates, and database or context",
        "verdicts, in the same order",
    )
    parser.add_argument("--databases", choices=_DATABASES, default="both", help="default: both")
    options = parser.parse_args(arguments)
    run = _Run(parser, options, "judge", {"databases": options.databases, "seed": options.seed})

    from reward.judge import Judge
    from reward.task import checked_task

    def answer(questions: Iterator[Question]) -> Iterator[tuple[Question, str]]:
        settings = {"databases": options.databases, "seed": options.seed}
        with Judge(workers=options.workers, cache=options.cache, **settings) as judge:
            yield from judge.answers(judge_texts, questions, _task)

    return run.go(checked_task, answer, lost_verdict)


def main_audit(arguments: list[str] | None = None) -> int:
    """`python -m reward.audit`; returns the exit status."""
    parser = _parser(
        "python -m reward.audit",
        "Audit the gold SQL of a data set; ends with a table of what is bad, why, and what to do.",
        "rows: gold or answer (SQL or null), and context or database",
        "one audit line for each row, in the same order",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write bad gold as CSV too, sorted by reason")
    options = parser.parse_args(arguments)
    run = _Run(parser, options, "audit", {"seed": options.seed})

    from reward.audit import checked_example
    from reward.audit_table import AuditTable
    from reward.judge import Judge
    from reward.answering import Each

    def answer(questions: Iterator[Question]) -> Iterator[tuple[Question, str]]:
        with Judge(workers=options.workers, seed=options.seed, cache=options.cache) as judge:
            yield from judge.answers(Each(audit_text), questions, _task)

    if status := run.go(checked_example, answer, lost_audit):
        return status
    table = AuditTable(options.output)
    print(table.text(shutil.get_terminal_size((110, 24)).columns))
    if options.table:
        try:
            count = table.write_csv(options.table)
        except OSError as error:
            return _stop(f"{options.table} cannot be written ({error.strerror}); choose another place and run it again")
        print(f"{count} bad rows are in {options.table}", file=sys.stderr)
    return 0


def judge_texts(judge: object, questions: list[Question]) -> list[str]:
    """The output lines of tasks."""
    return [json.dumps(line) for line in judge.questions([task for _, task in questions])]


def audit_text(judge: object, question: Question) -> str:
    """The output line of one row: what names it, its gold and what the audit found."""
    from reward.audit import audit_example

    return _audit_text(question, audit_example(judge, question[1]))


def lost_verdict(question: Question, detail: str) -> str:
    """The output line of a task that the judge itself failed at."""
    from reward.verdicts import lost_line

    return json.dumps(lost_line(question[1], detail))


def lost_audit(question: Question, detail: str) -> str:
    """The output line of a row that the judge itself failed at."""
    from reward.audit import lost_line

    return _audit_text(question, lost_line(detail))


def _audit_text(question: Question, found: dict) -> str:
    number, row = question
    names = {key: row[key] for key in ("id", "example_id", "question") if key in row}
    return json.dumps({"line": number, **names, "gold": row["gold"] if "gold" in row else row["answer"], **found})


def _task(question: Question) -> dict:
    return question[1]


def _parser(program: str, description: str, reads: str, writes: str) -> argparse.ArgumentParser:
    # Until there is something to tell of, Ctrl-C ends the command without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=_AFTERWARDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help=f"JSON lines, plain or .gz, of {reads}"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=f"JSON lines of {writes}")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the generated databases (default: 0)")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        metavar="FOLDER",
        default=...,
        help="where suites are kept (default: $TEXT_TO_SQL_CACHE, else ~/.cache/text-to-sql-preference)",
    )
    cache.add_argument("--no-cache", dest="cache", action="store_const", const=None, help="keep and read no suites")
    return parser


class _Run:
    """One run of a command: its input, surveyed; its output, locked and cut to whole lines; where it goes on."""

    def __init__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, label: str, settings: dict):
        if options.workers < 1:
            parser.error(f"--workers is {options.workers}; allowed is 1 or more")
        if not options.input.is_file():
            parser.error(f"--input {options.input} is no file; give a file of JSON lines")
        if options.output.exists() and options.output.samefile(options.input):
            parser.error(f"--output {options.output} is the input too; choose another file")
        self.input, self.output, self.label = options.input, options.output, label
        self.mark = self.output.with_name(self.output.name + ".run")
        from reward.cache import default_folder, source_hash

        options.cache = default_folder() if options.cache is ... else options.cache
        try:
            self.lines, digest = survey(self.input)
            text = json.dumps([label, digest, settings, source_hash()])
            self.file = self._open_output(hashlib.sha256(text.encode()).hexdigest())
        except ValueError as error:
            parser.error(str(error))

    def go(
        self,
        check: Callable[[dict], dict],
        answer: Callable[[Iterator[Question]], Iterable[tuple[Question, object]]],
        lost: Callable[[Question, str], str],
    ) -> int:
        """Answers what is not answered yet and returns the exit status."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from tqdm import tqdm

        from reward.answering import Lost
        from reward.progress import refresh_interval_s

        # A warning is for whoever runs the command: without the place in the code that it came from.
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        if self.done:
            print(f"{self.output} already holds {self.done} lines; going on after them", file=sys.stderr)
        self.bar = tqdm(
            total=self.lines,
            initial=self.position,
            desc=self.label,
            unit="line",
            mininterval=refresh_interval_s(),
            dynamic_ncols=True,
        )
        try:
            with self.bar, self.file, self.mark.open("a") as self.mark_file:
                for question, line in answer(self._questions(check)):
                    line = lost(question, line.detail) if isinstance(line, Lost) else line
                    self.file.write(line.encode() + b"\n")
                    self.file.flush()
                    self.done += 1
                    self.bar.update(question[0] - self.bar.n)
                self.bar.update(self.lines - self.bar.n)
        except KeyboardInterrupt:
            return _stop(f"interrupted; {self.done} lines are in {self.output}; the same command goes on", status=130)
        except (OSError, RuntimeError) as error:
            return _stop(f"stopped: {error}; {self.done} lines are in {self.output}; the same command goes on")
        print(
            f"{self.done + len(self.bad)} lines read, {len(self.bad)} bad; {self.done} are in {self.output}",
            file=sys.stderr,
        )
        return 0

    def _questions(self, check: Callable[[dict], dict]) -> Iterator[Question]:
        """The good lines after those that are answered; tells the others, and keeps their numbers."""
        folder = os.path.dirname(os.path.abspath(self.input))
        for number, line in numbered_lines(self.input):
            if number <= self.position:
                continue
            try:
                task = check(_placed(parsed(line), folder))
            except ValueError as error:
                # Written before any later answer, so that a run that goes on counts the same lines.
                self.mark_file.write(f"bad {number}\n")
                self.mark_file.flush()
                self.bad.add(number)
                self.bar.write(f"{self.input}, line {number}: {error}", file=sys.stderr)
                continue
            yield number, task

    def _open_output(self, fingerprint: str):
        """The output to write on, with `done`, `position` and `bad` of what it holds. Raises ValueError."""
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            file = open(os.open(self.output, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--output {self.output} is being written by another run; wait for it") from None
        except OSError as error:
            raise ValueError(f"--output {self.output} cannot be written ({error.strerror}); choose another") from None
        text = self.mark.read_text() if self.mark.exists() else ""
        kept = text[: text.rfind("\n") + 1].splitlines()
        if os.fstat(file.fileno()).st_size and kept[:1] != [fingerprint]:
            raise ValueError(
                f"--output {self.output} holds lines of another input, other settings or another version; only the "
                "same run can go on; choose another file or delete it"
            )
        self.done = whole_lines(file)
        bad = {int(line.removeprefix("bad ")) for line in kept[1:] if line.removeprefix("bad ").isdigit()}
        self.position = self._position(bad) if self.done else 0
        # Lines after the position are read again, and may be good now.
        self.bad = {number for number in bad if number <= self.position}
        temporary = self.mark.with_name(self.mark.name + ".part")
        temporary.write_text("\n".join([fingerprint, *(f"bad {number}" for number in sorted(self.bad)), ""]))
        temporary.replace(self.mark)
        return file

    def _position(self, bad: set[int]) -> int:
        """The number of the line that the output's last one answers."""
        good = (number for number, _ in numbered_lines(self.input) if number not in bad)
        for answered, number in enumerate(good, start=1):
            if answered == self.done:
                return number
        raise ValueError(f"--output {self.output} holds more lines than --input {self.input} has; delete it")


def _placed(task: object, folder: str) -> object:
    """The task, with a relative database path that is not found from here made one beside the file that names it."""
    database = task.get("database") if isinstance(task, dict) else None
    if isinstance(database, str) and not os.path.isfile(database):
        beside = os.path.join(folder, database)
        if os.path.isfile(beside):
            return {**task, "database": beside}
    return task


def _stop(message: str, status: int = 1) -> int:
    print(message, file=sys.stderr)
    return status
