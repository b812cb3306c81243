"""What people said, handed to training: pairs that are built with their labels, and the share that they overturned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from preference.inspection.apply import dropped_entries, quarantine, say
from preference.inspection.contents import EXCHANGED, labels_for
from preference.inspection.decisions import ABOUT_THE_QUESTION, majority, overturned, revise, revised_row
from preference.inspection.labels import LabelFile
from preference.inspection.question import distinct_queries, ranks_for
from preference.rounds import round_folder
from preference.significance import wilson_interval
from sft.artefacts import read_parquet
from sft.prompt import render

LABELS = "labels.sqlite"
_OF_THE_SAMPLES = ("round", "seed", "checkpoint_hash", "prompt_hash")
_OF_THE_VERDICTS = ("suite_hash", "kill_score")
_OF_THE_EXAMPLE = ("question", "context", "database", "gold_sql", "kind")


def with_peoples_words(pairs: list[dict], dropped: list[dict], run: Path, examples: list[dict], candidates: list[dict],
                       verdicts: list[dict], schema_style: str) -> tuple[list[dict], list[dict]]:
    """Pairs and dropped rows as `preference.pairs.build_pairs` gives them, with people's word above the executor's.

    RUN/labels.sqlite is only read. Without one everything stays as it is.
    """
    if not (run / LABELS).exists():
        return pairs, dropped
    file = LabelFile(run / LABELS)
    labels, rankings = file.latest(), file.rankings()
    file.close()
    asked = {example["example_id"]: example for example in examples}
    # What is said of the pairs and questions of other rounds holds there.
    others = [place for place in run.glob("round-*") if place.name not in {f"round-{row['round']}" for row in candidates}]
    elsewhere = _asked_in(others) if rankings.keys() - asked.keys() else set()
    rankings = {name: ranks_for(asked.get(name), orders) for name, orders in rankings.items() if name in asked or name not in elsewhere}
    samples, judged = defaultdict(list), defaultdict(dict)
    for row in candidates:
        if row["example_id"] in rankings:
            samples[row["example_id"]].append(row)
    for row in verdicts:
        if row["example_id"] in rankings:
            judged[row["example_id"]][row["canonical_sql"]] = row

    def prompt_of(example_id: str) -> tuple[list | None, dict]:
        if example_id not in asked or not samples[example_id]:
            return None, {}
        example, sample = asked[example_id], samples[example_id][0]
        verdict = next(iter(judged[example_id].values()), {})
        return render(example, schema_style), {
            **{name: example[name] for name in _OF_THE_EXAMPLE}, **{name: sample[name] for name in _OF_THE_SAMPLES},
            **{name: verdict.get(name) for name in _OF_THE_VERDICTS}}

    numbered = dict(enumerate(pairs))
    revision = revise(numbered, labels, rankings, lambda name: distinct_queries(samples[name], judged[name]), prompt_of)
    made = _made_in(others) if revision.refused else set()
    revision.refused = [label for label in revision.refused if label.pair_id not in made]
    quarantine(run / "data", revision, numbered)
    print(f"{run / LABELS}: people's word goes above the executor's")
    say(revision, Console(highlight=False))
    gone = [pairs[number] | {"action": action} for number, action in revision.actions.items() if action.what == "drop"]
    kept = [row if number not in revision.actions else revised_row(row, revision.actions[number])
            for number, row in numbered.items()]
    return [row for row in kept if row is not None] + revision.added, dropped + dropped_entries(gone)


def _asked_in(rounds: list[Path]) -> set[str]:
    """Ids of the questions that were sampled in the folders of rounds."""
    return {row["example_id"] for place in rounds if (file := place / "candidates.parquet").exists()
            for row in read_parquet(file, ["example_id"])}


def _made_in(rounds: list[Path]) -> set[str]:
    """Ids of the pairs of the folders of rounds, and of those that people's words have dropped from them."""
    found = {pair["pair_id"] for place in rounds if (file := place / "pairs.parquet").exists()
             for pair in read_parquet(file, ["pair_id"])}
    return found | {row["detail"].removeprefix("pair ").partition(":")[0] for place in rounds
                    if (file := place / "dropped.parquet").exists()
                    for row in read_parquet(file) if row["reason"].startswith("person_")}


def preferred_by_people(run: Path) -> Callable[[dict], bool]:
    """A function that says of a pair whether people, by majority, prefer one of its sides; RUN/labels.sqlite is only read.

    Such a pair does not rest on the executor's verdicts, and so neither on how many mistakes their databases tell apart.
    """
    if not (run / LABELS).exists():
        return lambda pair: False
    file = LabelFile(run / LABELS)
    labels = file.latest()
    file.close()

    def preferred(pair: dict) -> bool:
        word, _ = majority(label.label for label in labels_for(pair, labels.get(pair["pair_id"], {})).values())
        return word in EXCHANGED

    return preferred


def refused_questions(run: Path, number: int) -> set[str]:
    """Ids of the questions that rounds before `number` asked and people refuse: gold is wrong, or it cannot be answered.

    Counted are majorities. Words that are in the pairs already stand in dropped.parquet; others are on pairs as they stand.
    """
    file = LabelFile(run / LABELS)
    labels = file.latest() if file.path.exists() else {}
    file.close()
    found = set()
    for earlier in range(1, number):
        place = round_folder(run, earlier)
        found |= {row["example_id"] for row in read_parquet(place / "dropped.parquet")
                  if row["reason"].removeprefix("person_") in ABOUT_THE_QUESTION}
        for pair in read_parquet(place / "pairs.parquet") if labels else ():
            held = labels_for(pair, labels[pair["pair_id"]]) if pair["pair_id"] in labels else {}
            if majority(label.label for label in held.values())[0] in ABOUT_THE_QUESTION:
                found.add(pair["example_id"])
    return found


def label_smoothing(label_noise: float | str, pairs_files: list[Path], labels_file: Path) -> float:
    """The share of wrong pairs to assume: the number itself, or for `from-labels` the share that people overturned.

    `pairs_files`: those of the round and of the ones before it, since nobody can have looked at a round's pairs while the run
    goes on. Counted are pairs on which a majority prefers a side. Raises ValueError where there is none, or where people
    overturn half of them or more: then the pairs teach the opposite, and no loss can help.
    """
    if label_noise != "from-labels":
        return float(label_noise)
    file = LabelFile(labels_file)
    labels = file.latest()
    file.close()
    # What was dropped is not needed: those words prefer neither side.
    # A round that asks a question again can make a pair again: it counts once.
    pairs = {pair["pair_id"]: pair for file in pairs_files for pair in read_parquet(file) if pair["pair_id"] in labels}
    turned, decided = overturned(pairs.values(), labels)
    if not decided:
        raise ValueError(f"train.label_noise is from-labels, but {labels_file} prefers a side of no pair in "
                         f"{', '.join(map(str, pairs_files))}. Needed is at least one such label. Label with inspect-preferences serve, or give a number or null.")
    share, (low, high) = turned / decided, wilson_interval(turned, decided)
    if share >= 0.5:
        raise ValueError(f"people overturned {turned} of {decided} pairs. Allowed is less than half: as they stand the pairs teach "
                         "the opposite. Look at them (inspect-preferences agreement) before training on them.")
    print(f"label noise: people overturned {turned} of {decided} pairs, {share:.1%} (95 % interval {low:.1%} to {high:.1%}): "
          f"label_smoothing {share:.4f}")
    return share
