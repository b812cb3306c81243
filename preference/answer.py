"""Ask a trained model one question about a SQLite file: prints the query, runs it read-only, prints the rows.

    python -m preference.answer --model runs/quickstart/best --database shop.sqlite "How many customers live in Cork?"
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH", help="adapter or model folder, hub name, or embedded")
    parser.add_argument("--database", type=Path, required=True, metavar="FILE", help="SQLite file; it is never written to")
    parser.add_argument("--max-new-tokens", type=int, default=160, metavar="N")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="rows to show (default: 20)")
    parser.add_argument("question")
    arguments = parser.parse_args()
    try:
        sys.exit(answer(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def answer(arguments) -> int:
    """Exit status: 0 where the query ran, 1 where there is none or it did not run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preference.report_page.text import visible
    from reward.gate import gate
    from reward.sandbox import Database, Sandbox
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
    context = from_sqlite(arguments.database)
    ranks.prepare_environment(distributed=False)
    ranks.start(zero=False)
    model, tokenizer, provenance = load_for_inference(arguments.model, place=ranks.device())
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
    console.print(visible(sql), style="bold", markup=False, highlight=False)
    gated = gate(sql)
    if gated.sql is None:
        console.print(f"not run: {gated.message}", markup=False)
        return 1
    database = Database(key="asked", name=arguments.database.name, tier="given", path=str(arguments.database.resolve()))
    with Sandbox() as sandbox:
        [outcome] = sandbox.run(database, [gated.sql], arguments.rows)
    if outcome.status != "ok":
        console.print(visible(f"{outcome.status}: {outcome.message}"), markup=False)
        return 1
    # Names and cells are anybody's text: never markup, never escape sequences of the terminal.
    table = Table()
    for name in outcome.columns:
        table.add_column(Text(visible(name)))
    for row in outcome.rows:
        table.add_row(*(Text("NULL" if value is None else visible(str(value))) for value in row))
    console.print(table)
    console.print(f"{outcome.row_count} row(s)")
    return 0


if __name__ == "__main__":
    main()
