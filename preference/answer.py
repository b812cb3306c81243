"""Ask a trained model one question about a SQLite file: prints the query, runs it read-only, prints the rows.

    python -m preference.answer --model runs/quickstart/best --database shop.sqlite "How many customers live in Cork?"
"""

import argparse
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

WIDEST = 10**8  # characters: wider than any table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH", help="adapter or model folder, hub name, or embedded")
    parser.add_argument("--database", type=Path, required=True, metavar="FILE", help="SQLite file; it is never written to")
    parser.add_argument("--max-new-tokens", type=int, default=160, metavar="N")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model, where it needs it")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="rows to show (default: 20)")
    parser.add_argument("question")
    arguments = parser.parse_args()
    try:
        with TemporaryDirectory() as folder:
            sys.exit(answer(arguments, Path(folder)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def answer(arguments, folder: Path) -> int:
    """Exit status: 0 where the query ran, 1 where there is none or it did not run. `folder` holds what is temporary."""
    from rich.console import Console

    from preference.report_page.text import visible
    from reward.gate import gate
    from reward.sandbox import Database, Sandbox
    from reward.verdicts import run_as_judged
    from sft import ranks
    from sft.checkpoint import load_for_inference
    from sft.ddl import from_sqlite
    from sft.prompt import check_prompt_hash, prompt_hash, prompt_ids, read_completion, render
    from sft.sampler import generate

    for option, value in (("--max-new-tokens", arguments.max_new_tokens), ("--rows", arguments.rows)):
        if value < 1:
            raise ValueError(f"{option} {value}: needed is a whole number of at least 1.")
    if not arguments.database.is_file():
        raise ValueError(f"--database {arguments.database} is not a file. Name an existing SQLite file.")
    file = committed(arguments.database, folder)
    context = from_sqlite(file)
    ranks.prepare_environment(distributed=False)
    ranks.start(zero=False)
    model, tokenizer, provenance = load_for_inference(arguments.model, place=ranks.device(),
                                                      trust_remote_code=arguments.trust_remote_code)
    style = provenance["prompt"]["schema_style"] if provenance else "ddl"
    if provenance:
        format_now = prompt_hash(tokenizer, style, provenance["prompt"]["max_prompt_tokens"])
        check_prompt_hash(provenance["prompt_hash"], format_now, arguments.model)
    prompt = prompt_ids(tokenizer, render({"question": arguments.question, "context": context}, style))
    [[completion]] = generate(model, tokenizer, [prompt], ["question"], max_new_tokens=arguments.max_new_tokens)
    sql, abstained = read_completion(completion.text)
    console = Console()
    if sql is None:
        console.print("The model says that this schema cannot answer the question." if abstained else "No query.")
        return 1
    console.print(visible(sql), style="bold", markup=False, highlight=False, soft_wrap=True)  # whole lines, to be copied
    gated = gate(sql)
    if gated.sql is None:
        console.print(f"not run: {gated.message}", markup=False)
        return 1
    database = Database(key="asked", name=arguments.database.name, tier="given", path=str(file.resolve()))
    with Sandbox() as sandbox:
        ran, outcome = run_as_judged(sandbox, database, gated.sql, arguments.rows)
    if ran != gated.sql:
        console.print(visible(f"run with its double-quoted values as strings: {ran}"), markup=False, highlight=False, soft_wrap=True)
    if outcome.status != "ok":
        console.print(visible(f"{outcome.status}: {outcome.message}"), markup=False)
        return 1
    print_rows(outcome.columns, outcome.rows, console)
    console.print(f"{outcome.row_count} row(s)")
    return 0


def committed(path: Path, folder: Path) -> Path:
    """A file with all that is committed in a database: itself, or a copy in `folder` where changes stand beside it (-wal,
    -journal), as with an application that is running. Raises ValueError where SQLite cannot read it.
    """
    path = path.resolve()  # changes stand beside the file itself, not beside a link to it
    beside = [path.with_name(path.name + ending) for ending in ("-wal", "-journal")]
    if not any(file.exists() and file.stat().st_size for file in beside):
        return path
    copy = folder / path.name

    def stop_if_locked(status: int, remaining: int, total: int) -> None:
        """Called after each try, which has waited some seconds: without it, backup tries for ever."""
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise sqlite3.OperationalError("database is locked")

    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as source, \
                closing(sqlite3.connect(copy)) as target:
            source.backup(target, progress=stop_if_locked)
    except sqlite3.Error as error:
        raise ValueError(f"{path.name} has changes beside it that cannot be read ({error}). Close the program that writes to it, or "
                         "give a copy made with SQLite's .backup.") from None
    return copy


def print_rows(columns: Sequence[str], rows: Sequence[tuple], console) -> None:
    """Rows as a table, or, where that is wider than the terminal, each as lines of name and value; nothing is cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preference.report_page.text import visible

    # Names and cells are anybody's text: never markup, never escape sequences of the terminal.
    names = [Text(visible(name)) for name in columns]
    cells = [[Text("NULL" if value is None else visible(str(value))) for value in row] for row in rows]
    table, wide = Table(), Console(width=WIDEST)
    for name in names:
        table.add_column(name)
    for row in cells:
        table.add_row(*row)
    if not console.is_terminal or wide.measure(table).maximum <= console.width:
        wide.print(table)
        return
    if not rows:
        console.print(Text(", ").join(names), soft_wrap=True)
    for number, row in enumerate(cells, 1):
        record = Table(title=f"row {number}", title_justify="left", show_header=False)
        record.add_column(overflow="fold")
        record.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            record.add_row(name, cell)
        console.print(record)


if __name__ == "__main__":
    main()
