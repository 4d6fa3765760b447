"""Random weights: quick to make, different in every tensor, and tame enough for float16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .shapes import UNetShape
from .unet import UNet, build_unet


def random_unet(shape: UNetShape, device: torch.device, dtype: torch.dtype, seed: int) -> UNet:
    """A UNet with seeded random weights, parked on the CPU. `device` lends a hand if it has the room.

    A GPU draws SDXL's weights in a fraction of a second, a CPU needs ten seconds and more. One seed gives one set of
    weights per kind of device and torch version.
    """
    unet = build_unet(shape)
    try:
        fill_weights(unet, device, dtype, seed)
    except torch.cuda.OutOfMemoryError:
        # Too large for this card in one piece, which is what the package is for.
        unet = build_unet(shape)
        fill_weights(unet, torch.device("cpu"), dtype, seed)
    return unet.to("cpu")


@torch.no_grad()
def fill_weights(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Give a meta module its storage on `device` and seeded random values."""
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
