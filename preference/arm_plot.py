"""The table of control arms as a drawing: each arm's error reduction against SFT, its interval, and its seeds (SVG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from preference.arm_table import interval, titles
from preference.report_page.plots import ticks
from preference.report_page.text import visible

LETTER, ROW, PLOT, FIGURES = 7.2, 26, 380, 190  # pixels: a letter's width at 13 px, a row's height, widths of plot and figures
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .title { font-weight: 600; } .note { font-size: 12px; fill: #59636e; }
.ground { fill: #ffffff; } .grid { stroke: #d8dee4; } .zero, .whisker { stroke: #1f2328; } .zero { stroke-dasharray: 3 3; }
.whisker { stroke-width: 2; } .mean { fill: #0969da; } .seed { fill: none; stroke: #0969da; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .note { fill: #9198a1; } .ground { fill: #0d1117; }
.grid { stroke: #30363d; } .zero, .whisker { stroke: #e6edf3; } .mean { fill: #4493f8; } .seed { stroke: #4493f8; } }
"""


def drawing(table: Mapping) -> str:
    """The SVG of a table (`preference.arm_results.summary`), one panel for each of its `titles`.

    An arm without an error reduction (SFT makes no error) has its name alone; one whose questions did not change, no interval.
    """
    panels = [(title, table[state]) for state, title in titles(table).items()]
    names = {id(row): f"{visible(row['arm'])} ({plural(len(row['seeds']))})" for _, rows in panels for row in rows}
    left = max((LETTER * len(name) for name in names.values()), default=0) + 24
    values = [0.0, *(value for _, rows in panels for row in rows for value in drawn(table, row))]
    marks = ticks(min(values), max(values) if max(values) > min(values) else 0.1)
    low, high = marks[0], marks[-1]

    def x(value: float) -> float:
        return left + PLOT * (value - low) / (high - low)

    parts, y = [], 8
    for title, rows in panels:
        y += ROW
        parts.append(line_of(12, y - 8, f"{title}: errors fewer than SFT's, % ({visible(table['data'])}, n = {table['n']:,})", "title"))
        bottom = y + ROW * len(rows)
        for mark in marks:
            kind = "zero" if abs(mark) < 1e-9 else "grid"
            parts.append(Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(kind, x(mark), x(mark), y, bottom))
            parts.append(line_of(x(mark), bottom + 16, f"{100 * mark:g}", "note", "middle"))
        for place, row in enumerate(rows):
            parts += arm(table, row, names[id(row)], y + ROW * place + ROW / 2, x, left + PLOT + 16)
        y = bottom + 24
    y += ROW
    rings = "; rings: each seed" if any(len(row["seeds"]) > 1 for _, rows in panels for row in rows) else ""
    parts.append(line_of(12, y - 8, f"Dot: mean of the seeds; line: its 95 % interval over questions{rings}.", "note"))
    width = left + PLOT + FIGURES
    return Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img">'
                  '<style>{2}</style><rect class="ground" width="100%" height="100%"/>\n{3}\n</svg>\n').format(
        width, y, Markup(STYLE), Markup("\n").join(parts))


def arm(table: Mapping, row: Mapping, name: str, y: float, x, figures: float) -> list[Markup]:
    """One arm: its name, whisker, marks and figures, at height y; x gives the place of a share."""
    found = row["against_sft"]
    parts = [line_of(12, y + 4, name)]
    if found["error_reduction"] is None:
        return [*parts, line_of(figures, y + 4, "-", "note")]
    if found["error_reduction_ci95"]:
        ends = [x(end) for end in found["error_reduction_ci95"]]
        parts.append(Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(*ends, y, y))
    if len(row["seeds"]) > 1:
        parts += [Markup('<circle class="seed" cx="{:.1f}" cy="{}" r="4"/>').format(x(value), y) for value in by_seed(table, row)]
    parts.append(Markup('<circle class="mean" cx="{:.1f}" cy="{}" r="5"/>').format(x(found["error_reduction"]), y))
    return [*parts, line_of(figures, y + 4, interval(found["error_reduction"], found["error_reduction_ci95"]))]


def by_seed(table: Mapping, row: Mapping) -> list[float]:
    """Each seed's error reduction against the SFT adapter it started from; without those whose adapter makes no error."""
    before = [table["sft"]["accuracies"][place] for place in row["folders"]]
    return [(after - start) / (1 - start) for start, after in zip(before, row["accuracies"], strict=True) if start < 1]


def drawn(table: Mapping, row: Mapping) -> Sequence[float]:
    """All values that the plot must reach for one arm."""
    found = row["against_sft"]
    if found["error_reduction"] is None:
        return []
    return [found["error_reduction"], *(found["error_reduction_ci95"] or ()), *by_seed(table, row)]


def line_of(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, words)


def plural(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds > 1 else ''}"
