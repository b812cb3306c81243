"""Results of control arms: one JSON file for each arm and seed, and what those files say together (shown by `preference.arm_table`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from preference.rounds import adapter_of, consecutive_rounds
from preference.significance import mcnemar, paired_bootstrap, sign_flip_p, wilson_interval

MEASURES = ("execution_accuracy", "valid_sql", "unclear", "ended_with_eos", "mean_tokens")
# What is measured of each arm: the adapter of the last step, and the one that the stage would publish.
STATES = ("last", "published")
# What the table reads of an arm's training.
TRAINING = ("rounds", "pairs", "steps", "chosen_logp", "kept_steps", "stopped", "published_is")


def measured(report: dict, name: str) -> dict:
    """A model's figures out of report.json (`preference.report.summarise`): MEASURES, and `right`, 1 or 0 a question."""
    return {key: report["models"][name][key] for key in (*MEASURES, "right")}


def training_facts(folder: Path, rounds: int) -> dict:
    """What rounds 1 to `rounds` of a run folder left of their training, as lists with one item a round where they could differ.

    Those are the rounds that follow from each other, without what other settings left; ValueError where there is none.

    chosen_logp: {start, last, kept} of the guards' fixed pairs, in nats a token; None where the guards did not measure.
    kept_steps: the step whose adapter was kept; None without guards. `start`: the proof that training began at SFT.
    """
    places = [adapter_of(folder, number) / "training.json" for number in consecutive_rounds(folder, rounds)]
    if not places:
        raise ValueError(f"{folder} holds no finished round that started from {folder / 'sft'}. An arm needs at least one. "
                         f"Look into {folder / 'ablate.log'} for the reason, or delete the folder to have the arm run anew.")
    finished = [json.loads(path.read_text(encoding="utf-8")) for path in places]
    chosen = []
    for facts in finished:
        rows = {row["step"]: row["chosen_logp"] for row in facts.get("guards") or []}
        chosen.append({"start": rows[min(rows)], "last": rows[max(rows)], "kept": rows.get(facts["kept_step"])} if rows else None)
    return {
        "rounds": len(finished), "pairs": sum(facts["pairs"] for facts in finished),
        "steps": sum(facts["steps"] for facts in finished),
        "round_steps": [facts["steps"] for facts in finished], "start": [facts["start"] for facts in finished],
        "guards": [facts.get("guards") for facts in finished], "kept_steps": [facts.get("kept_step") for facts in finished],
        "stopped": [facts.get("stopped") for facts in finished], "chosen_logp": chosen,
        "train_s": sum(facts["duration_s"] for facts in finished),
        "peak_memory_bytes": max((facts["peak_memory_bytes"] for facts in finished), default=None),
    }


# --------------------------------------------------------------------- reading the files


def read_results(folder: Path) -> tuple[dict, dict[str, dict[int, dict]]]:
    """(the result of SFT, {arm: {seed: result}}) of a folder; arms in the order of their names, `default` first.

    Raises ValueError where a file is missing, unreadable, about other questions than the rest, or holds another's arm and seed.
    """
    if not (folder / "sft.json").exists():
        found = ", ".join(sorted(path.name for path in folder.glob("*.json"))) if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder} has no sft.json (found: {found or 'no result'}). Every arm is compared with the SFT model. "
                         f"Run the arms: bash launch/ablate.sh --set results={folder}")
    results = {path: read_result(path, ("sft",) if path.name == "sft.json" else STATES)
               for path in sorted(folder.glob("*.json"))}
    sft = results[folder / "sft.json"]
    for path, result in results.items():
        lengths = {len(model["right"]) for model in result["models"].values()}
        if result["questions"] != sft["questions"] or lengths != {sft["n"]}:
            raise ValueError(
                f"{path} is about other questions (hash {result['questions']}, n = {result['n']}) than sft.json "
                f"(hash {sft['questions']}, n = {sft['n']}). All arms of a folder must answer the same questions. Measure again "
                "those that differ (delete their files), or keep two folders of results (--set results=FOLDER).")
    arms: dict[str, dict[int, dict]] = {}
    files: dict[tuple[str, int], Path] = {}
    for path, result in results.items():
        if path.name == "sft.json":
            continue
        arm, seed = result["arm"], result["seed"]
        if (arm, seed) in files:
            raise ValueError(f"{files[arm, seed]} and {path} both hold arm {arm}, seed {seed}. Allowed is one file for each "
                             "arm and seed. Move the one away that is not to count.")
        files[arm, seed] = path
        arms.setdefault(arm, {})[seed] = result
    return sft, dict(sorted(arms.items(), key=lambda item: (item[0] != "default", item[0])))


def read_result(path: Path, states: Sequence[str]) -> dict:
    """One result file; ValueError where it lacks something that the table reads of it, with models of these names."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = "no JSON, perhaps cut off"
    else:
        found = ", ".join(f"no {key}" for key in missing(result, states))
    if found:
        raise ValueError(f"{path} is not a result of an arm ({found}). Allowed are files that preference/ablate.py wrote. Move "
                         "it away, or delete it to have it made again.")
    return result


def missing(result: Any, states: Sequence[str]) -> list[str]:
    """Names of what a result lacks."""
    if not isinstance(result, dict):
        return ["map"]
    found = [key for key in ("arm", "seed", "data", "n", "questions") if key not in result]
    if tuple(states) != ("sft",):
        found += [key for key in TRAINING if key not in result]
    models = result.get("models")
    for state in states:
        model = models.get(state) if isinstance(models, dict) else None
        if isinstance(model, dict):
            found += [f"models.{state}.{key}" for key in (*MEASURES, "right") if key not in model]
        else:
            found.append(f"models.{state}")
    return found


def bits(right: str) -> list[bool]:
    return [mark == "1" for mark in right]


def compared(before: Sequence[str], after: Sequence[str]) -> dict:
    """Two arms on the same questions, each a string of 1 and 0 for each seed, in pairs. `before` may hold one model several times.

    One seed each: McNemar's exact p and Newcombe's interval. More: `sign_flip_p` and the interval of `paired_bootstrap`, and
    McNemar's p for each pair of seeds. The error reduction's interval is the bootstrap's in both cases.
    """
    old, new = [bits(right) for right in before], [bits(right) for right in after]
    single = [mcnemar(one, other) for one, other in zip(old, new, strict=True)]
    found = paired_bootstrap(old, new) | {"interval": "paired bootstrap", "mcnemar_p": [one["p"] for one in single]}
    if len(single) == 1:
        return found | {"test": "McNemar", "interval": "Newcombe"} | {key: single[0][key]
                                                                      for key in ("gained", "lost", "ci95", "p")}
    return found | {"test": "paired permutation (sign flip)", "p": sign_flip_p(old, new)}


def summary(*folders: Path, against: str | None = None) -> dict:
    """The whole table as JSON: {results, data, n, questions, against, sft, last: [arm, ...], published: [arm, ...]}.

    `results` lists the folders. Several hold arms on different SFT adapters, asked the same questions: each seed is compared
    with the SFT adapter it started from, and the arm `against` with another on the seeds that both have of the same adapter. `sft`
    has means over the adapters, `accuracies` of each, and where there is one alone its interval ci95.

    Each arm: arm, seeds and `folders` (of each seed, its place in `results`), means over its seeds of MEASURES, `accuracies` of
    each seed, pairs, steps (None where a seed does not tell) and chosen_logp_change (nats a token, mean of the seeds that tell) of the adapter that is measured, `against_sft`,
    and, but for the arm `against` itself, `behind`: how much better that arm is, on the seeds that both have (None where there
    is none).

    Raises ValueError as `read_results` does, where folders are about different questions or hold arms on one adapter, and
    where no folder has the arm `against`. None is `default`, without which the table only lacks that column.
    """
    read = [read_results(folder) for folder in folders]
    adapters, first = [sft["models"]["sft"] for sft, _ in read], read[0][0]
    started_from: dict[str, Path] = {}
    for folder, (sft, _) in zip(folders, read, strict=True):
        if sft["questions"] != first["questions"]:
            raise ValueError(f"{folder} is about other questions (hash {sft['questions']}, n = {sft['n']}) than {folders[0]} (hash "
                             f"{first['questions']}, n = {first['n']}). One table needs folders that were measured on the same "
                             "questions. Measure one of them on the other's (--set results=FOLDER measure.data=... measure.limit=...).")
        adapter = json.dumps(sft.get("identity", {}).get("sft") or sft["models"]["sft"]["right"])
        if adapter in started_from:
            raise ValueError(f"{started_from[adapter]} and {folder} hold arms on one SFT adapter. Each folder of a table needs an "
                             "adapter of its own. Leave one of them out, or move its files into the other.")
        started_from[adapter] = folder
    arms: dict[str, dict[tuple[int, int], dict]] = {}  # keys: (folder, seed)
    for place, (_, found) in enumerate(read):
        for arm, seeds in found.items():
            arms.setdefault(arm, {}).update({(place, seed): result for seed, result in sorted(seeds.items())})
    if against not in (None, *arms):
        raise ValueError(f"found no arm {against!r} to compare others with. These folders have {', '.join(arms) or 'none'}. "
                         "Choose one of those (--against ARM).")
    against = against or "default"
    arms = dict(sorted(arms.items(), key=lambda item: (item[0] != against, item[0] != "default", item[0])))
    alone = list(wilson_interval(adapters[0]["right"].count("1"), first["n"])) if len(adapters) == 1 else None
    table = {"results": list(map(str, folders)), "data": first["data"], "n": first["n"], "questions": first["questions"],
             "against": against, "sft": {key: fmean([adapter[key] for adapter in adapters]) for key in MEASURES}
             | {"accuracies": [adapter["execution_accuracy"] for adapter in adapters], "ci95": alone}}
    for state in STATES:
        rows = []
        for arm, seeds in arms.items():
            models = {key: result["models"][state] for key, result in seeds.items()}
            steps, changes = zip(*(trained(result, state) for result in seeds.values()), strict=True)
            changes = [change for change in changes if change is not None]
            row = {"arm": arm, "seeds": [seed for _, seed in models], "folders": [place for place, _ in models],
                   **{key: fmean([model[key] for model in models.values()]) for key in MEASURES},
                   "accuracies": [model["execution_accuracy"] for model in models.values()],
                   "pairs": fmean([result["pairs"] for result in seeds.values()]),
                   "steps": None if None in steps else fmean(steps),
                   "chosen_logp_change": fmean(changes) if changes else None,
                   "against_sft": compared([adapters[place]["right"] for place, _ in models],
                                           [model["right"] for model in models.values()])}
            if arm != against and against in arms:
                common = [key for key in models if key in arms[against]]
                row["behind"] = compared(
                    [models[key]["right"] for key in common],
                    [arms[against][key]["models"][state]["right"] for key in common],
                ) | {"seeds": [seed for _, seed in common], "folders": [place for place, _ in common]} if common else None
            rows.append(row)
        table[state] = rows
    return table


def trained(result: dict, state: str) -> tuple[int | None, float | None]:
    """(steps, `chosen_change`) of the adapter that was measured as `state`; None where the result does not tell."""
    if state == "last" or result["published_is"] == "last":
        return result["steps"], chosen_change(result["chosen_logp"], "last")
    if result["published_is"] == "sft":
        return 0, 0.0
    if len(result["kept_steps"]) > 1:  # which of them was the best is not recorded
        return None, None
    # Where the guards stopped training, chosen_logp is that of the training without them.
    kept = result["chosen_logp"] if result["stopped"] == [None] else result.get("kept_chosen_logp")
    return result["kept_steps"][0], chosen_change(kept, "kept")


def chosen_change(rounds: Sequence[dict | None] | None, end: str) -> float | None:
    """By how many nats a token the chosen queries' log-probability rose to `end` (last or kept), all rounds together.

    None where the guards did not measure, or found no number (a model that has come apart gives nan, kept as None).
    """
    if not rounds or any(one is None or None in (one["start"], one[end]) for one in rounds):
        return None
    return sum(one[end] - one["start"] for one in rounds)
