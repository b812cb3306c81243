"""How the report writes numbers, and how it makes untrusted text harmless to read."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

LONGEST_TEXT = 20_000  # characters of one text that the page holds
LONGEST_LIST = 50  # items of one list within a trace that the page holds

# Controls, format characters (right-to-left marks, zero-width ones), lone surrogates, private and unassigned code
# points, odd spaces and line separators: what changes how text looks or behaves without being seen.
HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def visible(text: str) -> str:
    """Text with every character that hides itself written out: U+202E becomes ⟨U+202E⟩.

    Plain spaces, tabs and line ends (\\n, \\r\\n) stay. The result holds no lone surrogate, so it can be encoded.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        f"⟨U+{ord(character):04X}⟩"
        if character not in " \t\n" and unicodedata.category(character) in HIDDEN_CATEGORIES
        else character
        for character in text
    )


def embeddable(value: object) -> object:
    """A value from a judge or a model as the page may hold it: visible text, of bounded size, that JSON can carry.

    Integers from 2^53 and floats that JSON lacks (NaN, infinities) become text, because JavaScript would alter them.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        kept = visible(value[:LONGEST_TEXT])
        return kept + (f" … ({len(value) - LONGEST_TEXT:,} more characters)" if len(value) > LONGEST_TEXT else "")
    if isinstance(value, bytes):
        return embeddable("x'" + value[:LONGEST_TEXT].hex() + "'")
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {embeddable(str(key)): embeddable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        kept = [embeddable(item) for item in value[:LONGEST_LIST]]
        return kept + ([f"… ({len(value) - LONGEST_LIST:,} more)"] if len(value) > LONGEST_LIST else [])
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return embeddable(value.tolist())
    return embeddable(str(value))


def percent(share: float | None, signed: bool = False) -> str:
    """A fraction as "61.3 %", with `signed` as "+61.3"; "-" where there is none."""
    if share is None:
        return "-"
    return f"{100 * share:+.1f}" if signed else f"{100 * share:.1f} %"


def p_value(p: float) -> str:
    """McNemar's p as "p = 0.031", or "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def unbroken(words: str) -> str:
    """Words whose "61.3 %" and "p = 0.03" no line end parts."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[=<])|(?<=\bp [=<]) ", "\N{NO-BREAK SPACE}", words)


def chance(p: float) -> str:
    """What a p value says, in words for people who never met one."""
    if p < 0.001:
        return "If the two were equally good, a split this uneven would all but never happen"
    if p < 0.05:
        return f"If the two were equally good, a split this uneven would happen about once in {1 / p:.0f} comparisons"
    return (f"This may well be chance: if the two were equally good, {round(100 * p)} of 100 comparisons "
            "would be at least this uneven")


def paired_sentence(paired: Mapping) -> str:
    """One paired comparison as a sentence about questions gained and lost."""
    before, after = visible(paired["before"]), visible(paired["after"])
    if not paired["gained"] + paired["lost"]:
        return f"{after} is right on exactly the questions that {before} is right on: nothing gained, nothing lost."
    net = paired["gained"] - paired["lost"]
    low, high = paired["ci95"]
    questions = "question" if paired["gained"] == 1 else "questions"
    sentence = (f"{after} gains {paired['gained']:,} {questions} that {before} got wrong and loses {paired['lost']:,} "
                f"that it had right: net {net:+,}, or {percent(paired['difference'], signed=True)} points "
                f"(95 % interval {percent(low, signed=True)} to {percent(high, signed=True)}).")
    reduction = paired["error_reduction"]
    if reduction is not None and abs(reduction) >= 0.0005:
        sentence += f" Errors {'fall' if reduction > 0 else 'grow'} by {percent(abs(reduction))}."
    return sentence


def label(key: str) -> str:
    """A key as a person reads it: "peak_memory_bytes" is "Peak memory" (the unit stands in the value)."""
    words = visible(key)
    for suffix in ("_bytes", "_s"):
        words = words.removesuffix(suffix)
    words = words.replace("_", " ")
    return words[:1].upper() + words[1:]


def quantity(key: str, value: object) -> str:
    """A value as a person reads it, by the unit that its key ends with (_bytes, _s, _share)."""
    if isinstance(value, Mapping):
        before, after = value.get("before"), value.get("after")
        if set(value) == {"before", "after"} and _is_number(before) and _is_number(after):
            change = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
            return f"{quantity(key, before)} → {quantity(key, after)}{change}"
        parts = [f"{label(str(name)).lower()} {quantity(str(name), item)}" for name, item in value.items()]
        return ", ".join(parts) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(quantity(key, item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value):
        return "-" if value is None else visible(str(value))
    if key.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if key.endswith("_share"):
        return f"{100 * value:.2f} %"
    if key.endswith("_s"):
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return f"{hours} h {minutes:02} min"
        return f"{minutes} min {seconds:02} s" if minutes else f"{value:.1f} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
