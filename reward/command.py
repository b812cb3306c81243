"""The command lines of the judge and the audit: JSON lines in and out, bad lines told and passed over, resumable."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def main_judge(arguments: list[str] | None = None) -> None:
    """`python -m reward.judge`."""
    from reward.judge import DATABASES, Judge, checked_task

    parser = argparse.ArgumentParser(prog="python -m reward.judge", description="Judge SQL candidates against gold.")
    _add_files(parser, "tasks: id, gold, candidates, and database or context", "verdicts, in the same order")
    parser.add_argument("--databases", choices=DATABASES, default="both", help="default: both")
    _add_run(parser)
    options = parser.parse_args(arguments)
    folder = options.input.resolve().parent

    def read(task: dict) -> dict:
        # A relative path is found from here, else beside the file that names it.
        database = task.get("database") if isinstance(task, dict) else None
        if isinstance(database, str) and not os.path.isfile(database) and (folder / database).is_file():
            task = {**task, "database": str(folder / database)}
        return checked_task(task)

    def judge(tasks: list[dict]) -> Iterator[dict]:
        with Judge(databases=options.databases, workers=options.workers, seed=options.seed) as judge:
            yield from judge.stream(tasks, progress=True)

    settings = {"databases": options.databases, "seed": options.seed}
    _run(parser, options, settings, read, judge)


def main_audit(arguments: list[str] | None = None) -> None:
    """`python -m reward.audit`."""
    from reward.audit import audit

    parser = argparse.ArgumentParser(prog="python -m reward.audit", description="Audit the gold SQL of a data set.")
    _add_files(parser, "rows: gold or answer, and context or database", "one audit line for each row")
    _add_run(parser)
    options = parser.parse_args(arguments)

    def read(row: dict) -> dict:
        if not isinstance(row, dict) or not {"gold", "answer"} & row.keys():
            raise ValueError("the row has neither gold nor answer; one is needed, SQL text or null; add it")
        gold = row["gold"] if "gold" in row else row["answer"]
        if gold is not None and not isinstance(gold, str):
            raise ValueError(f"gold is {gold!r:.60}; allowed is SQL text or null; correct it")
        for key in ("context", "database"):
            if not isinstance(row.get(key), (str, type(None))):
                raise ValueError(f"{key} is {row[key]!r:.60}; allowed is text; correct it")
        return row

    def lines(rows: list[dict]) -> Iterator[dict]:
        answers = audit(rows, workers=options.workers, seed=options.seed, progress=True)
        for row, answer in zip(rows, answers):
            name = {key: row[key] for key in ("id", "example_id", "question") if key in row}
            yield {**name, "gold": row["gold"] if "gold" in row else row["answer"], **answer}

    _run(parser, options, {"seed": options.seed}, read, lines)


def _add_files(parser: argparse.ArgumentParser, reads: str, writes: str) -> None:
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help=f"JSON lines of {reads}")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=f"JSON lines of {writes}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the generated databases (default: 0)")


def _run(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    settings: dict,
    read: Callable[[dict], dict],
    answer: Callable[[list[dict]], Iterator[dict]],
) -> None:
    """Reads, tells what is bad, goes on after the lines that an interrupted run left, and appends the rest."""
    if options.workers < 1:
        parser.error(f"--workers is {options.workers}; allowed is 1 or more")
    if not options.input.is_file():
        parser.error(f"--input {options.input} is no file; give a file of JSON lines")
    questions, bad = _read_lines(options.input, read)
    fingerprint = hashlib.sha256(options.input.read_bytes() + json.dumps(settings).encode()).hexdigest()
    try:
        done = _resume(options.output, fingerprint)
    except ValueError as error:
        parser.error(str(error))
    if done:
        print(f"{options.output} already holds {done} of {len(questions)} lines; going on after them", file=sys.stderr)
    with options.output.open("a", encoding="utf-8") as output:
        for line in answer(questions[done:]):
            output.write(json.dumps(line) + "\n")
            output.flush()
    print(f"{len(questions) + bad} lines read, {bad} bad; {len(questions)} are in {options.output}", file=sys.stderr)


def _read_lines(path: Path, read: Callable[[dict], dict]) -> tuple[list[dict], int]:
    questions, bad = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                questions.append(read(json.loads(line)))
            except (ValueError, RecursionError) as error:
                bad += 1
                print(f"{path}, line {number}: {error}", file=sys.stderr)
    return questions, bad


def _resume(output: Path, fingerprint: str) -> int:
    """How many whole lines of the same run `output` holds; cuts off a half-written last one.

    Raises ValueError where the file belongs to another input or other settings.
    """
    mark = output.with_name(output.name + ".run")
    if output.exists() and output.stat().st_size:
        if not mark.exists() or mark.read_text() != fingerprint:
            raise ValueError(
                f"--output {output} holds lines of another input or other settings; only the same run can go on; "
                "choose another file or delete it"
            )
        data = output.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(output, whole)
        return data[:whole].count(b"\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint)
    return 0
