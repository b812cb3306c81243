"""`inspect-preferences show`: one pair with its schema, both queries, what they return, and why it is a pair."""

from __future__ import annotations

import json

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from preference.inspection.store import Store
from preference.inspection.terminal import one_line, queries, result_table, shown

_STRATEGIES = {
    "nearest": "of all wrong queries the one nearest to the chosen one by edits",
    "farthest": "of all wrong queries the one farthest from the chosen one by edits",
    "hardest": "of all wrong queries the one that the model likes best",
    "random": "a wrong query at random",
    "ranked": "people ranked the question's queries",
}
_ADDITIONS = {
    "-graded": "both are wrong; the chosen one runs, the rejected one does not",
    "-flipped": "a control: the sides have changed places",
    "-shuffled-rejected": "a control: the rejected query is another question's",
    "-random-sides": "a control: two samples by chance, whatever their verdicts",
}
_SHOWN_TABLES = 12
_SHOWN_COLUMNS = 16


def print_pair(store: Store, wanted: str, console: Console) -> None:
    """Print the pair of an id or of its first characters. Raises ValueError, naming the nearest ids, for no such pair."""
    pair = find_pair(store, wanted)
    print_question(pair, console)
    print_sides(pair, console, {"chosen": "Chosen", "rejected": "Rejected"} if store.kind == "pairs" else {"chosen": "Sample"})
    print_reasons(pair, console)


def find_pair(store: Store, wanted: str) -> dict:
    """The pair of an id, or of the only id that begins so."""
    if (pair := store.pair(wanted)) is not None:
        return pair
    near = store.nearest(wanted)
    if wanted and len(near) == 1 and near[0].startswith(wanted):
        return store.pair(near[0])
    several = bool(wanted) and any(name.startswith(wanted) for name in near)
    raise ValueError(f"{'more than one' if several else 'no'} pair has the id {wanted[:100]!r}. "
                     f"{'Some of them are' if several else 'The nearest ids are'} {', '.join(near) or 'none'}. Give one of those.")


def print_question(pair: dict, console: Console, blind: bool = False) -> None:
    """Id, question, the tables of its schema and (unless blind) the gold query."""
    from preference.inspection.rerun import schema_of

    console.print(Text(f"Pair {shown(pair['pair_id'], 100).plain}", style="bold").append(
        f"   question {shown(pair['example_id'], 100).plain}" if pair.get("example_id") is not None else "", style="dim"))
    console.print(Panel(shown(pair.get("question") or "(no question)"), title="Question", title_align="left"))
    schema = schema_of(pair)
    if schema["message"]:
        console.print(shown(schema["message"], 500, style="yellow"))
    if schema["tables"]:
        console.print(Columns([_drawn(table) for table in schema["tables"][:_SHOWN_TABLES]], padding=(0, 1)))
    if len(schema["tables"]) > _SHOWN_TABLES:
        console.print(Text(f"and {len(schema['tables']) - _SHOWN_TABLES} more tables", style="dim"))
    if (gold := pair.get("gold_sql")) and not blind:
        console.print(Text("Gold  ", style="bold").append_text(shown(gold)))


def _drawn(table: dict) -> Panel:
    """A table as a box: keys underlined, links with the column that they point to."""
    links = {child: f"{parent}.{target}" for child, parent, target in table["links"]}
    lines = Text()
    for number, column in enumerate(table["columns"][:_SHOWN_COLUMNS]):
        lines.append("\n" if number else "").append_text(one_line(column["name"], 40))
        if column["key"]:
            lines.stylize("underline", len(lines) - len(one_line(column["name"], 40)))
        lines.append(" ").append_text(one_line(column["type"], 20)).stylize("dim", len(lines) - len(one_line(column["type"], 20)))
        if column["name"] in links:
            lines.append(" → ", style="blue").append_text(one_line(links[column["name"]], 60))
    if len(table["columns"]) > _SHOWN_COLUMNS:
        lines.append(f"\nand {len(table['columns']) - _SHOWN_COLUMNS} more columns", style="dim")
    return Panel(lines, title=one_line(table["name"], 40), title_align="left", expand=False)


def print_sides(pair: dict, console: Console, names: dict[str, str], blind: bool = False) -> None:
    """Both queries with marked differences, and their results on the database that tells them apart.

    names: what to call each side, in the order to show them. blind: nothing of what the executor said of them.
    """
    coloured = console.is_terminal and not console.no_color
    shown_texts = queries(*(pair.get(f"{side}_sql") or "" for side in (*names, "rejected")[:2]), coloured)
    for (side, name), text, colour in zip(names.items(), shown_texts, ("green", "red"), strict=False):
        title = Text(name, style=f"bold {colour}")
        if not blind and pair.get(f"{side}_verdict"):
            title.append(f"  {shown(pair[f'{side}_verdict'], 40).plain}: {shown(pair.get(f'{side}_reason') or '', 80).plain}",
                         style="dim")
        console.print(Panel(text if text.plain else Text("(empty)", style="dim"), title=title, title_align="left"))
    _print_results(pair, console, names, blind)


def _print_results(pair: dict, console: Console, names: dict[str, str], blind: bool) -> None:
    """The result tables on the database that tells the sides apart, and on how many others it is the same."""
    from preference.inspection.rerun import run_pair

    found = run_pair(pair)
    if found["message"] and not blind:
        console.print(shown(found["message"], 800, style="yellow"))
    if not found["databases"]:
        return
    stored = (pair.get("rejected_trace") or {}).get("database")
    database = next((place for place in found["databases"] if place["told_apart"] and place["name"] == stored),
                    next((place for place in found["databases"] if place["told_apart"]), found["databases"][0]))
    tables = {name: database["tables"][side] for side, name in names.items()}
    if blind:  # what differs from gold would tell which side was chosen
        tables = {name: table | {"differs": [False] * len(table["rows"]), "missing": 0, "difference": None}
                  for name, table in tables.items()}
    elif pair.get("gold_sql"):
        tables = {"Gold": database["tables"]["gold"], **tables}
    told = [place for place in found["databases"] if place["told_apart"]]
    console.print(Text(f"On database {database['name']} ({database['tier']})", style="bold").append(
        "" if blind else "  ≠ marks rows that differ" if told else "  no database tells the two apart", style="dim"))
    console.print(Columns([result_table(name, table) for name, table in tables.items()], padding=(0, 3)))
    if len(found["databases"]) > 1:
        console.print(Text(f"told apart on {len(told)} of {len(found['databases'])} databases: "
                           + ", ".join(f"{place['name']} {'yes' if place['told_apart'] else 'no'}"
                                       for place in found["databases"]), style="dim"))


def print_reasons(pair: dict, console: Console) -> None:
    """Why this pair was chosen, the evidence trail, and what people said."""
    def value(name: str) -> str:
        return shown(pair[name], 200).plain

    console.print(Text("\nWhy this pair", style="bold"))
    if pair.get("strategy"):
        words = _STRATEGIES.get(pair["strategy"], "; ".join(
            said for name, said in _ADDITIONS.items() if str(pair["strategy"]).endswith(name)))
        console.print(Text(f"  strategy {value('strategy')}" + (f": {words}" if words else "")))
    for side in ("chosen", "rejected"):
        facts = [f"sample {value(f'{side}_sample_index')}" if pair.get(f"{side}_sample_index") is not None else "",
                 f"log-probability {pair[f'{side}_logp_sum']:.2f} nats" if isinstance(pair.get(f"{side}_logp_sum"), float) else ""]
        facts = ", ".join(fact for fact in facts if fact)
        if facts:
            console.print(Text(f"  {side}: {facts}"))
        if side == "rejected" and pair.get("rejected_trace"):
            console.print(Text("  what told it apart: ").append_text(
                shown(json.dumps(pair["rejected_trace"], ensure_ascii=False, default=str), 600)))
    trail = [f"{name.replace('_', ' ')} {value(name)}" for name in ("round", "seed", "kill_score", "suite_hash", "checkpoint_hash",
                                                                   "prompt_hash", "source") if pair.get(name) is not None]
    if pair.get("kind"):
        trail.append(f"kind {', '.join(shown(kind, 40).plain for kind in pair['kind'])}")
    if trail:
        console.print(Text("  " + ", ".join(trail), style="dim"))
    if pair.get("gold_fallback"):
        console.print(Text("  the chosen side is the gold query, not a sample of the model", style="yellow"))
    if pair.get("person_label"):
        console.print(Text(f"  people's word in the file: {value('person_label')}"))
    for annotator, label in pair["labels"].items():
        console.print(Text(f"  {shown(annotator, 100).plain}: {label.label} ({label.time})").append(
            f"  {shown(label.comment, 300).plain}" if label.comment else "", style="italic"))
    for comment in pair["comments"]:
        console.print(Text(f"  {shown(comment['annotator'], 100).plain} ({comment['time']}): ").append_text(
            shown(comment["comment"], 1000)))
