"""What people's labels and rankings mean for pairs: keep, exchange the sides, drop, add; majorities and conflicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from preference.inspection.contents import EXCHANGED, exchanged, hashes_of, labels_for
from preference.inspection.labels import Label
from preference.margins import margin_of

HUMAN = "human"
# Words on the question as a whole: none of its pairs can be trusted, unless a person preferred a side of that very pair.
ABOUT_THE_QUESTION = ("gold_wrong", "unanswerable")
_DROPS = ("tie", "both_wrong", *ABOUT_THE_QUESTION)


class Action(NamedTuple):
    """What becomes of a pair: keep, exchange (chosen and rejected change places) or drop. `person_label`: the word on the
    pair as the executor built it; None for a pair that goes with its question.
    """

    what: str
    person_label: str | None
    annotators: tuple[str, ...] = ()


@dataclass
class Revision:
    """`actions`: row number -> Action, for the pairs that people spoke of; `added`: rows made of rankings; `refused`:
    labels whose pair is not there, or has other texts by now; `conflicts`: pairs on which annotators disagree without a
    majority; `quarantined`: questions whose gold is wrong, with who said so; `unused`: why compared queries gave no pair.
    """

    actions: dict[int, Action] = field(default_factory=dict)
    added: list[dict] = field(default_factory=list)
    refused: list[Label] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    quarantined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: Counter = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """How many pairs were confirmed, exchanged, dropped by which word, or added."""
        found = Counter()
        for action in self.actions.values():
            found["confirmed" if action.what == "keep" else "flipped" if action.what == "exchange"
                  else f"dropped: {action.person_label or 'with their question'}"] += 1
        return {**found, "added from rankings": len(self.added), "conflicts": len(self.conflicts),
                "labels refused": len(self.refused), "questions quarantined": len(self.quarantined)}


def majority(words: Iterable[str]) -> tuple[str | None, bool]:
    """(the word that most annotators say, whether they disagree without one); who skips has no say.

    Example: tie, tie, prefer_chosen give (tie, False); tie, prefer_chosen give (None, True); skip gives (None, False).
    """
    ranked = Counter(word for word in words if word != "skip").most_common(2)
    if not ranked:
        return None, False
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return None, True
    return ranked[0][0], False


def on_the_executors_pair(pair: dict, word: str) -> str:
    """A word on a pair's sides as they stand, as the word on the pair that the executor built."""
    return EXCHANGED.get(word, word) if pair.get("person_label") == "prefer_rejected" else word


def revise(pairs: dict[int, dict], labels: dict[str, dict[str, Label]], rankings: dict[str, dict[str, dict[str, int]]],
           queries_of: Callable[[str], list[dict]], prompt_of: Callable[[str], tuple[list | None, dict]]) -> Revision:
    """What labels and rankings make of pairs.

    pairs: row number -> pair, at least those with a label and all of a question with a label or ranking. queries_of:
    distinct queries of a question (`Store.question`). prompt_of: (prompt, further columns) of a question's new rows.
    Applying a revision and revising again changes nothing.
    """
    revision = Revision()
    of_question: dict[str, dict[int, dict]] = defaultdict(dict)
    used: set[tuple[str, str]] = set()
    about: dict[str, tuple[str, tuple[str, ...]]] = {}
    for number, pair in pairs.items():
        if pair.get("example_id") is not None:
            of_question[pair["example_id"]][number] = pair
        if pair["pair_id"] not in labels:
            continue
        held = labels_for(pair, labels[pair["pair_id"]])
        used |= {(pair["pair_id"], annotator) for annotator in held}
        word, conflict = majority(label.label for label in held.values())
        if conflict:
            revision.conflicts.append(pair["pair_id"])
        if word is None:
            continue
        annotators = tuple(sorted(name for name, label in held.items() if label.label == word))
        what = "drop" if word in _DROPS else "exchange" if word == "prefer_rejected" else "keep"
        revision.actions[number] = Action(what, on_the_executors_pair(pair, word), annotators)
        if word in ABOUT_THE_QUESTION and pair.get("example_id"):
            about.setdefault(pair["example_id"], (word, annotators))
    revision.refused = [label for pair_id, held in labels.items() for annotator, label in held.items()
                        if (pair_id, annotator) not in used and label.label != "skip"]
    for example_id, (_, annotators) in about.items():
        for number in of_question[example_id].keys() - revision.actions.keys():
            revision.actions[number] = Action("drop", None, annotators)
    revision.quarantined = {example_id: names for example_id, (word, names) in about.items() if word == "gold_wrong"}
    for example_id in rankings:
        if not rankings[example_id]:
            revision.unused["the question is another one by now"] += 1
        elif example_id not in about:
            _add_ranked(revision, of_question[example_id], example_id, rankings[example_id], queries_of, prompt_of)
    return revision


def _add_ranked(revision: Revision, pairs: dict[int, dict], example_id: str, orders: dict[str, dict[str, int]], queries_of,
                prompt_of) -> None:
    """Pairs of all queries of a question between which the annotators' orders decide (ties and even votes give none).

    Source: Ouyang et al. (2022), section 3.5: all comparisons of a ranking.
    """
    votes: Counter = Counter()
    for ranks in orders.values():
        for left, right in combinations(sorted(ranks), 2):
            votes[left, right] += (ranks[left] < ranks[right]) - (ranks[left] > ranks[right])
    queries = {query["canonical_sql"]: query for query in queries_of(example_id)}
    prompt, further = prompt_of(example_id)
    kept: dict[str, int] = {}
    for number, pair in pairs.items():
        if revision.actions.get(number, _KEEP).what != "drop":
            if pair.get("source") == HUMAN:
                revision.actions[number] = Action("drop", None)  # made anew below, in the order that holds now
                continue
            hashes = hashes_of(pair)
            kept[hashes[revision.actions.get(number, _KEEP).what == "exchange"]] = number
    again = {hashes_of(pair)[0]: number for number, pair in pairs.items() if pair.get("source") == HUMAN}
    for (left, right), balance in sorted(votes.items()):
        if not balance:
            continue
        better, worse = (left, right) if balance > 0 else (right, left)
        if better not in queries or worse not in queries:
            revision.unused["a ranked query is no longer a candidate"] += 1
        elif not (queries[better]["ended_with_eos"] and queries[worse]["ended_with_eos"]):
            revision.unused["a ranked query did not end by itself"] += 1
        elif prompt is None:
            revision.unused["the prompt of the question cannot be made"] += 1
        else:
            row = _ranked_pair(prompt, queries[better], queries[worse]) | further | {"example_id": example_id}
            as_is, turned = hashes_of(row)
            if turned in kept:  # the executor said otherwise
                if kept[turned] in revision.actions:
                    revision.unused["a label on that very pair goes before"] += 1
                    continue
                revision.actions[kept[turned]] = Action("drop", "prefer_rejected", tuple(sorted(orders)))
            if as_is in again:
                revision.actions.pop(again[as_is])
            elif as_is not in kept:
                revision.added.append(row)


_KEEP = Action("keep", None)


def _ranked_pair(prompt: list, better: dict, worse: dict) -> dict:
    from sft.artefacts import content_hash

    row = {"prompt": prompt, **{side: [{"role": "assistant", "content": query["completion"]}]
                                for side, query in (("chosen", better), ("rejected", worse))}}
    row["pair_id"] = content_hash(row)[:16]
    for side, query in (("chosen", better), ("rejected", worse)):
        row |= {f"{side}_{name}": query.get(name) for name in ("sql", "verdict", "reason", "logp_sum")}
        row[f"{side}_sample_index"] = min(query["sample_indices"], default=None)
    return row | {"source": HUMAN, "strategy": "ranked", "weight": 1.0, "margin": 0.0, "gold_fallback": False,
                  "person_label": "prefer_chosen"}


def revised_row(pair: dict, action: Action) -> dict | None:
    """A pair after an action; None where it is dropped.

    The margin of exchanged sides is that of the order they have now: 0 for a correct query that people reject. A pair on which
    people prefer a side does not rest on the executor's word: it weighs 1 where it weighed less.
    """
    if action.what == "drop":
        return None
    if action.what == "exchange":
        pair = exchanged(pair)
        if "margin" in pair:
            pair["margin"] = margin_of(*({name: pair.get(f"{side}_{name}") for name in ("verdict", "reason", "trace")}
                                         for side in ("chosen", "rejected")))
    low = isinstance(pair.get("weight"), float) and pair["weight"] < 1 and action.person_label in EXCHANGED
    weight = {"weight": 1.0} if low else {}
    return pair | weight | {"person_label": action.person_label}


def overturned(pairs: Iterable[dict], labels: dict[str, dict[str, Label]]) -> tuple[int, int]:
    """(pairs of which people prefer the side that the executor rejected, pairs of which they prefer either side)."""
    turned = decided = 0
    for pair in pairs:
        if pair["pair_id"] in labels:
            held = labels_for(pair, labels[pair["pair_id"]])
            word, _ = majority(on_the_executors_pair(pair, label.label) for label in held.values())
            turned += word == "prefer_rejected"
            decided += word in EXCHANGED
    return turned, decided
