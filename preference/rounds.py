"""Rounds of stage two: where each lives, what it starts from and asks, and which adapter is the best so far. No ML import."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import count as counted_from
from pathlib import Path

from sft.artefacts import content_hash, file_hash, mark_path, read_parquet
from sft.checkpoint import checkpoint_hash, read_provenance


def round_folder(run: Path, number: int) -> Path:
    """Where a round (from 1) keeps its files."""
    return run / f"round-{number}"


def adapter_of(run: Path, number: int) -> Path:
    """The adapter that a round ends with; round 0 is stage one. Each round starts from the one before."""
    return round_folder(run, number) / "dpo" if number else run / "sft"


def is_finished(run: Path, number: int) -> bool:
    """Whether a round (0: stage one) has ended with an adapter."""
    return mark_path(adapter_of(run, number)).exists()


def consecutive_rounds(run: Path, last: int | None) -> list[int]:
    """The finished rounds from 1 to `last` (None: all), as far as each started from the adapter that the one before ends with
    now, and that was trained with the same inputs then.

    What stands in later folders was made from adapters that are no longer there, with other settings.
    """
    found = []
    for number in counted_from(1) if last is None else range(1, last + 1):
        if not (is_finished(run, number - 1) and is_finished(run, number) and _follows(run, number)):
            break
        found.append(number)
    return found


def _follows(run: Path, number: int) -> bool:
    """Whether a finished round started from what the round before is now: its weights, and what those were trained with.

    Guards can give back the same weights under other settings.
    """
    if read_provenance(adapter_of(run, number)).get("start_checkpoint") != checkpoint_hash(adapter_of(run, number - 1)):
        return False
    return number == 1 or _inputs(run, number).get("before") == inputs_hash(run, number - 1)


def _inputs(run: Path, number: int) -> dict:
    return json.loads(mark_path(adapter_of(run, number)).read_text(encoding="utf-8"))["inputs"]


def inputs_hash(run: Path, number: int) -> str:
    """What identifies the inputs of a finished round's training, and with them those of the rounds before it."""
    return content_hash(_inputs(run, number))[:16]


def is_sampled(run: Path, number: int) -> bool:
    """Whether a round's candidates are finished, and were sampled from the adapter that the round before ends with now."""
    mark, before = mark_path(round_folder(run, number) / "candidates.parquet"), adapter_of(run, number - 1)
    if not (mark.exists() and is_finished(run, number - 1)):
        return False
    return json.loads(mark.read_text(encoding="utf-8"))["inputs"].get("checkpoint") == checkpoint_hash(before)


def round_at_hand(run: Path, rounds: int) -> int:
    """The round that a step alone works on: the first that is not finished, was trained on other pairs than stand there now
    (people's labels can change those of any round), or does not follow from the one before as it is now; the last where there is none.
    """
    return next((number for number in range(1, rounds) if not (is_finished(run, number) and _has_its_pairs(run, number))
                 or (is_finished(run, number - 1) and not _follows(run, number))), rounds)


def _has_its_pairs(run: Path, number: int) -> bool:
    """Whether the pairs of a finished round are those that it was trained on."""
    pairs = round_folder(run, number) / "pairs.parquet"
    return not pairs.exists() or _inputs(run, number).get("pairs") in (None, file_hash(pairs))


def questions_of_round(examples: list[dict], number: int, count: int | None) -> list[dict]:
    """The examples of a round (from 1): the next `count` (None: all) of the list, which begins anew when it runs out.

    Example: a b c d e, two a round -> a b, c d, e a, b c. A round has no example twice.
    """
    count = min(count or len(examples), len(examples))
    first = (number - 1) * count
    return [examples[place % len(examples)] for place in range(first, first + count)]


def always_right(run: Path, number: int) -> set[str]:
    """Ids of the questions all of whose samples were correct in some round before `number`."""
    found: set[str] = set()
    for earlier in range(1, number):
        verdicts = defaultdict(set)
        for row in read_parquet(round_folder(run, earlier) / "verdicts.parquet"):
            verdicts[row["example_id"]].add(row["verdict"])
        found |= {example_id for example_id, kinds in verdicts.items() if kinds == {"correct"}}
    return found


@dataclass(frozen=True)
class Standing:
    """An adapter of a run with what it reached: `measures` (shares 0 to 1) are those of `sft.evaluation`, on dev."""

    name: str
    adapter: Path
    measures: dict
    facts: dict


def standings(run: Path, last: int) -> list[Standing]:
    """Stage one's adapter and those of rounds 1 to `last`, in the order of training; all must be finished."""
    found = []
    for number in range(last + 1):
        adapter = adapter_of(run, number)
        facts = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
        found.append(Standing(f"round {number}" if number else "sft", adapter, facts["dev_after"], facts))
    return found


def best_of(found: list[Standing]) -> Standing:
    """The one with the highest execution accuracy; of equal ones the later."""
    return max(reversed(found), key=lambda standing: standing.measures["execution_accuracy"])
