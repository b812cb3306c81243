"""Choosing a token: against numbers by hand, and the likeliest against a full search."""

import pytest
import torch

from sft.token_choice import candidates, choose, likeliest, uniforms

# ---------------------------------------------------------------------- choose


def chosen_ids(logits, draw, temperature, top_k, top_p):
    values, ids, _ = candidates(logits, temperature, top_k)
    return ids.gather(1, choose(values, draw, temperature, top_p).unsqueeze(1)).squeeze(1)


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log()


@pytest.mark.parametrize(
    ("draw", "settings", "token"),
    [
        # Tokens 0 to 3 have probabilities .1, .6, .05, .25, so likeliest first: 1, 3, 0, 2.
        (0.99, (0, 0, 1.0), 1),
        (0.0, (1, 0, 1.0), 1),
        (0.59, (1, 0, 1.0), 1),
        (0.61, (1, 0, 1.0), 3),
        (0.84, (1, 0, 1.0), 3),
        (0.86, (1, 0, 1.0), 0),
        (0.96, (1, 0, 1.0), 2),
        (1 - 2**-24, (1, 0, 1.0), 2),
        # top_k 2: .6 and .25 of .85, the edge is at .7059.
        (0.70, (1, 2, 1.0), 1),
        (0.71, (1, 2, 1.0), 3),
        (1 - 2**-24, (1, 2, 1.0), 3),
        (0.999, (1, 1, 1.0), 1),
        (0.96, (1, 99, 1.0), 2),
        # top_p: the smallest set with at least that probability; .6 alone reaches .55, .61 needs .25 too.
        (0.99, (1, 0, 0.55), 1),
        (0.69, (1, 0, 0.61), 1),
        (0.72, (1, 0, 0.61), 3),
        (1 - 2**-24, (1, 0, 0.61), 3),
        (1 - 2**-24, (1, 0, 0.9), 0),
        # top_p of the renormalised top_k: .7059 of the first reaches .7, though .6 would not.
        (0.99, (1, 2, 0.7), 1),
        # Temperature 1/2 squares: .36, .0625, .01, .0025 of .435; edges .8276, .9713, .9943.
        (0.82, (0.5, 0, 1.0), 1),
        (0.83, (0.5, 0, 1.0), 3),
        (0.98, (0.5, 0, 1.0), 0),
        (0.995, (0.5, 0, 1.0), 2),
    ],
)
def test_choose_inverts_the_cumulative_distribution(draw, settings, token):
    assert chosen_ids(logits_of(0.1, 0.6, 0.05, 0.25), torch.tensor([draw]), *settings).item() == token


def test_choose_keeps_its_rows_apart():
    logits = torch.cat([logits_of(0.6, 0.3, 0.1), logits_of(0.1, 0.3, 0.6), logits_of(0.6, 0.3, 0.1)])
    assert chosen_ids(logits, torch.tensor([0.65, 0.65, 0.05]), 1.0, 0, 1.0).tolist() == [1, 1, 0]


def test_choose_never_lands_on_a_removed_token():
    """Draws next to 1 over a big vocabulary, where the rounded sum of the probabilities is not 1."""
    torch.manual_seed(0)
    logits = torch.randn(50, 5000) * 3
    draw = torch.full((50,), 1 - 2**-24)
    for top_k, top_p in ((0, 0.9), (40, 0.9), (40, 1.0)):
        chosen = chosen_ids(logits, draw, 1.0, top_k, top_p)
        values, ids = logits.double().sort(descending=True)
        shares = values[:, : top_k or 5000].softmax(-1)
        rank = (ids == chosen.unsqueeze(-1)).int().argmax(-1, keepdim=True)
        assert rank.max() < shares.shape[1]
        before = (shares.cumsum(-1) - shares).gather(-1, rank)
        assert (before < top_p + 1e-6).all()
        # The draw is the largest there is, so nothing much may stand behind the token either.
        assert (before + shares.gather(-1, rank) > min(top_p, 1) - 1e-5).all()


# ------------------------------------------------------------------ candidates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [16 * 300, 16 * 300 + 7, 500])
def test_the_likeliest_are_those_of_a_full_search(vocabulary, dtype):
    """In bf16 many logits are equal: the values must be the same, and stand at the ids given."""
    logits = (torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    logits[0, -5:] = logits.max() + 1 + torch.arange(5)  # in the last, incomplete group
    logits[1, 3::300] = logits.max() + 1  # all in one group
    values, ids = likeliest(logits, 32)
    assert torch.equal(values, logits.topk(32).values)
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == 32 for row in ids.tolist())


def test_the_normaliser_is_over_the_whole_vocabulary_in_float32():
    logits = (torch.randn(11, 5000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    for dtype, temperature, top_k in ((torch.bfloat16, 0, 0), (torch.bfloat16, 1.0, 4), (torch.float32, 1.0, 4)):
        given = logits.to(dtype)
        values, _, normaliser = candidates(given, temperature, top_k)
        assert torch.equal(given.bfloat16(), logits)  # untouched
        assert values.shape == (11, 1 if temperature == 0 else 4) and normaliser.dtype == torch.float32
        torch.testing.assert_close(normaliser.double(), logits.double().logsumexp(-1), rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------- uniforms


def test_uniforms_depend_on_their_three_names_alone():
    first = uniforms(3, "a", 0, 16)
    assert first.dtype == torch.float32 and first.min() >= 0 and first.max() < 1
    torch.manual_seed(99)
    assert torch.equal(uniforms(3, "a", 0, 16), first)
    assert torch.equal(uniforms(3, "a", 0, 8), first[:8])
    others = [uniforms(4, "a", 0, 16), uniforms(3, "b", 0, 16), uniforms(3, "a", 1, 16), uniforms(3, "a1", 0, 16)]
    assert not any(torch.equal(first, other) for other in others)
    # "1" with sample 11 is not "11" with sample 1.
    assert not torch.equal(uniforms(3, "1", 11, 16), uniforms(3, "11", 1, 16))
