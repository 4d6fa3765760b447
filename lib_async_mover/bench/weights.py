"""Random weights: quick to make, different in every tensor, and tame enough for float16."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from lib_async_mover.bench.shapes import UNetShape
from lib_async_mover.bench.unet import ControlNet, UNet, build_controlnet, build_unet

Module = TypeVar("Module", UNet, ControlNet)


def random_unet(shape: UNetShape, device: torch.device, dtype: torch.dtype, seed: int) -> UNet:
    """A UNet on the CPU with seeded random weights, which are drawn on `device`: a GPU is much faster at that."""
    return _filled(build_unet(shape), device, dtype, seed)


def random_controlnet(shape: UNetShape, device: torch.device, dtype: torch.dtype, seed: int) -> ControlNet:
    """The like for a ControlNet."""
    return _filled(build_controlnet(shape), device, dtype, seed)


@torch.no_grad()
def _filled(module: Module, device: torch.device, dtype: torch.dtype, seed: int) -> Module:
    """One seed gives one set of weights per kind of device and torch version. They keep about unit variance through the
    UNet: matrices and kernels get variance 1 / fan-in. Nothing is left at a constant, neither norms nor biases: a wrong
    tensor that reaches a computation must change its result.
    """
    module = module.to(dtype).to_empty(device="cpu")
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device=device, dtype=dtype)
        if values.dim() > 1:
            values *= values[0].numel() ** -0.5
        else:
            values = values * 0.05 + (0.0 if name.endswith("bias") else 1.0)  # of a norm, around 1
        parameter.copy_(values)
    return module


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, alignment not counted."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
