"""The table of control arms (`preference.arm_results.summary`): in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preference.report_page import text

TITLES = {"last": "At the last step, guards off", "published": "As published"}
HEADINGS = ("Arm", "Seeds", "Accuracy", "Against SFT, points", "Error reduction, %", "p", "{} better by, points", "p", "Valid SQL",
            "EOS", "Tokens", "Steps", "Chosen logp")
# The terminal's tables: title, and places in HEADINGS. With LINES, the most letters of names, seeds and headings in a line, figures of
# the usual length fit a terminal of 80 characters.
PARTS = (("accuracy", (0, 2, 6, 7)), ("against SFT", (0, 3, 4, 5)), ("seeds and health", (0, 1, 8, 9, 10, 11, 12)))
LINES = {"Arm": 22, "Seeds": 8}
HEADING_LINE = 21
WIDE = 1000  # characters: wider than any table


def headings(table: dict) -> list[str]:
    """HEADINGS with the name of the arm that others are compared with."""
    return [heading.format(table["against"]) for heading in HEADINGS]


def interval(value: float | None, ends: Sequence[float] | None) -> str:
    """ "+3.1 (+0.4 to +5.8)", shares times 100 (points or %); "+0.0 (-)" where there is no interval."""
    if value is None:
        return "-"
    if ends is None:
        return f"{100 * value:+.1f} (-)"
    return f"{100 * value:+.1f} ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"


def cells(row: dict) -> list[str]:
    """A row of the table as text, in the order of HEADINGS."""
    against, behind = row["against_sft"], row.get("behind")
    accuracy = text.percent(row["execution_accuracy"])
    if len(row["seeds"]) > 1:
        accuracy += f" ({100 * min(row['accuracies']):.1f} to {100 * max(row['accuracies']):.1f})"
    change = row["chosen_logp_change"]
    return [row["arm"], ", ".join(map(str, row["seeds"])), accuracy, interval(against["difference"], against["ci95"]),
            interval(against["error_reduction"], against["error_reduction_ci95"]), short_p(against["p"]),
            *(("-", "-") if behind is None else (interval(behind["difference"], behind["ci95"]), short_p(behind["p"]))),
            text.percent(row["valid_sql"]), text.percent(row["ended_with_eos"]), f"{row['mean_tokens']:.1f}",
            "-" if row["steps"] is None else f"{row['steps']:g}", "-" if change is None else f"{change:+.3f}"]


def short_p(p: float) -> str:
    return text.p_value(p).removeprefix("p ").removeprefix("= ")


def caveats(table: dict) -> list[str]:
    """What to beware of: adapters that were chosen on the questions of the table, and several SFT adapters."""
    found = []
    if len(table["sft"]["accuracies"]) > 1:
        found.append("Against SFT: each seed against the adapter it started from, so that an arm on some of the adapters is not "
                     "compared with their mean.")
    if table["data"] == "dev":
        found.append("What is published was chosen on these same questions (guards, best round), so its accuracy here is too high, and "
                     "never much below SFT's: report it on other questions.")
    return found


def explanation(table: dict) -> str:
    """What the columns mean, below the table."""
    sft = table["sft"]
    low, high = sft["ci95"] or (min(sft["accuracies"]), max(sft["accuracies"]))
    several = "" if sft["ci95"] else f", mean of {len(sft['accuracies'])} adapters (lowest to highest)"
    return (f"SFT{several}: {text.percent(sft['execution_accuracy'])} ({100 * low:.1f} to {100 * high:.1f}) of "
            f"{table['n']:,} questions, valid SQL {text.percent(sft['valid_sql'])}, EOS {text.percent(sft['ended_with_eos'])}, "
            f"{sft['mean_tokens']:.1f} tokens. Accuracy: mean over seeds (lowest to highest). Intervals are 95 %, paired over "
            "the questions; (-): no question changed, so that drawing questions gives none. p, one seed: McNemar's exact test; "
            "more seeds: paired permutation (sign flip) over questions, each scored by its mean over seeds. "
            f"\"{table['against']} better by\": points, on the seeds that both arms have of the same adapter. Steps: to the adapter "
            "that was measured. Chosen logp: change from the first step to that one, nats a token, on the guards' pairs." + "".join(f" {caveat}" for caveat in caveats(table)))


def titles(table: dict) -> dict[str, str]:
    """The states to show, with their titles: one alone where every arm publishes its last step."""
    return TITLES if table["last"] != table["published"] else {"last": "At the last step, which is what is published"}


def markdown(table: dict) -> str:
    """The table for a Markdown file."""
    lines = []
    for state, title in titles(table).items():
        lines += [f"**{title}** ({table['data']}, n = {table['n']:,})", "", "| " + " | ".join(headings(table)) + " |",
                  "|" + "---|" * len(HEADINGS), *("| " + " | ".join(cells(row)) + " |" for row in table[state]), ""]
    return "\n".join([*lines, explanation(table)])


def print_table(table: dict) -> None:
    """The table in the terminal, in PARTS, without columns that say nothing of any arm."""
    console = Console()
    # A table takes the width that it needs; in a narrower console rich would cut figures off.
    wide = Console(width=max(console.width, WIDE))
    for state, title in titles(table).items():
        for part, places in PARTS:
            wide.print(Text(f"{title}, {part} ({table['data']}, n = {table['n']:,})", style="bold"))
            shown = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
            columns = []
            for place in places:
                heading = HEADINGS[place]
                column = [cells(row)[place] for row in table[state]]
                if place and set(column) == {"-"}:
                    continue
                columns.append([fill(cell, LINES.get(heading, WIDE)) for cell in column])
                shown.add_column(fill(headings(table)[place], HEADING_LINE), justify="left" if heading in LINES else "right", no_wrap=True)
            for row in zip(*columns, strict=True):
                shown.add_row(*map(Text, row))
            wide.print(shown)
            console.print()
    console.print(Text(explanation(table)))
