"""Packed weights: the same numbers as without, the model as it was afterwards."""

import pytest
import torch

from sft import packed_weights
from sft.packed_weights import packed_weights as packed


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.ReLU(), torch.nn.Linear(96, 40, bias=False)).bfloat16()


@pytest.mark.parametrize("rows", [1, 3, 130])
def test_the_same_numbers(model, rows):
    states = torch.randn(2, rows, 48).bfloat16()
    with torch.inference_mode():
        wanted = model(states)
        with packed(model):
            assert "forward" in vars(model[0]) and "forward" in vars(model[2])
            found = model(states)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    assert found.shape == wanted.shape and not any("forward" in vars(layer) for layer in model)


def test_what_is_left_alone(model, monkeypatch):
    with packed(model.float()):
        assert not any("forward" in vars(layer) for layer in model)
    model.bfloat16()
    replaced = model[0].forward = lambda states: states
    with packed(model):
        assert model[0].forward is replaced and "forward" in vars(model[2])
    assert model[0].forward is replaced
    monkeypatch.setattr(packed_weights, "LIMIT_BYTES", 100)
    with packed(model):
        assert "forward" not in vars(model[2])


def test_restored_after_an_error(model):
    with pytest.raises(KeyError), packed(model):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in model)
