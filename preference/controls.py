"""Control arms: the pairs that show what a gain is owed to, in the place of the real ones. No ML import."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import permutations

from preference.inspection.contents import exchanged, hash_of
from preference.pairs import distinct_finished, judged_samples, side_columns
from reward.queries import canonical_sql
from sft.artefacts import content_hash


def as_control(control: str, pairs: list[dict], dropped: list[dict], candidates: list[dict], verdicts: list[dict], *,
               seed: int) -> tuple[list[dict], list[dict]]:
    """(pairs, dropped) of a control arm, made of those of the real one (people's words included); `none` leaves them.

    Each control pair takes the place of a real one: same question, prompt, weight and margin, so that all arms have as
    many pairs of each question, and as many steps. Where that cannot be, the pair is left out and stands in `dropped` as
    no_control. The strategy's name gets the control's after it, the id is that of the new texts, and person_label is
    None, since nobody spoke of these sides.

    flipped: the sides change places. If the signal is real, this must harm.
    shuffled-rejected: the rejected side comes from another question (of another prompt). What is left of the signal is
    what a query for this question looks like at all.
    random-sides: both sides are distinct samples of the question that ended, drawn without a look at their verdicts
    (`unclear` ones too). What is left is the training itself.
    """
    if control == "none":
        return pairs, dropped
    sides = {
        "flipped": lambda: [exchanged(pair) for pair in pairs],
        "shuffled-rejected": lambda: shuffled_rejected(pairs, seed),
        "random-sides": lambda: random_sides(pairs, candidates, verdicts, seed),
    }
    if control not in sides:
        raise ValueError(f"control: found {control!r}. Allowed are none, {', '.join(sides)}. Choose one of them.")
    made, lost = [], []
    for pair, row in zip(pairs, sides[control](), strict=True):
        if row is None:
            lost.append({"example_id": pair["example_id"], "reason": "no_control",
                         "detail": f"pair {pair['pair_id']}: {control}"})
        else:
            made.append(row | {"pair_id": hash_of(row), "strategy": f"{pair['strategy']}-{control}", "person_label": None})
    return made, dropped + lost


def shuffled_rejected(pairs: list[dict], seed: int) -> list[dict | None]:
    """The pairs with their rejected sides dealt out anew, none to its own prompt, beside the same query as chosen, or twice to
    one question.

    The deal follows from the seed and the pairs, not from their order. None where no exchange with another pair helps (one
    question has more than half of the pairs, or too many reject the same query). The side brings its evidence, but not its
    log-probability: that was under another prompt.
    """
    order = sorted(range(len(pairs)), key=lambda place: pairs[place]["pair_id"])
    chance = random.Random(f"{seed}:shuffled-rejected")
    giver = dict(zip(order, chance.sample(order, len(order)), strict=True))
    chosen, rejected = ([canonical_sql(pair[side] or "") for pair in pairs] for side in ("chosen_sql", "rejected_sql"))
    of_prompt = defaultdict(list)
    for place, pair in enumerate(pairs):
        of_prompt[content_hash(pair["prompt"])].append(place)
    family = {place: places for places in of_prompt.values() for place in places}

    def fits(place: int, other: int) -> bool:
        beside = [rejected[giver[one]] for one in family[place] if one != place and giver[one] is not None]
        return other not in family[place] and rejected[other] not in [chosen[place], *beside]

    for place in order:
        if not fits(place, giver[place]):
            start = chance.randrange(len(order))
            for other in order[start:] + order[:start]:
                if giver[other] is not None and fits(place, giver[other]) and fits(other, giver[place]):
                    giver[place], giver[other] = giver[other], giver[place]
                    break
            else:
                giver[place] = None
    return [None if giver[place] is None else
            pair | {name: value for name, value in pairs[giver[place]].items() if name.startswith("rejected")}
            | {"rejected_logp_sum": None, "rejected_tokens_round_trip": None} for place, pair in enumerate(pairs)]


def random_sides(pairs: list[dict], candidates: list[dict], verdicts: list[dict], seed: int) -> list[dict | None]:
    """As many pairs of each question, each of two distinct samples drawn by chance; None where there are too few samples."""
    samples = judged_samples(candidates, verdicts)
    drawn = {example_id: iter(_draw(distinct_finished(samples.get(example_id, [])), count,
                                    random.Random(f"{seed}:{example_id}:random-sides")))
             for example_id, count in Counter(pair["example_id"] for pair in pairs).items()}
    rows = []
    for pair in pairs:
        sides = next(drawn[pair["example_id"]], None)
        rows.append(sides and pair | side_columns("chosen", sides[0]) | side_columns("rejected", sides[1])
                    | {"gold_fallback": False})
    return rows


def _draw(samples: list[dict], count: int, chance: random.Random) -> list[tuple[dict, dict]]:
    """Up to `count` ordered pairs of samples by chance; none is rejected twice, and no two stand both ways round."""
    combinations = list(permutations(range(len(samples)), 2))
    chance.shuffle(combinations)
    taken: list[tuple[int, int]] = []
    for chosen, rejected in combinations:
        if len(taken) < count and (rejected, chosen) not in taken and rejected not in [other for _, other in taken]:
            taken.append((chosen, rejected))
    return [(samples[chosen], samples[rejected]) for chosen, rejected in taken]
