"""The overview's plots: bars as rows of a table and histograms as SVG, drawn here so that they need no script.

Positions are percentages and colours are classes, as in the report's page, so one drawing fits every width.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup


def bar(share: float, series: int = 1) -> Markup:
    """One share of the largest bar, 0 to 1; the number stands beside it as text."""
    return Markup('<svg class="track" height="14" aria-hidden="true"><rect class="series-{}" y="2" width="{:.2f}%" '
                  'height="10" rx="2"/></svg>').format(series, max(100 * share, 0.4 if share else 0))


def histogram(series: Sequence[Sequence[int]], labels: Sequence[str], first_series: int = 1) -> Markup:
    """Counts of equal bins as columns, those of several series side by side; `labels` says what each bin holds."""
    largest = max((count for counts in series for count in counts), default=0) or 1
    bins = len(labels)
    slot = 100 / max(bins, 1)
    width = 0.86 * slot / len(series)
    columns = []
    for number, counts in enumerate(series):
        for index, count in enumerate(counts):
            x, height = index * slot + 0.07 * slot + number * width, 100 * count / largest
            columns.append(Markup('<rect class="series-{}" x="{:.3f}%" y="{:.2f}%" width="{:.3f}%" height="{:.2f}%">'
                                  '<title>{}: {:,}</title></rect>').format(
                number + first_series, x, 100 - height, width, height, labels[index], count))
    return Markup('<svg class="histogram" aria-hidden="true">{}'
                  '<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/></svg>').format(Markup("").join(columns))
