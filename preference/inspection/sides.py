"""What stands as A and as B: chosen and rejected, or, in blind mode, an order that a person cannot know."""

from __future__ import annotations

import hashlib

# A form's word, its key, what the button says. Where the form speaks of A and B, the label file says chosen and rejected.
CHOICES = (
    ("prefer_a", "a", "Prefer A"),
    ("prefer_b", "b", "Prefer B"),
    ("tie", "t", "Tie"),
    ("both_wrong", "w", "Both wrong"),
    ("gold_wrong", "g", "Gold wrong"),
    ("unanswerable", "q", "Cannot be answered"),
    ("skip", "s", "Skip"),
)


def letters(pair_id: str, annotator: str, blind: bool) -> dict[str, str]:
    """{"A": "chosen", "B": "rejected"}; in blind mode the other way round for half of the pairs.

    Which half follows from the pair and the annotator, so that a reload shows the same order and two people see
    different ones.
    """
    swapped = blind and hashlib.sha256(f"{annotator}\0{pair_id}".encode("utf-8", "replace")).digest()[0] & 1
    return {"A": "rejected", "B": "chosen"} if swapped else {"A": "chosen", "B": "rejected"}


def stored_label(choice: str, sides: dict[str, str]) -> str:
    """A form's word as the label file keeps it: `prefer_a` becomes `prefer_chosen` or `prefer_rejected`."""
    side = {"prefer_a": sides["A"], "prefer_b": sides["B"]}.get(choice)
    return f"prefer_{side}" if side else choice


def label_words(label: str, sides: dict[str, str]) -> str:
    """A label of the file in the words of the page: `prefer_rejected` becomes "Prefer A" or "Prefer B"."""
    choices = {stored_label(choice, sides): words for choice, _, words in CHOICES}
    return choices.get(label, label)
