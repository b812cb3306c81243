"""The fused LoRA layer against peft's: outputs, gradients, other adapters, and layers that it leaves alone."""

import pytest
import torch

from sft.checkpoint import load_base
from sft.fused_lora import fuse_lora
from sft.training import lora_model

IDS = torch.tensor([[1, 5, 9, 30, 2], [1, 7, 7, 40, 2]])


def model_of(tiny_model, precision="fp32", dropout=0.0):
    model = lora_model(load_base(tiny_model, precision=precision), rank=4, alpha=12, dropout=dropout,
                       gradient_checkpointing=False, seed=0)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def step(model, bf16=False):
    """Logits and LoRA gradients of a training step."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, bf16):
        logits = model(input_ids=IDS).logits
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return logits.detach(), {name: parameter.grad for name, parameter in trained.items()}


def test_outputs_and_gradients_are_pefts(tiny_model):
    model = model_of(tiny_model)
    logits, gradients = step(model)
    assert fuse_lora(model) == 14
    fused_logits, fused_gradients = step(model)
    assert torch.allclose(logits, fused_logits, atol=1e-5) and len(gradients) == 28
    for name, gradient in gradients.items():
        assert gradient.norm() > 0 and (fused_gradients[name] - gradient).norm() < 1e-5 * gradient.norm(), name


def test_in_bf16_it_is_as_near_to_fp32_as_peft_is(tiny_model):
    exact, exact_gradients = step(model_of(tiny_model))
    model = model_of(tiny_model, "bf16")
    logits, gradients = step(model, bf16=True)
    fuse_lora(model)
    fused_logits, fused_gradients = step(model, bf16=True)
    assert fused_logits.dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in fused_gradients.values())
    assert (fused_logits.float() - exact).norm() < 1.5 * (logits.float() - exact).norm()

    def off(found):
        return sum((found[name] - exact_gradients[name]).norm() for name in exact_gradients)

    assert off(fused_gradients) < 1.5 * off(gradients)


def test_other_adapters_and_none_are_followed(tiny_model):
    model = model_of(tiny_model)
    model.add_adapter("ref", model.peft_config["default"])

    def seen():
        with torch.no_grad():
            found = [model(input_ids=IDS).logits]
            model.set_adapter("ref")
            found.append(model(input_ids=IDS).logits)
            model.set_adapter("default")
            with model.disable_adapter():
                return [*found, model(input_ids=IDS).logits]

    before = seen()
    fuse_lora(model)
    after = seen()
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(before, after, strict=True))
    assert not torch.allclose(before[0], before[1], atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_stays_pefts(tiny_model, training):
    model = model_of(tiny_model, dropout=0.5).train(training)

    def seen():
        torch.manual_seed(3)
        return model(input_ids=IDS).logits

    before = seen()
    fuse_lora(model)
    assert torch.allclose(seen(), before, atol=1e-5)


def test_an_fp32_model_under_autocast_stays_pefts(tiny_model):
    model = model_of(tiny_model)
    logits, _ = step(model, bf16=True)
    fuse_lora(model)
    assert torch.equal(step(model, bf16=True)[0], logits)


def test_the_first_layer_has_no_use_for_its_inputs_gradient(tiny_model):
    model = model_of(tiny_model)
    fuse_lora(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer(torch.randn(2, 3, 64)).sum().backward()
    assert layer.lora_A["default"].weight.grad.norm() > 0
