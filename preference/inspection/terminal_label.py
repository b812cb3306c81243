"""`inspect-preferences label`: the page's keys in a terminal, for machines without a browser."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.text import Text

from preference.inspection.conditions import filter_condition
from preference.inspection.show import print_question, print_reasons, print_sides
from preference.inspection.sides import CHOICES, label_words, letters, stored_label

if TYPE_CHECKING:
    from rich.console import Console

    from preference.inspection.store import Store

_FURTHER = {"u": "undo", "c": "comment", "n": "next", "p": "previous", "x": "end"}


def label_pairs(store: Store, annotator: str, filters: dict[str, str], blind: bool, console: Console) -> None:
    """Show pair after pair and keep each word at once; without a `labelled` filter those that this annotator has not labelled.

    Keys are read one by one from a terminal, line by line from a pipe; the end of the input ends it.
    """
    if store.kind != "pairs":
        raise ValueError(f"{store.files.named} holds candidates, not pairs. `label` compares two sides. Rank candidates on the "
                         "page: inspect-preferences serve.")
    filter_condition(filters)
    pair_id = _first(store, annotator, filters)
    if pair_id is None:
        console.print("there is nothing to label: no pair fits, or all that fit have your word", markup=False)
    count = 0
    while pair_id is not None:
        pair = store.pair(pair_id)
        sides = letters(pair_id, annotator, blind)
        _show(pair, sides, blind, annotator, console)
        key = _read_key(console)
        choice = next((name for name, own, _ in CHOICES if own == key), None)
        following = store.neighbours(pair_id, filters)
        if choice is not None:
            store.labels.add(pair_id, annotator, stored_label(choice, sides), content_hash=pair["content_hash"])
            count += 1
            console.print(Text(f"kept: {label_words(stored_label(choice, sides), sides)}", style="green"))
            pair_id = _unlabelled_from(store, following[1] or None, annotator, filters)
        elif key == "u":
            undone = store.labels.undo(annotator)
            console.print("nothing to undo" if undone is None else f"taken back: {undone.label if not blind else 'your label'} on "
                          f"{undone.pair_id}", markup=False)
            if undone is not None and store.pair(undone.pair_id) is not None:
                pair_id = undone.pair_id
        elif key == "c":
            comment = _read_line(console, "comment: ")
            if comment.strip():
                store.labels.comment(pair_id, annotator, comment.strip(), pair["content_hash"])
        elif key in ("n", "p"):
            pair_id = following[key == "n"] or pair_id
        elif key in ("x", ""):
            break
        else:
            console.print(f"{key!r} is no key; allowed are {', '.join([own for _, own, _ in CHOICES] + list(_FURTHER))}",
                          markup=False)
    console.print(f"{count:,} labels in {store.labels_path}", markup=False, soft_wrap=True)


def _first(store: Store, annotator: str, filters: dict[str, str]) -> str | None:
    _, rows = store.page(filters, limit=1)
    return _unlabelled_from(store, rows[0]["pair_id"], annotator, filters) if rows else None


def _unlabelled_from(store: Store, pair_id: str | None, annotator: str, filters: dict[str, str]) -> str | None:
    """This pair, or the next one in the list that has no word of the annotator yet."""
    while pair_id is not None and filters.get("labelled") != "yes" and _has_word(store, pair_id, annotator):
        pair_id = store.neighbours(pair_id, filters)[1]
    return pair_id


def _has_word(store: Store, pair_id: str, annotator: str) -> bool:
    label = store.labels.of(pair_id).get(annotator)
    # A label whose hash is the pair's id needs no look at the texts.
    return label is not None and (label.content_hash == pair_id or annotator in store.pair(pair_id)["labels"])


def _show(pair: dict, sides: dict[str, str], blind: bool, annotator: str, console: Console) -> None:
    console.rule()
    print_question(pair, console, blind)
    print_sides(pair, console, {side: f"{letter}" + ("" if blind else f" ({side})") for letter, side in sides.items()}, blind)
    if not blind:
        print_reasons(pair, console)
    if annotator in pair["labels"]:
        console.print(Text(f"your word: {label_words(pair['labels'][annotator].label, sides)}", style="italic"))


def _read_key(console: Console) -> str:
    keys = "  ".join([f"[{own}] {words}" for _, own, words in CHOICES] + [f"[{key}] {words}" for key, words in _FURTHER.items()])
    console.print(Text(keys, style="bold"))
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip().lower() or ("" if not line else "\n")
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)  # drops what was typed before the pair was there
        # Past sys.stdin, which would hand out an arrow key (ESC [ A) as three keys, the last of them `a`.
        typed = os.read(sys.stdin.fileno(), 64).decode("utf-8", "replace").lower()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    if typed.startswith("\x1b"):
        return typed
    return "" if typed[:1] == "\x04" else typed[:1]


def _read_line(console: Console, prompt: str) -> str:
    console.print(Text(prompt), end="")
    return sys.stdin.readline()
