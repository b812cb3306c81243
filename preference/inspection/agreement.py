"""How often people agree with the executor, by reason, and with each other: shares and Cohen's kappa with intervals."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING

from preference.inspection.apply import kept_pairs
from preference.inspection.contents import labels_for, pairs_named
from preference.inspection.decisions import majority, on_the_executors_pair
from preference.significance import wilson_interval

if TYPE_CHECKING:
    from rich.console import Console

    from preference.inspection.store import Store

AGREES = "prefer_chosen"
OVERTURNS = "prefer_rejected"


def cohens_kappa(pairs: Iterable[tuple[str, str]]) -> dict:
    """Agreement of two raters: {"n", "share", "share_interval", "expected", "kappa", "interval"}; None where undefined.

    kappa = (share - expected) / (1 - expected), `expected` being the share in which raters with these habits would agree by
    chance. The 95 % interval takes `expected` as known and moves the share within its Wilson interval, so that it has a width
    at full agreement too.

    Example: (a, a), (a, a), (b, b), (a, b): share 0.75, expected 0.75 * 0.5 + 0.25 * 0.5 = 0.5, kappa 0.5.
    Source: Cohen (1960), A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20:37-46
        (kappa, and the standard error that holds `expected` fixed); Wilson (1927) for the share.
    """
    counts = Counter(pairs)
    n = sum(counts.values())
    if not n:
        return {"n": 0, "share": None, "share_interval": None, "expected": None, "kappa": None, "interval": None}
    agreed = sum(count for (left, right), count in counts.items() if left == right)
    first, second = Counter(), Counter()
    for (left, right), count in counts.items():
        first[left] += count
        second[right] += count
    expected = sum(first[label] * second[label] for label in first) / n**2
    return _with_kappa(n, agreed, expected)


def kappa_with_executor(words: Iterable[str]) -> dict:
    """Agreement of people with the executor, which always says prefer_chosen; as `cohens_kappa` returns it.

    A rater with one answer has kappa 0 whatever the other says. But a pair has no first side: called A and B by lot, the
    executor says A in half of the pairs. Every pair therefore counts with either side as A, and what people would meet by
    chance is 1/2 of the pairs on which they prefer a side (so kappa is 2 * share - 1 where they always do).
    """
    counts = Counter(words)
    n = sum(counts.values())
    if not n:
        return cohens_kappa([])
    return _with_kappa(n, counts[AGREES], 0.5 * (counts[AGREES] + counts[OVERTURNS]) / n)


def _with_kappa(n: int, agreed: int, expected: float) -> dict:
    low, high = wilson_interval(agreed, n)
    found = {"n": n, "share": agreed / n, "share_interval": [low, high], "expected": expected, "kappa": None, "interval": None}
    if expected < 1:
        found["kappa"], *found["interval"] = [(share - expected) / (1 - expected) for share in (agreed / n, low, high)]
    return found


def measure_agreement(store: Store) -> dict:
    """{"executor": all of it, "reasons": {rejected reason: ...}, "annotators": {name: with the executor}, "between": [(name,
    name, ...)], "overturned": share of decided pairs that people overturn, "decided", "conflicts"}.

    With the executor counts one word a pair, the majority of its annotators; pairs without one, and skips, are left out.
    """
    labels = store.labels.latest()
    words: dict[str, str] = {}
    reasons: dict[str, list[str]] = defaultdict(list)
    by_annotator: dict[str, dict[str, str]] = defaultdict(dict)
    conflicts = 0
    for pair in _labelled_pairs(store, labels):
        held = {annotator: on_the_executors_pair(pair, label.label)
                for annotator, label in labels_for(pair, labels[pair["pair_id"]]).items() if label.label != "skip"}
        word, conflict = majority(held.values())
        conflicts += conflict
        if word is not None:
            words[pair["pair_id"]] = word
            side = "chosen" if pair.get("person_label") == OVERTURNS else "rejected"
            reasons[pair.get(f"{side}_reason") or "unknown"].append(word)
        for annotator, said in held.items():
            by_annotator[annotator][pair["pair_id"]] = said
    between = [(left, right, cohens_kappa((by_annotator[left][pair_id], by_annotator[right][pair_id])
                                          for pair_id in by_annotator[left].keys() & by_annotator[right].keys()))
               for left, right in combinations(sorted(by_annotator), 2)]
    decided = Counter(words.values())
    count = decided[AGREES] + decided[OVERTURNS]
    return {
        "executor": kappa_with_executor(words.values()), "words": dict(decided.most_common()),
        "reasons": {reason: kappa_with_executor(said) for reason, said in sorted(reasons.items(), key=lambda item: -len(item[1]))},
        "annotators": {name: kappa_with_executor(said.values()) for name, said in sorted(by_annotator.items())},
        "between": [entry for entry in between if entry[2]["n"]],
        "overturned": decided[OVERTURNS] / count if count else None, "decided": count,
        "overturned_interval": list(wilson_interval(decided[OVERTURNS], count)), "conflicts": conflicts,
    }


def _labelled_pairs(store: Store, labels: dict) -> Iterable[dict]:
    """The pairs that have labels, with all their columns; one of each id, from the file where `apply` kept it if need be."""
    seen: set[str] = set()
    for pair in pairs_named(store, labels, texts_only=False):
        if pair["pair_id"] not in seen:
            seen.add(pair["pair_id"])
            yield pair
    yield from kept_pairs(store, set(labels) - seen).values()


def print_agreement(store: Store, as_json: bool, console: Console) -> None:
    """Print the agreement as a table, or as JSON for machines."""
    found = measure_agreement(store)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found["executor"]["n"] and not found["conflicts"]:
        raise ValueError(f"there are no labels on these pairs in {store.labels_path}. Needed is at least one. Label first: "
                         f"inspect-preferences serve {store.files.named}")
    from rich.table import Table
    from rich.text import Text

    from preference.inspection.terminal import one_line

    table = Table(title=Text("Agreement", style="bold"), title_justify="left")
    table.add_column("", overflow="fold")  # names give way, figures do not
    for heading in ("pairs", "agree", "95 %", "kappa", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)

    def line(name: Text, entry: dict) -> None:
        if not entry["n"]:
            return
        interval = "{:.1f} to {:.1f}".format(*(100 * end for end in entry["share_interval"]))
        kappa = ("-", "-") if entry["kappa"] is None else (f"{entry['kappa']:.2f}", "{:.2f} to {:.2f}".format(*entry["interval"]))
        table.add_row(name, f"{entry['n']:,}", f"{100 * entry['share']:.1f} %", interval, *kappa)

    line(Text("people and executor", style="bold"), found["executor"])
    for reason, entry in found["reasons"].items():
        line(Text("  rejected: ").append_text(one_line(reason, 40)), entry)
    for name, entry in found["annotators"].items():
        line(one_line(name, 40).append(" and executor"), entry)
    for left, right, entry in found["between"]:
        line(one_line(left, 40).append(" and ").append_text(one_line(right, 40)), entry)
    console.print(table)
    if found["decided"]:
        low, high = (100 * end for end in found["overturned_interval"])
        console.print(f"overturned: {100 * found['overturned']:.1f} % of {found['decided']:,} decided pairs (95 % interval {low:.1f} "
                      f"to {high:.1f}); `label_noise: from-labels` hands this share to training", markup=False)
    if found["conflicts"]:
        console.print(f"{found['conflicts']:,} pairs on which annotators disagree without a majority", markup=False)
