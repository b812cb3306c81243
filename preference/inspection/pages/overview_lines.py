"""The overview's numbers as the lines that the page shows."""

from __future__ import annotations

from itertools import pairwise

from preference.inspection.sides import CHOICES, stored_label
from preference.report_page.text import percent

PROBLEMS = {
    "duplicates": "Repeated pairs", "gold_fallback": "Gold stands in as chosen", "same_text": "Same text on both sides",
    "opposite": "Stand in both directions", "both_sides": "Chosen here, rejected there",
    "no_prompt": "Without a prompt", "low_kill_score": "Weak databases", "looks_cut": "Look cut off",
    "logp_outliers": "Odd log-probabilities",
}
ONE_SIDED = {"no_wrong_sample": "Questions with only right samples",
             "no_correct_sample": "Questions with only wrong samples"}


def count(store) -> dict:
    """The store's overview, with the agreement where people have said something."""
    counted = store.overview()
    if counted["labels"]["labelled"]:
        from preference.inspection.agreement import measure_agreement  # scipy takes a second to load

        counted["agreement"] = measure_agreement(store)
    return counted


def lines(counted: dict) -> dict:
    """What the template needs beside the numbers: pairs of words and counts, and what each bin holds."""
    named = [(words, counted["problems"].get(name, 0)) for name, words in PROBLEMS.items()]
    named += [(words, counted["one_sided"].get(name, 0)) for name, words in ONE_SIDED.items()]
    return {
        "facts": [(words, found) for words, found in named if found],
        "said": [(_label(label), found) for label, found in counted["labels"]["by_label"]],
        "verdicts": [(f"{side}: {verdict}", found) for side in ("chosen", "rejected")
                     for verdict, found in counted["counts"].get(f"{side}_verdict", [])],
        "judged": [(f"{verdict}: {reason}" if reason else verdict, found)
                   for verdict, reason, found in counted["judged"]],
        "bin_labels": lambda edges: [f"{low:g} to {high:g}" for low, high in pairwise(edges)],
        "agreement": _agreement(counted["agreement"]) if "agreement" in counted else [],
    }


def _label(label: str) -> str:
    """A label in words that hold for all pairs: `prefer_chosen` is "Prefer chosen"."""
    sides = {"A": "chosen", "B": "rejected"}
    for choice, _, words in CHOICES:
        if stored_label(choice, sides) == label:
            return words.replace("Prefer A", "Prefer chosen").replace("Prefer B", "Prefer rejected")
    return label


def _agreement(found: dict) -> list[tuple[str, float, str]]:
    """(who agrees with whom, share, the same in words with its interval)."""
    entries = [("people, executor", found["executor"])]
    if len(found["annotators"]) > 1:
        entries += [(f"{name}, executor", entry) for name, entry in found["annotators"].items()]
    entries += [(f"{left}, {right}", entry) for left, right, entry in found["between"]]
    if len(found["reasons"]) > 1:
        entries += [(f"rejected for {reason}", entry) for reason, entry in found["reasons"].items()]
    shown = []
    for name, entry in entries:
        if entry["n"]:
            low, high = (100 * end for end in entry["share_interval"])
            kappa = "" if entry["kappa"] is None else f", κ {entry['kappa']:.2f}"
            words = f"{percent(entry['share'])} of {entry['n']:,} ({low:.0f} to {high:.0f}){kappa}"
            shown.append((name, entry["share"], words))
    return shown
