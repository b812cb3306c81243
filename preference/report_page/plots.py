"""The report's plots as inline SVG, and the round values of their scales.

Horizontal positions are percentages and colours are classes (`series-0`, `reason-0`), so one drawing fits every width
and both colour schemes. Text stands beside the drawings as HTML, where it keeps its size and can be selected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from preference.report_page.text import percent, visible

SERIES_COLOURS = 6  # series-0 to series-5 in style.css
REASON_COLOURS = 10  # reason-0 to reason-9
MARKER_PATHS = (  # one shape for each model besides its colour, drawn around (0, 0)
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.7L5.7 0L0 5.7L-5.7 0z",
    "M0 -5.2L5.2 4.2H-5.2z",
    "M0 5.2L5.2 -4.2H-5.2z",
    "M-5 -1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",
)
# What is worth a curve: stage, title, TRL's names of the lines, the value at which nothing has been learned.
CURVES = (
    ("sft", "SFT loss", ("loss", "eval_loss"), None),
    ("sft", "SFT accuracy on development questions", ("dev_execution_accuracy",), None),
    ("dpo", "DPO loss (starts at ln 2)", ("loss", "eval_loss"), math.log(2)),
    ("dpo", "DPO reward margin", ("rewards/margins",), 0.0),
    ("dpo", "DPO pairs ranked right", ("rewards/accuracies",), 0.5),
    ("dpo", "DPO log-probabilities (nats)", ("logps/chosen", "logps/rejected"), None),
    ("dpo", "DPO accuracy on development questions", ("dev_execution_accuracy",), None),
    ("guards", "Guards: shares of development questions", ("execution_accuracy", "valid_sql", "ended_with_eos"), None),
    ("guards", "Guards: log-probabilities (nats a token)", ("chosen_logp", "rejected_logp"), None),
    ("guards", "Guards: reward margin of fixed pairs", ("margin",), 0.0),
    ("guards", "Guards: length of answers (tokens)", ("mean_tokens",), None),
    ("guards", "Guards: share of repeated answers", ("duplicates",), None),
)


def marker(index: int) -> Markup:
    """The model's mark, as it stands in legends and table heads."""
    return Markup('<svg class="marker" width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">'
                  '<path class="series-{}" d="{}"/></svg>').format(index % SERIES_COLOURS,
                                                                  MARKER_PATHS[index % len(MARKER_PATHS)])


def interval(share: float, low: float, high: float, index: int) -> Markup:
    """One share from 0 to 100 % as a bar with its interval as a whisker."""
    x, x_low, x_high = (f"{100 * value:.2f}%" for value in (share, low, high))
    return Markup(
        '<svg class="track" height="24" role="img" aria-label="{} (95 % interval {} to {})">{}'
        '<rect class="series-{} soft" x="0" y="5" width="{}" height="14" rx="2"/>'
        '<line class="whisker" x1="{}" x2="{}" y1="12" y2="12"/>'
        '<line class="whisker" x1="{}" x2="{}" y1="8" y2="16"/>'
        '<line class="whisker" x1="{}" x2="{}" y1="8" y2="16"/></svg>'
    ).format(percent(share), percent(low), percent(high), _grid(), index % SERIES_COLOURS, x,
             x_low, x_high, x_low, x_low, x_high, x_high)


def dots(shares: Sequence[float]) -> Markup:
    """The models' shares on one line from 0 to 100 %, joined from first to last model by a thin line."""
    steps = Markup("").join(
        Markup('<line class="step" x1="{:.2f}%" x2="{:.2f}%" y1="12" y2="12"/>').format(100 * before, 100 * after)
        for before, after in pairwise(shares))
    marks = Markup("").join(
        Markup('<svg x="{:.2f}%" y="12" overflow="visible"><path class="series-{} edged" d="{}"/></svg>').format(
            100 * share, index % SERIES_COLOURS, MARKER_PATHS[index % len(MARKER_PATHS)])
        for index, share in enumerate(shares))
    return Markup('<svg class="track" height="24" role="img" aria-label="{}">{}{}{}</svg>').format(
        " to ".join(percent(share) for share in shares), _grid(), steps, marks)


def kind_shares(models: Mapping[str, Mapping], kind: str) -> list[float]:
    """Every model's accuracy on one kind of question."""
    return [model["by_kind"][kind]["execution_accuracy"] for model in models.values()]


def stack(counts: Mapping[str, int], reasons: Sequence[str], n: int) -> Markup:
    """A model's failures as one bar of parts, one a reason; the full width is all n questions."""
    parts, start = [], 0.0
    for index, reason in enumerate(reasons):
        width = 100 * counts.get(reason, 0) / n
        if width:
            parts.append(Markup('<rect class="reason-{}" x="{:.3f}%" y="4" width="{:.3f}%" height="16">'
                                '<title>{}: {}</title></rect>').format(
                index % REASON_COLOURS, start, width, visible(reason), counts[reason]))
        start += width
    return Markup('<svg class="track" height="24" role="img" aria-label="{} of {} questions failed">{}{}</svg>').format(
        sum(counts.values()), n, _grid(), Markup("").join(parts))


def failure_counts(models: Mapping[str, Mapping]) -> tuple[list[str], dict[str, dict[str, int]]]:
    """All reasons, most frequent first, and each model's counts of them; unclear answers come last as one."""
    counts = {name: dict(model["failures"]) for name, model in models.items()}
    reasons = {reason for model in counts.values() for reason in model}
    ordered = sorted(reasons, key=lambda reason: (-sum(model.get(reason, 0) for model in counts.values()), reason))
    if any(model["verdicts"]["unclear"] for model in models.values()):
        ordered.append("(unclear)")
        for name, model in models.items():
            counts[name]["(unclear)"] = model["verdicts"]["unclear"]
    return ordered, counts


def training_curves(training: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """What the template needs for every curve that the training logs hold: title, lines and drawing."""
    curves = []
    for stage, title, keys, reference in CURVES:
        lines = []
        for key in keys:
            points = [(row["step"], row[key]) for row in training.get(stage) or []
                      if _finite(row.get("step")) and _finite(row.get(key))]
            if points:
                lines.append((key, points))
        if lines:
            curves.append({"title": title, **_curve(lines, reference)})
    return curves


def _curve(lines: Sequence[tuple[str, list[tuple[float, float]]]], reference: float | None) -> dict:
    values = [value for _, points in lines for _, value in points] + ([] if reference is None else [reference])
    steps = [step for _, points in lines for step, _ in points]
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]
    first, last = min(steps), max(steps)

    def place(step: float, value: float) -> tuple[float, float]:
        return (100 * (step - first) / (last - first) if last > first else 50.0), 100 * (high - value) / (high - low)

    drawing = [Markup('<line class="grid" x1="0" x2="100" y1="{0:.2f}" y2="{0:.2f}"/>').format(place(first, tick)[1])
               for tick in marks]
    if reference is not None:
        drawing.append(Markup('<line class="reference" x1="0" x2="100" y1="{0:.2f}" y2="{0:.2f}"/>').format(
            place(first, reference)[1]))
    for index, (_, points) in enumerate(lines):
        path = " ".join("{:.2f},{:.2f}".format(*place(*point)) for point in points)
        if len(points) == 1:  # a path of no length with round ends draws a dot
            path += " " + path
        drawing.append(Markup('<polyline class="line-{}{}" points="{}"/>').format(
            index, " dot" if len(points) == 1 else "", path))
    summary = "; ".join(f"{key} from {_short(points[0][1])} to {_short(points[-1][1])}" for key, points in lines)
    return {
        "lines": [{"name": visible(key), "first": _short(points[0][1]), "last": _short(points[-1][1])}
                  for key, points in lines],
        "ticks": [(_short(tick), f"{place(first, tick)[1]:.2f}") for tick in marks],
        "first_step": f"{first:,g}", "last_step": f"{last:,g}",
        "drawing": Markup('<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
                          'aria-label="{}">{}</svg>').format(summary, Markup("").join(drawing)),
    }


def ticks(low: float, high: float) -> list[float]:
    """Three to six round values that enclose low and high; 0.12 and 0.68 give 0, 0.2, 0.4, 0.6, 0.8."""
    if low == high:
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [tick * step for tick in range(first, last + 1)]


def _grid() -> Markup:
    return Markup("").join(Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="24"/>').format(at)
                           for at in (0, 25, 50, 75, 100))


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1e-9 else "0"


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
