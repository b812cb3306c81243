"""What a pair says, as Python values: the hash of its texts, its sides exchanged, labels seen from the side it has now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from preference.inspection.index import KIND_SEPARATOR
from preference.inspection.labels import Label

if TYPE_CHECKING:
    from preference.inspection.store import Store

EXCHANGED = {"prefer_chosen": "prefer_rejected", "prefer_rejected": "prefer_chosen"}


def hash_of(pair: dict) -> str:
    """The hash of what a person sees of a pair: prompt, chosen and rejected text. It is the id that preference.pairs
    gives.
    """
    from sft.artefacts import content_hash

    texts = {"prompt": pair.get("prompt")}
    texts |= {side: pair[side] if pair.get(side) is not None else pair.get(f"{side}_sql") for side in ("chosen", "rejected")}
    return content_hash(texts)[:16]


def exchanged(pair: dict) -> dict:
    """The pair with chosen and rejected exchanged in all its columns."""
    turned = dict(pair)
    for name in pair:
        if name == "chosen" or name.startswith("chosen_"):
            other = "rejected" + name.removeprefix("chosen")
            if other in pair:
                turned[name], turned[other] = pair[other], pair[name]
    return turned


def hashes_of(pair: dict) -> tuple[str, str]:
    """The hash of a pair's texts as they stand, and as they would with the sides exchanged."""
    return hash_of(pair), hash_of(exchanged(pair))


def labels_for(pair: dict, labels: dict[str, Label]) -> dict[str, Label]:
    """The labels that were meant for these texts, as words on the sides as they stand now.

    A label names the hash of the texts that its annotator saw. Where `apply` has exchanged the sides since, its
    prefer_rejected means the text that is now chosen. Labels on other texts are left out.
    """
    as_is, turned = hashes_of(pair)
    held = {}
    for annotator, label in labels.items():
        if label.content_hash == as_is:
            held[annotator] = label
        elif label.content_hash == turned:
            held[annotator] = label._replace(label=EXCHANGED.get(label.label, label.label))
    return held


def pairs_named(store: Store, pair_ids: Iterable[str], *, texts_only: bool) -> Iterator[dict]:
    """Whole rows of the pairs with these ids, or only what their content hash covers; a thousand are read at once."""
    wanted = sorted(pair_ids)
    for start in range(0, len(wanted), 1000):
        part = wanted[start:start + 1000]
        places = store.rows(f"SELECT file, file_row, pair_id FROM store.pairs WHERE pair_id IN ({', '.join('?' * len(part))}) "
                            "ORDER BY file, file_row", part)
        for number in sorted({place["file"] for place in places}):
            mine = [place for place in places if place["file"] == number]
            rows = store.whole(number, [place["file_row"] for place in mine], texts_only=texts_only)
            for place, pair in zip(mine, rows, strict=True):
                yield pair | {"pair_id": place["pair_id"]}


def kinds(joined: str | None) -> list[str]:
    """The kinds of a query as the index joins them."""
    return joined.split(KIND_SEPARATOR) if joined else []


def trace(text: object) -> dict | None:
    """A judge's trace as a dictionary; under `text` what is none."""
    if text is None or isinstance(text, dict):
        return text
    try:
        found = json.loads(text)
        return found if isinstance(found, dict) else {"text": str(text)}
    except (TypeError, ValueError, RecursionError):
        return {"text": str(text)}


def database_path(path: object, run: Path | None) -> str | None:
    """A pair's database where it is now: as named, else of that name in the run's folder (which may have moved)."""
    if not isinstance(path, str) or not path:
        return None
    if run is not None and not Path(path).is_file():
        for place in (run / "data" / path, run / "data" / "databases" / Path(path).name):
            if place.is_file():
                return str(place.resolve())
    return path
