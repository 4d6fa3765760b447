"""What a UNet is called with in one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.shapes import UNetShape

CONTEXT_TOKENS = 77


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward: x [b, 4, h, w], timesteps [b], context [b, 77, e], y [b, labels] or None, and
    hint [b, 3, 8 h, 8 w] for ControlNets."""

    x: Tensor
    timesteps: Tensor
    context: Tensor
    y: Tensor | None
    hint: Tensor

    def run(self, unet: nn.Module) -> Tensor:
        """One step: the UNet's output [b, 4, h, w], on its device, without waiting for it."""
        return unet(self.x, self.timesteps, self.context, self.y, self.hint)


def make_inputs(
    shape: UNetShape, batch: int, size_px: int, device: torch.device, dtype: torch.dtype, seed: int
) -> Inputs:
    """Random inputs for `batch` square images of `size_px` pixels a side. Drawn on the CPU: the same everywhere.

    Raises BenchError for sizes the UNet cannot halve as often as it must.
    """
    multiple_px = 8 * 2 ** (len(shape.multipliers) - 1)  # 8 pixels to a latent, halved once per level after the first
    if size_px < multiple_px or size_px % multiple_px:
        raise BenchError(f"{shape.name} takes sizes that divide by {multiple_px}, not {size_px}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device=device, dtype=dtype)

    latent = size_px // 8
    return Inputs(
        x=normal(batch, shape.latent_channels, latent, latent),
        timesteps=torch.randint(0, 1000, (batch,), generator=generator).to(device),
        context=normal(batch, CONTEXT_TOKENS, shape.context_channels),
        y=None if shape.label_channels is None else normal(batch, shape.label_channels),
        hint=normal(batch, 3, size_px, size_px),
    )
