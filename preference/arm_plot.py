"""The table of control arms as a drawing: each arm's error reduction against SFT, with its interval and seeds (SVG)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import wrap

from markupsafe import Markup

from preference.arm_table import caveats, interval, titles
from preference.report_page.plots import ticks
from preference.report_page.text import visible

# Pixels: a letter of 13 px text to reckon with, a row's height, the plot's width, and the margin.
LETTER, ROW, PLOT, MARGIN = 8, 26, 380, 12
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .title { font-weight: 600; } .note { font-size: 12px; fill: #59636e; }
.ground { fill: #ffffff; } .grid { stroke: #d8dee4; } .zero, .whisker { stroke: #1f2328; } .zero { stroke-dasharray: 3 3; }
.whisker { stroke-width: 2; } .all { fill: #0969da; } .seed { fill: none; stroke: #0969da; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .note { fill: #9198a1; } .ground { fill: #0d1117; }
.grid { stroke: #30363d; } .zero, .whisker { stroke: #e6edf3; } .all { fill: #4493f8; } .seed { stroke: #4493f8; } }
"""


def drawing(table: Mapping) -> str:
    """The SVG of a table (`preference.arm_results.summary`), one panel for each of its `titles`, all on one scale.

    A bar marks the arm, all its seeds together; rings its seeds, each against the SFT adapter it started from (none where that
    makes no error); a whisker the bar's interval, where there is one. An arm whose SFT adapters make no error has "-" alone.
    """
    panels = [(title, table[state]) for state, title in titles(table).items()]
    rows = [row for _, found in panels for row in found]
    longest = {written: LETTER * max((len(written(row)) for row in rows), default=0) for written in (label, reduction)}
    left = 2 * MARGIN + longest[label]
    width = max(left + PLOT + longest[reduction] + 2 * MARGIN, 2 * MARGIN + LETTER * max(map(len, titles(table).values())))
    notes = [line for note in explanation(table) for line in wrap(note, int((width - 2 * MARGIN) / LETTER))]
    reached = [0.0, *(value for row in rows for value in values(table, row))]
    marks = ticks(min(reached), max(reached) if max(reached) > min(reached) else 0.1)

    def place(share: float) -> float:
        return left + PLOT * (share - marks[0]) / (marks[-1] - marks[0])

    parts, spoken, y = [], [], 0.0
    for title, found in panels:
        top = y + 1.5 * ROW
        bottom = top + ROW * len(found)
        parts.append(text_at(MARGIN, top - 10, title, "title"))
        for mark in marks:
            parts.append(Markup('<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{3:.1f}"/>').format(
                "zero" if abs(mark) < 1e-9 else "grid", place(mark), top, bottom))
            parts.append(text_at(place(mark), bottom + 15, f"{100 * mark:g}", "note", "middle"))
        for number, row in enumerate(found):
            middle = top + ROW * (number + 0.5)
            parts += [text_at(MARGIN, middle + 4, label(row)), *arm_row(table, row, middle, place),
                      text_at(left + PLOT + MARGIN, middle + 4, reduction(row))]
        spoken.append(f"{title}: " + "; ".join(f"{label(row)} {reduction(row)}" for row in found))
        y = bottom + 20
    for note in notes:
        y += 20
        parts.append(text_at(MARGIN, y, note, "note"))
    return Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img" '
                  'aria-label="{2}"><style>{3}</style><rect class="ground" width="100%" height="100%"/>\n{4}\n</svg>\n').format(
        width, y + MARGIN, " ".join([*spoken, *notes]), Markup(STYLE), Markup("\n").join(parts))


def explanation(table: Mapping) -> list[str]:
    """The notes below the drawing: what is drawn, of which questions, and what to beware of."""
    seeds = max((len(row["seeds"]) for row in table["last"]), default=0)
    rings = "; rings: each seed against the adapter it started from" if seeds > 1 else ""
    return [f"Error reduction against SFT, % ({visible(table['data'])}, n = {table['n']:,}). Bar: "
            f"{'all seeds together' if seeds > 1 else 'the arm'}; line: its 95 % interval over questions{rings}.", *caveats(table)]


def arm_row(table: Mapping, row: Mapping, y: float, place: Callable[[float], float]) -> list[Markup]:
    """One arm's whisker and marks at height y; `place` gives the x of a share."""
    found, parts = row["against_sft"], []
    if found["error_reduction_ci95"]:
        low, high = map(place, found["error_reduction_ci95"])
        parts.append(Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(low, high, y, y))
    if found["error_reduction"] is not None:
        parts.append(Markup('<rect class="all" x="{:.1f}" y="{}" width="4" height="16"/>').format(place(found["error_reduction"]) - 2, y - 8))
    if len(row["seeds"]) > 1:
        parts += [Markup('<circle class="seed" cx="{:.1f}" cy="{}" r="4"/>').format(place(share), y) for share in by_seed(table, row)]
    return parts


def label(row: Mapping) -> str:
    return f"{visible(row['arm'])} (seed{'s' if len(row['seeds']) > 1 else ''} {', '.join(map(str, row['seeds']))})"


def reduction(row: Mapping) -> str:
    """The arm's error reduction as text; "-" where SFT makes no error."""
    return interval(row["against_sft"]["error_reduction"], row["against_sft"]["error_reduction_ci95"])


def by_seed(table: Mapping, row: Mapping) -> list[float]:
    """Each seed's error reduction against the SFT adapter it started from; without those whose adapter makes no error."""
    before = [table["sft"]["accuracies"][place] for place in row["folders"]]
    return [(after - start) / (1 - start) for start, after in zip(before, row["accuracies"], strict=True) if start < 1]


def values(table: Mapping, row: Mapping) -> list[float]:
    """All shares that are drawn of one arm."""
    found = row["against_sft"]
    if found["error_reduction"] is None:
        return []
    return [found["error_reduction"], *(found["error_reduction_ci95"] or ()), *by_seed(table, row)]


def text_at(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, words)
