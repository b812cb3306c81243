"""Packed rows give the hidden states that they give alone, with either kernel, and no row sees another."""

import pytest
import torch

import sft.packed_attention
from sft.checkpoint import load_base
from sft.packed_attention import LineAttention, attention, packed_attention, packs_accepted, query_blocks, visible
from sft.packing import pack

# Two questions on one schema, one of them with two answers, and a row that shares nothing: 1 to 3 tokens apart in length.
SCHEMA = [11, 12, 13, 14, 15, 16, 17, 18]
ROWS = [[*SCHEMA, 21, 22, 31, 32, 2], [*SCHEMA, 21, 22, 31, 33, 34, 2], [*SCHEMA, 23, 35, 2], [41, 42, 43, 36, 2]]
PROMPTS = [10, 10, 9, 3]


@pytest.fixture(params=["eager", "sdpa"])
def model(request, tiny_model):
    """The tiny model with attention so strong that a row which saw another would show it."""
    model = load_base(tiny_model, precision="fp32", attention=request.param)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(20)
    return model


def padded(rows):
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def hidden(model, rows, prompts):
    """Hidden states of the tokens that predict each row's answer, from one pack of all rows."""
    with packs_accepted(model) as taken:
        assert taken
        output = model.model(input_ids=padded(rows), attention_mask=None, pack=pack(rows, prompts), use_cache=False)
    return [output.last_hidden_state[number, prompt - 1 : len(row) - 1]
            for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True))]


@pytest.mark.parametrize("block", [4, 256])
def test_rows_and_gradients_are_those_of_each_row_alone(model, monkeypatch, block):
    monkeypatch.setattr(sft.packed_attention, "BLOCK", block)
    weight = model.model.layers[0].self_attn.k_proj.weight
    factors = [torch.randn(len(row) - prompt, 64) for row, prompt in zip(ROWS, PROMPTS, strict=True)]

    def gradient(states):
        model.zero_grad()
        sum((state * factor).sum() for state, factor in zip(states, factors, strict=True)).backward()
        return weight.grad.clone()

    alone = [model.model(input_ids=torch.tensor([row])).last_hidden_state[0, prompt - 1 : -1]
             for row, prompt in zip(ROWS, PROMPTS, strict=True)]
    together = hidden(model, ROWS, PROMPTS)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    wanted, found = gradient(alone), gradient(together)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_a_changed_row_moves_no_other(model):
    with torch.no_grad():
        before = hidden(model, ROWS, PROMPTS)
        for number, row in enumerate(ROWS):
            changed = [list(row) for row in ROWS]
            changed[number][PROMPTS[number]] += 1
            after = hidden(model, changed, PROMPTS)
            moved = [not torch.allclose(one, other, atol=1e-6) for one, other in zip(before, after, strict=True)]
            assert moved == [other == number for other in range(len(ROWS))], row


def test_the_model_gets_its_own_attention_back(model):
    own = model.config._attn_implementation
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with packs_accepted(model):
            assert model.config._attn_implementation == f"packed_{own}"
            with attention(model, own):
                assert torch.equal(model(input_ids=ids).logits, before)
        assert model.config._attn_implementation == own
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_that_keeps_its_attention_is_left_as_it_is(model, monkeypatch, capsys):
    monkeypatch.setattr(type(model), "_can_set_attn_implementation_cached_value", False, raising=False)
    with packs_accepted(model) as taken:
        assert taken is False
    assert "train.share_prompts: false, since LlamaForCausalLM" in capsys.readouterr().out
    with packs_accepted(model, wanted=False) as taken:
        assert taken is False


@pytest.mark.parametrize(("more", "said"), [({"sliding_window": 4}, "sliding_window 4, shorter than"),
                                            ({"softcap": 30.0}, "has softcap"), ({"dropout": 0.1}, "has dropout 0.1")])
def test_attention_that_does_more_is_refused(more, said):
    packed = {"lines": torch.zeros(1, 9, dtype=torch.long), "cells": None}
    with pytest.raises(ValueError, match=rf"{said}.*Set train.share_prompts: false"):
        packed_attention("sdpa", None, None, None, None, None, scaling=1.0, packed=packed, **more)


def test_visible_of_the_docstring():
    assert visible(torch.tensor([[3, 2, 3]])).int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]


def test_line_attention_has_the_gradients_of_autograd():
    torch.manual_seed(0)
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True)
                         for shape in ((2, 3, 2, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)))
    blocks = query_blocks(visible(torch.tensor([[5, 3, 3, 5, 5], [2, 2, 4, 4, 5]])))
    assert torch.autograd.gradcheck(lambda *given: LineAttention.apply(*given, blocks), (query, key, value))


def test_blocks_mask_only_what_some_query_does_not_see(monkeypatch):
    """One line: a prompt of 3 tokens, then answers of 2 and 1, in blocks of 2 queries."""
    monkeypatch.setattr(sft.packed_attention, "BLOCK", 2)
    (_, _, first, _), second, third = query_blocks(visible(torch.tensor([[6, 6, 6, 5, 5, 6]])))
    assert first == 1 and second[:3] == (2, 4, 3) and second[3].int().tolist() == [[[[1], [0]]]]
    assert third[:3] == (4, 6, 3) and third[3].int().tolist() == [[[[0, 0, 1], [1, 1, 0]]]]
