"""The LM head in training: completion positions only, the vocabulary in tiles, the gradient found on the way."""

from __future__ import annotations

import torch
import trl.trainer.utils
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

# Logits (fp32) of one tile: what all passes over it together should find in the cache.
TILE_LOGITS = 1 << 20


class TiledLogProbs(torch.autograd.Function):
    """Log-probabilities of targets under softmax(hidden @ weight.T) for a frozen weight, with trl's measures beside them.

    A log-probability's gradient is known up to its factor in the forward pass already: with p the softmax and t the
    target, d log p_t / d hidden = (1 - p_t) weight[t] - sum over v != t of p_v weight[v]. The sum is kept as the tiles go
    by, as attention does it, so the backward pass multiplies this vector by the factor, where trl computes all logits
    again. The target is left out of the sum: where p_t is near 1, weight[t] less the whole sum would be rounding alone.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        """hidden [tokens, size], weight [vocabulary, size], targets [tokens]. Returns, each [tokens]: log-probability
        and entropy (nats), mean logit, and whether the target is the likeliest token (of equal ones, the first).
        """
        ctx.set_materialize_grads(False)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows, vocabulary, row = hidden.to(dtype), weight.shape[0], torch.arange(len(hidden), device=hidden.device)
        of_target = weight[targets].to(dtype)
        target = (rows.float() * of_target.float()).sum(-1).to(dtype).float()
        # Running maximum of all logits; sums over the other tokens of exp(logit - top), of that times the logit, of the
        # logit; and of exp(logit - top) times the token's weight.
        top, earlier = target.clone(), torch.zeros_like(targets, dtype=torch.bool)
        others, weighted, summed = (torch.zeros_like(top) for _ in range(3))
        expected = torch.zeros_like(rows, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        step = max(512, TILE_LOGITS // max(1, len(rows)) // 64 * 64)
        for start in range(0, vocabulary, step):
            tile = weight[start : start + step].to(dtype)
            logits = (rows @ tile.t()).float()
            summed += logits.sum(-1)
            inside = (targets >= start) & (targets < start + len(tile))
            logits[row[inside], targets[inside] - start] = torch.finfo(torch.float32).min
            best = logits.amax(-1)
            if (equal := best == target).any():
                earlier[equal] |= logits[equal].argmax(-1) + start < targets[equal]
            new = torch.maximum(top, best)
            shrink = torch.exp(top - new)
            chances = logits.sub(new.unsqueeze(1)).exp_()
            others = others * shrink + chances.sum(-1)
            weighted = weighted * shrink + logits.mul_(chances).sum(-1)
            if expected is not None:
                expected.mul_(shrink.unsqueeze(1)).add_(chances.to(dtype) @ tile)
            top = new
        own = torch.exp(target - top)
        total = others + own
        log_total = top + total.log()
        if expected is not None:
            ctx.save_for_backward((others.unsqueeze(1) * of_target - expected) / total.unsqueeze(1))
            ctx.dtype = hidden.dtype
        entropy = log_total - (weighted + own * target) / total
        mean_logits, is_top1 = summed / vocabulary, (target >= top) & ~earlier
        ctx.mark_non_differentiable(entropy, mean_logits, is_top1)
        return target - log_total, entropy, mean_logits, is_top1

    @staticmethod
    def backward(ctx, factor, *_):
        (direction,) = ctx.saved_tensors
        return (None if factor is None else (factor.unsqueeze(1) * direction).to(ctx.dtype)), None, None


class _Scorer:
    """What stands in for trl's kernel: tiles where they compute the same, trl's own elsewhere."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs):
        plain = bias is None and softcap is None and temperature == 1.0 and scale == 1.0 and not weight.requires_grad
        if not plain or hidden.device.type != "cpu" or "log_sum_sq_probs" in outputs:
            return ChunkedLogProbFunction.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale,
                                                outputs)
        log_probs, entropy, mean_logits, is_top1 = TiledLogProbs.apply(hidden, weight, targets)
        return log_probs, entropy, None, mean_logits, is_top1


def score_completion_only() -> None:
    """Make trl's fused LM head score the completion's positions only, on the CPU too, and by tiles there.

    trl scores prompt and padding as well where Triton is missing, because some accelerators recompile for every new
    shape. The CPU does not; the loss is the same (trl 1.16, `add_fused_lm_head`). Can go when trl does so itself.
    """
    trl.trainer.utils._use_triton = lambda device: True
    trl.trainer.utils._ChunkedLogProbFunction = _Scorer
