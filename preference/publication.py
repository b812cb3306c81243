"""What stage two says and publishes at a round's end: the best adapter so far, on development questions."""

from __future__ import annotations

import shutil
from pathlib import Path

from preference.pairs import why_dropped
from preference.rounds import Standing, best_of, consecutive_rounds, round_folder, standings
from sft import ranks
from sft.artefacts import read_parquet
from sft.checkpoint import checkpoint_hash, is_adapter


def publish_best(folder: Path, last: int | None, *, show: bool) -> None:
    """Copy the best adapter of SFT and the rounds up to `last` (None: all) to RUN/best: by development accuracy, of equal ones
    the later.

    Only rounds that follow from each other count. Nothing is copied where that adapter stands there already. `show`: print a
    line for each.
    """
    if ranks.is_main():
        found, target = standings(folder, len(consecutive_rounds(folder, last))), folder / "best"
        best = best_of(found)
        if not is_adapter(target) or checkpoint_hash(target) != checkpoint_hash(best.adapter):
            publish(best.adapter, target)
        if show:
            print(f"development questions (n = {found[0].measures['n']}), greedy; published in {target}: {best.name}")
            print("\n".join(map(line, found)))
    ranks.barrier()


def line(standing: Standing) -> str:
    """What an adapter reached on development questions, and what it was trained on."""
    measures, facts = standing.measures, standing.facts
    trained = f", {facts['pairs']} pairs, {facts['steps']} steps" if "pairs" in facts else ""
    return (f"  {standing.name:<8} {measures['execution_accuracy']:>6.1%} correct, valid SQL {measures['valid_sql']:.1%}, "
            f"ends with EOS {measures['ended_with_eos']:.1%}{trained}")


def say_without_pairs(folder: Path, number: int) -> None:
    """Say that a round has nothing to learn from, and why. Raises ValueError for the first: then there is no DPO at all."""
    place = round_folder(folder, number)
    dropped = read_parquet(place / "dropped.parquet")
    message = (f"round {number} has no pairs: {place / 'pairs.parquet'} is empty ({why_dropped([], dropped)}). A pair needs a "
               "correct and a wrong query of one question. Sample more questions, more often or at another temperature "
               "(sample.questions, samples, most_samples, temperature, with --overwrite).")
    for reason, key in (("unbalanced", "pairs.balance_structure=false"), ("low_kill_score", "a lower pairs.min_kill_score")):
        if any(row["reason"] == reason for row in dropped):
            message += f" Pairs that there were are left out as {reason}: {key} keeps them."
    if number == 1:
        raise ValueError(message)
    if ranks.is_main():
        print(f"{message}\nThere is nothing more to learn: no later round is begun.")


def publish(adapter: Path, target: Path) -> None:
    """Copy an adapter's own files to `target`; what stood there is replaced only once the copy is whole."""
    copy = target.with_name(f".{target.name}.new")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(adapter, copy, ignore=shutil.ignore_patterns("complete.json", "begun.json", "checkpoints", "last",
                                                                  "tensorboard"))
    shutil.rmtree(target, ignore_errors=True)
    copy.rename(target)
