"""What a pair brings to the loss beside its token ids: margin, weight, and weights of its tokens. No ML import.

With a_t = shared_token_weight for the tokens of a completion that stand in the pair's other side, too, and 1 for those where
the two part, the log-probability of a completion under either model is sum over t of a_t log p(y_t | x, y_<t), and

    delta = (log policy - r log reference)(chosen) - (log policy - r log reference)(rejected),    r = reference_weight
    loss of a pair = weight * l(beta * delta - margin_scale * margin),    l(z) = -log sigmoid(z) for `sigmoid`

averaged over the pairs of a micro-batch; with margin_scale 0, r and all weights 1 it is trl's own. The sft term leaves out graded
pairs, whose chosen query is wrong, too; it is trl's mean over the chosen tokens of a micro-batch, whose size therefore is part of
the result. `margin`, from 0 to 1, says how wrong the rejected query is: the worse it is, the further the two sides have to part
before the loss lets go of them. The offset is a shift of the reference's log-probability of the
rejected side by -margin_scale * margin / beta, so it is for sigmoid and hinge alone: `robust` would have it with the wrong sign
in its term for a swapped pair, the others average over tokens, or take each side by itself. r goes with the same two,
with which it is tested. With r = 1 all pairs have the same gradient weight, beta / 2, at the start; with r = 0 delta is the policy's
own lead, so it is smaller where the chosen query is the likelier by far, and nearly beta where the rejected one is.
Source of the margin: Amini et al. 2024, "Direct Preference Optimization with an Offset", arXiv 2402.10571. Their offset is a
rising function (the logarithm) of the difference of two scores that a reward model or people gave; ours is linear in what
execution found. Source of r = 0 with an sft term: Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417; what lies
between, and weights of tokens and of pairs, are this project's own.
"""

from __future__ import annotations

import difflib


def shared_tokens(chosen: list[int], rejected: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of either side stand in the other, too: those that the longest matching blocks cover (difflib, chosen
    first, without its autojunk). An EOS at both ends is such a token.

    Example: ids [5, 6, 7, 2] and [5, 8, 7, 7, 2] -> [1, 0, 1, 1] and [1, 0, 0, 1, 1]: the longest block is 7, 2.
    """
    shared = [False] * len(chosen), [False] * len(rejected)
    for block in difflib.SequenceMatcher(None, chosen, rejected, autojunk=False).get_matching_blocks():
        shared[0][block.a : block.a + block.size] = [True] * block.size
        shared[1][block.b : block.b + block.size] = [True] * block.size
    return shared


def check_terms(pairs: list[dict], *, loss_type: list[str], margin_scale: float) -> None:
    """Raise ValueError where `margin` or `weight` of the pairs cannot be used, or would change nothing without a word.

    A pair without them (None, or no such column) has margin 0 and weight 1.
    """
    margins = [pair.get("margin") or 0.0 for pair in pairs]
    weights = [1.0 if pair.get("weight") is None else pair["weight"] for pair in pairs]
    anew = "Delete the round's pairs.parquet and run again with --overwrite, so that it is built anew"
    for name, values, top, allowed in (("margin", margins, 1.0, "from 0 to 1"), ("weight", weights, 1e9, "of 0 or more")):
        wrong = [value for value in values if not 0 <= value <= top]
        if wrong:
            raise ValueError(f"{len(wrong)} of {len(pairs)} pairs have a {name} that is out of range, for instance {wrong[0]}. "
                             f"Allowed are numbers {allowed}. {anew}.")
    if margin_scale and not any(margins):
        raise ValueError(f"train.margin_scale is {margin_scale}, but the margin of every pair is 0, so it would change nothing. "
                         f"Allowed are pairs with the column `margin`. {anew}, or set train.margin_scale=0.")
    if pairs and not any(weights):
        raise ValueError(f"all {len(pairs)} pairs have weight 0, so nothing would be trained. Allowed are numbers of 0 or more, "
                         f"one of them above 0. {anew}, and set pairs.weights=none.")
    if "hinge" in loss_type and any(weight != 1.0 for weight in weights):
        # trl multiplies the loss in place, which relu's backward pass does not allow (trl 1.16, `use_weighting`).
        raise ValueError(f"the pairs have weights, and the loss hinge takes none. Allowed with weights are the other losses. "
                         f"{anew}, and set pairs.weights=none, or choose another train.loss_type.")
