"""Turns the judged answers of several models into report.json, report.html and a table in the terminal."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preference.report_page import plots, text
from preference.significance import mcnemar, wilson_interval
from sft.artefacts import atomic_path, content_hash
from sft.evaluation import RAN

VERDICTS = ("correct", "wrong", "unclear")
FIGURES_WIDTH = 80  # characters that the terminal's table needs
PAGE_FOLDER = Path(__file__).parent / "report_page"


def summarise(split: str, results: Mapping[str, Sequence[dict]], facts: Mapping) -> dict:
    """The content of report.json.

    Args:
        split: name of the split or file that was scored.
        results: for each model, in the order of training, its judged answers to the same questions in the same order:
            example_id, question, context, gold_sql, kind, completion, sql, verdict, reason, trace, ended_with_eos,
            token_count.
        facts: what else is known of the run (sft, dpo, pairs, training, config, versions); every key may be missing.

    Returns:
        split, n, questions, models, paired, facts. Accuracies are fractions from 0 to 1; `unclear` is the share that counts
        as not correct though it may be right; `failures` counts wrong answers by reason; `right` has a 1 or 0 for each
        question, in the order that `questions`, a hash of their ids, stands for. `paired` compares every model with
        the next ("base_sft") and, from three models on, the first with the last ("base_dpo").

    Raises:
        ValueError: no model, no question, questions that differ between models or repeat, an unknown verdict, or a
            question whose gold is bad.
    """
    _check(results)
    names = list(results)
    right = {name: [row["verdict"] == "correct" for row in rows] for name, rows in results.items()}
    compared = list(pairwise(names)) + ([(names[0], names[-1])] if len(names) > 2 else [])
    paired: dict[str, dict] = {}
    for before, after in compared:
        key = f"{before}_{after}"
        while key in paired:  # a_b and c, a and b_c
            key += "_"
        paired[key] = {"before": before, "after": after, **mcnemar(right[before], right[after])}
    return {
        "split": split,
        "n": len(right[names[0]]),
        "questions": content_hash([row["example_id"] for row in results[names[0]]])[:16],
        "models": {name: _summarise_model(rows) for name, rows in results.items()},
        "paired": paired,
        "facts": _json_safe(facts),
    }


def write_report(folder: Path, summary: dict, results: Mapping[str, Sequence[dict]],
                 facts: Mapping) -> tuple[Path, Path]:
    """Writes report.json and the self-contained report.html into the folder and returns their paths.

    Each file appears whole or not at all; an older one stays until then. NaN and infinities become null in report.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(_json_safe(summary), indent=2, allow_nan=False) + "\n"
    page = render_page(summary, results, facts)
    return _write_whole(folder / "report.json", written), _write_whole(folder / "report.html", page)


def render_page(summary: dict, results: Mapping[str, Sequence[dict]], facts: Mapping) -> str:
    """The page as one HTML text that loads nothing: style, script, plots and the answers as JSON are inside.

    Model text is hostile. It reaches the page either through autoescaping or inside a JSON block without any `<`, and
    the script shows it as text only. A content security policy forbids every other script and every request.
    """
    style, script = ((PAGE_FOLDER / name).read_text("utf-8") for name in ("style.css", "questions.js"))
    environment = Environment(loader=FileSystemLoader(PAGE_FOLDER), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    for function in (text.visible, text.label, text.percent, text.p_value, text.chance, text.paired_sentence,
                     text.unbroken):
        environment.filters[function.__name__] = function
    return environment.get_template("page.html.jinja").render(
        summary=summary,
        names=list(summary["models"]),
        plots=plots,
        curves=plots.training_curves(facts.get("training") or {}),
        fact_groups=_fact_groups(facts),
        documents=[(title, json.dumps(_json_safe(facts[title]), indent=2, ensure_ascii=False))
                   for title in ("config", "versions") if facts.get(title)],
        style=Markup(style),
        script=Markup(script),
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
        answers=Markup(_json_for_html(_answers(summary, results))),
    )


def print_table(summary: dict) -> None:
    """Prints the accuracy table, and below it what each stage gained and lost."""
    table = Table(title=Text(text.visible(f"Execution accuracy on {summary['n']:,} questions ({summary['split']})")),
                  title_justify="left", title_style="bold")
    table.add_column("Model", overflow="fold")
    for heading in ("Accuracy", "95 % interval", "Valid SQL", "Unclear", "EOS", "Tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in summary["models"].items():
        low, high = model["ci95"]
        table.add_row(Text(text.visible(name)), text.percent(model["execution_accuracy"]),
                      f"{100 * low:.1f} to {100 * high:.1f}", text.percent(model["valid_sql"]),
                      text.percent(model["unclear"]), text.percent(model["ended_with_eos"]),
                      f"{model['mean_tokens']:.1f}")
    console = Console()
    Console(width=max(console.width, FIGURES_WIDTH)).print(table)  # in less, rich would cut names off
    for paired in summary["paired"].values():
        console.print(Text(f"{text.paired_sentence(paired)} McNemar's {text.p_value(paired['p'])}."))


def _check(results: Mapping[str, Sequence[dict]]) -> None:
    if not results:
        raise ValueError("The report got no model. It needs the answers of at least one. Pass results={name: rows}.")
    first = next(iter(results))
    expected = [row["example_id"] for row in results[first]]
    if not expected:
        raise ValueError(f"The report got no question for model {first!r}. Accuracy needs at least one. "
                         "Check the split's name and its quarantine.")
    repeated = [example_id for example_id, times in Counter(expected).items() if times > 1]
    if repeated:
        raise ValueError(f"Model {first!r} answers example_id {repeated[0]!r} more than once. Every question counts "
                         "once. Remove the repeated rows.")
    for name, rows in results.items():
        found = [row["example_id"] for row in rows]
        if found != expected:
            at = next(i for i, (one, other) in enumerate(zip_longest(found, expected)) if one != other)
            raise ValueError(
                f"Model {name!r} answers {len(found)} questions and {first!r} {len(expected)}; they part at row {at} "
                f"({found[at:at + 1]} and {expected[at:at + 1]}). All models must answer the same example_ids in the "
                "same order. Score them again on one set.")
        for row in rows:
            if row["verdict"] not in VERDICTS:
                raise ValueError(
                    f"Model {name!r}, example_id {row['example_id']!r}: verdict {row['verdict']!r}. Allowed are "
                    f"{', '.join(VERDICTS)}. Fix the set before any model is scored: leave out questions whose gold is "
                    "bad.")


def _summarise_model(rows: Sequence[dict]) -> dict:
    n = len(rows)
    verdicts = Counter(row["verdict"] for row in rows)
    ran = [row["verdict"] != "wrong" or row["reason"] in RAN for row in rows]
    kinds = Counter(kind for row in rows for kind in set(row["kind"]))
    by_kind = {}
    for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])):
        correct = sum(row["verdict"] == "correct" for row in rows if kind in row["kind"])
        by_kind[kind] = {"n": count, "execution_accuracy": correct / count,
                         "ci95": list(wilson_interval(correct, count))}
    return {
        "execution_accuracy": verdicts["correct"] / n,
        "ci95": list(wilson_interval(verdicts["correct"], n)),
        "valid_sql": sum(ran) / n,
        "unclear": verdicts["unclear"] / n,
        "ended_with_eos": sum(bool(row["ended_with_eos"]) for row in rows) / n,
        "mean_tokens": sum(row["token_count"] for row in rows) / n,
        "right": "".join(str(int(row["verdict"] == "correct")) for row in rows),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "failures": _reasons(rows, "wrong"),
        "unclear_reasons": _reasons(rows, "unclear"),
        "by_kind": by_kind,
    }


def _reasons(rows: Sequence[dict], verdict: str) -> dict[str, int]:
    return dict(Counter(row["reason"] or "unstated" for row in rows if row["verdict"] == verdict).most_common())


def _answers(summary: Mapping, results: Mapping[str, Sequence[dict]]) -> dict:
    """What the script in the page needs: questions with every model's answer; equal contexts are held once."""
    names = list(results)
    found = dict.fromkeys(row["context"] or "" for row in results[names[0]])
    contexts = {context: index for index, context in enumerate(found)}
    questions = []
    for rows in zip(*results.values(), strict=True):
        questions.append({
            "id": str(rows[0]["example_id"]), "question": rows[0]["question"],
            "context": contexts[rows[0]["context"] or ""], "gold": rows[0]["gold_sql"], "kind": list(rows[0]["kind"]),
            "answers": [{
                "sql": row["sql"], "verdict": row["verdict"],
                "reason": (row["reason"] or "unstated") if row["verdict"] != "correct" else row["reason"],
                "trace": row["trace"], "eos": bool(row["ended_with_eos"]), "tokens": row["token_count"],
                # Shown only where it says more than the SQL that was taken from it.
                "completion": None if row["completion"] == row["sql"] else row["completion"],
            } for row in rows],
        })
    # Lists that grow with the data are put together here: `embeddable` bounds every list inside them.
    return {
        "models": [text.visible(name) for name in names],
        "pairs": {text.visible(key): [names.index(paired["before"]), names.index(paired["after"])]
                  for key, paired in summary["paired"].items()},
        "contexts": [text.embeddable(context) for context in contexts],
        "questions": [text.embeddable(question) for question in questions],
    }


def _fact_groups(facts: Mapping) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts as (title, [(label, value), ...]) for every group that has any."""
    groups = []
    for title, group in facts.items():
        if title in {"training", "config", "versions"} or not group:
            continue
        entries = group.items() if isinstance(group, Mapping) else [(title, group)]
        lines = [(text.label(str(key)), text.quantity(str(key), value)) for key, value in entries if value is not None]
        if lines:
            groups.append((text.visible(str(title)), lines))
    return groups


def _json_safe(value: object) -> object:
    """The value with only what JSON has: numpy's numbers as Python's, NaN and infinities as None, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _json_safe(value.tolist()) if hasattr(value, "tolist") else str(value)


def _json_for_html(value: object) -> str:
    """JSON that may stand inside a script element: ASCII, and without the characters that end or open markup."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _content_hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _write_whole(path: Path, content: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")
    return path
