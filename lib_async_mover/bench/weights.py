"""Random weights: quick to make, different in every tensor, and tame enough for float16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill_weights(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Give a meta module its storage on `device` and seeded random values.

    They are drawn where they shall lie: a GPU fills SDXL in a fraction of a second, a CPU needs half a minute.
    One seed gives one set of weights per kind of device and torch version.
    """
    module.to(dtype)
    module.to_empty(device=device)
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_(generator=generator)
        _scale(name, parameter)


def _scale(name: str, values: Tensor) -> None:
    """Scale standard normal `values` in place so that activations keep about unit variance through the UNet.

    Matrices and kernels get variance 1 / fan-in. Nothing is left at a constant, neither norms nor biases: a
    wrong tensor that reaches a computation must change its result.
    """
    if values.dim() > 1:
        fan_in = values[0].numel()
        values.mul_(fan_in**-0.5)
    elif name.endswith("bias"):
        values.mul_(0.05)
    else:  # the weight of a norm
        values.mul_(0.05).add_(1.0)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, alignment not counted."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
