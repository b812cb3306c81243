"""LoRA's linear layer as one step of autograd: no copy of its input in another precision, no sum on the side."""

from __future__ import annotations

from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import Linear


class LoraProduct(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T for a frozen W, as peft computes it, in x's precision."""

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scaling):
        """x [..., inputs], weight [outputs, inputs], down (A) [rank, inputs], up (B) [outputs, rank]."""
        rows = x.reshape(-1, x.shape[-1])
        low_down, low_up = down.to(x.dtype), (up * scaling).to(x.dtype)
        inner = rows @ low_down.t()
        out = torch.nn.functional.linear(rows, weight, bias)
        out.addmm_(inner, low_up.t())
        ctx.save_for_backward(rows, weight, low_down, low_up, inner)
        ctx.scaling, ctx.dtype, ctx.shape = scaling, down.dtype, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        rows, weight, low_down, low_up, inner = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_inner = gradient @ low_up
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_inner, low_down).view(ctx.shape)
        of_down = (of_inner.t() @ rows).to(ctx.dtype)
        of_up = (gradient.t() @ inner).to(ctx.dtype) * ctx.scaling
        return of_x, None, None, of_down, of_up, None


def _forward(layer: Linear, original, x, *arguments, **keywords):
    """The layer's forward: one step where a single plain adapter is to be trained, peft's own otherwise."""
    name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
    base, device = layer.base_layer, x.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if (name not in layer.lora_A or layer.disable_adapters or layer.merged or arguments or keywords
            or name in layer.lora_variant or layer.lora_bias[name] or not x.dtype == base.weight.dtype == computed
            or (layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity))):
        return original(x, *arguments, **keywords)
    return LoraProduct.apply(x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight,
                             layer.scaling[name])


def fuse_lora(model: PeftModel) -> int:
    """Let the LoRA layers over ordinary linear layers compute in one step; gives their number.

    4-bit layers and, under ZeRO-3, partitioned ones stay as they are.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    layers = [module for module in model.modules()
              if isinstance(module, Linear) and type(module.base_layer) is torch.nn.Linear]
    if is_deepspeed_zero3_enabled():
        layers = []
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)
    return len(layers)
