"""`inspect-preferences summary`: all pairs at a glance, with small charts, and what would spoil training."""

from __future__ import annotations

import json

from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preference.inspection.store import Store
from preference.inspection.terminal import bar, columns, one_line, shown

_TITLES = {"chosen_verdict": "Chosen: verdict", "chosen_reason": "Chosen: reason", "rejected_verdict": "Rejected: verdict",
           "rejected_reason": "Rejected: reason", "source": "Source", "strategy": "Strategy", "kind": "Kind of query",
           "round": "Round", "person_label": "People's word in the file"}
_SHOWN_VALUES = 12


def print_summary(store: Store, as_json: bool, console: Console) -> None:
    """Print the overview of a store, as JSON for machines or for people."""
    overview = store.overview()
    if as_json:
        # Escaped to ASCII: a terminal that shows it gets no control character from the data.
        print(json.dumps(overview, indent=2, default=str))
        return
    noun = "pairs" if store.kind == "pairs" else "samples"
    console.print(Text(f"{overview['total']:,} {noun} of {overview['questions']:,} questions", style="bold")
                  .append(f"   {shown(overview['path']).plain}", style="dim"))
    for warning in overview["warnings"]:
        console.print(shown(f"not shown: {warning}", style="yellow"))
    console.print()
    _print_flags(console, overview["flags"])
    _print_counts(console, overview)
    _print_lengths(console, overview)
    _print_labels(console, overview["labels"])


def _print_flags(console: Console, flags: list[dict]) -> None:
    if not flags:
        console.print(Text("nothing found that would spoil training", style="green"))
    for flag in sorted(flags, key=lambda flag: flag["level"] != "error"):
        error = flag["level"] == "error"
        console.print(Text("✗ " if error else "! ", style="bold red" if error else "bold yellow").append(
            shown(flag["text"]).plain, style=""))
    console.print()


def _print_counts(console: Console, overview: dict) -> None:
    tables = [_count_table("Samples" if overview["kind"] == "candidates" and name.startswith("chosen") else _TITLES[name],
                           counts, overview["total"])
              for name, counts in overview["counts"].items() if counts]
    if overview["judged"]:
        judged = [(f"{verdict}, {reason}" if reason else verdict, n) for verdict, reason, n in overview["judged"]]
        tables.append(_count_table("All distinct queries", judged, sum(n for _, n in judged)))
    if overview["dropped"]:
        tables.append(_count_table("Questions without a pair", overview["dropped"], sum(n for _, n in overview["dropped"])))
    console.print(Columns(tables, padding=(0, 4)))


def _count_table(title: str, counts: list[tuple], total: int) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(max_width=30, no_wrap=True)
    table.add_column(justify="right")
    table.add_column(width=12, no_wrap=True)
    for value, count in counts[:_SHOWN_VALUES]:
        table.add_row(one_line(value, 30), f"{count:,}", Text(bar(count / max(1, total), 12), style="blue"))
    rest = counts[_SHOWN_VALUES:]
    if rest:
        table.add_row(Text(f"{len(rest)} more", style="dim"), f"{sum(count for _, count in rest):,}", "")
    table.add_row("", "", "")
    return table


def _print_lengths(console: Console, overview: dict) -> None:
    length, lengths, differences = overview["length"], overview["lengths"], overview["differences"]
    if lengths:
        console.print(Text(f"Length in characters, 0 to {lengths['edges'][-1]:,} and more", style="bold"))
        for side in ("chosen", "rejected"):
            if side in lengths:
                console.print(Text(f"  {side if overview['kind'] == 'pairs' else 'queries':<9}").append(
                    columns(lengths[side]), style="green" if side == "chosen" else "red").append(
                    f"  mean {length[f'{side}_mean']:.1f}, median {length[f'{side}_median']:,.0f}, longest "
                    f"{length[f'{side}_longest']:,}", style="dim"))
    if differences:
        low, high = differences["centres"][0], differences["centres"][-1]
        console.print(Text(f"Chosen less rejected in characters, {low:,} and less to {high:,} and more", style="bold"))
        console.print(Text("  " + " " * 9).append(columns(differences["counts"]), style="blue").append(
            f"  longer: chosen {length['chosen_longer']:,}, rejected {length['rejected_longer']:,}", style="dim"))
    if kills := overview["kill_scores"]:
        console.print(Text("Kill score of the databases, 0 to 1", style="bold"))
        console.print(Text("  " + " " * 9).append(columns(kills["counts"]), style="blue").append(
            f"  {overview['problems']['low_kill_score']:,} below 0.7" + (f", {kills['missing']:,} unknown" if kills["missing"]
                                                                        else ""), style="dim"))
    console.print()


def _print_labels(console: Console, labels: dict) -> None:
    if not labels["labelled"]:
        console.print(Text("nobody has labelled anything yet: inspect-preferences serve (or label)", style="dim"))
        return
    words = ", ".join(f"{count:,} {label}" for label, count in labels["by_label"])
    people = ", ".join(f"{shown(name, 100).plain} {count:,}" for name, count in labels["by_annotator"])
    console.print(Text("People's labels", style="bold").append(
        f"  {labels['labelled']:,} labelled: {words}" + (f" ({people})" if people else ""), style=""))
