"""The tiled LM head against trl's own: values, measures, gradients, and what it leaves to trl."""

import pytest
import torch
import trl.trainer.utils
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

import sft.scoring
from sft.scoring import TiledLogProbs, score_completion_only

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def given(dtype=torch.float32, tokens=13, size=16, vocabulary=1500):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, size, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator).to(dtype)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=generator)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three tiles of 512 columns at most."""
    monkeypatch.setattr(sft.scoring, "TILE_LOGITS", 1)


def test_values_and_gradient_are_trls():
    hidden, weight, targets = given()
    targets[0] = (hidden[0] @ weight.t()).argmax()
    factor = torch.randn(len(targets))
    wanted = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 4096, None, 1.0, OUTPUTS)
    (wanted_gradient,) = torch.autograd.grad((wanted[0] * factor).sum(), hidden)
    found = TiledLogProbs.apply(hidden, weight, targets)
    (gradient,) = torch.autograd.grad((found[0] * factor).sum(), hidden)
    for one, other in zip([wanted[0], wanted[1], wanted[3]], found[:3], strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert torch.equal(wanted[4], found[3]) and found[3][0]
    assert torch.allclose(gradient, wanted_gradient, atol=1e-5)


def test_of_equal_logits_the_first_is_the_likeliest():
    hidden, weight, _ = given(tokens=2)
    weight[3] = weight[700] = weight[1400] = 3 * hidden[0].detach()
    for targets, likeliest in (((3, 3), True), ((700, 3), False), ((1400, 3), False)):
        assert TiledLogProbs.apply(hidden, weight, torch.tensor(targets))[3][0].item() is likeliest


def test_a_sure_target_keeps_its_small_gradient_in_bf16():
    """p near 1: the gradient is a small difference, which must not drown in the rounding of its parts."""
    hidden, weight, targets = given(torch.bfloat16)
    with torch.no_grad():
        weight[targets] = hidden * 1.5
    exact = hidden.detach().double().requires_grad_()
    logps = (exact @ weight.double().t()).log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    (wanted,) = torch.autograd.grad(logps.sum(), exact)
    (gradient,) = torch.autograd.grad(TiledLogProbs.apply(hidden, weight, targets)[0].sum(), hidden)
    sure = logps.exp() > 0.98
    assert sure.any() and (gradient - wanted)[sure].norm() < 0.1 * wanted[sure].norm()


def test_the_head_is_trls_where_it_does_more(monkeypatch):
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", None)
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", None)
    score_completion_only()
    apply = trl.trainer.utils._ChunkedLogProbFunction.apply
    hidden, weight, targets = given()
    monkeypatch.setattr(TiledLogProbs, "apply", None)  # must not be reached
    monkeypatch.setattr(trl.kernels.chunked_logprob, "_use_triton", lambda device: False)
    for bias, temperature, softcap in ((torch.ones(1500), 1.0, None), (None, 0.5, None), (None, 1.0, 30.0)):
        found = apply(hidden, weight, bias, targets, temperature, 4096, softcap, 1.0, OUTPUTS)
        wanted = ChunkedLogProbFunction.apply(hidden, weight, bias, targets, temperature, 4096, softcap, 1.0, OUTPUTS)
        assert torch.equal(found[0], wanted[0])
    trained = weight.clone().requires_grad_()
    apply(hidden, trained, None, targets, 1.0, 4096, None, 1.0, OUTPUTS)[0].sum().backward()
    assert trained.grad.abs().max() > 0
