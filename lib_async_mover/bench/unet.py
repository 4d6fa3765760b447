"""A UNet in ldm/sgm layout, and the ControlNet that goes with it: module tree, names and shapes of the real models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.layers import Block, ResBlock, SpatialTransformer, group_norm, named
from lib_async_mover.bench.shapes import UNetShape


class Encoder(nn.Module):
    """What UNet and ControlNet share: embeddings, `input_blocks` and `middle_block`."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = embedding = 4 * shape.channels  # width of what every residual block receives
        self.time_embed = _embedding(shape.channels, embedding)
        if shape.label_channels is not None:
            self.label_emb = nn.Sequential(_embedding(shape.label_channels, embedding))

        width = shape.channels
        self.skips = [width]  # channels of what every input block gives
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(shape.latent_channels, width, 3, padding=1))])
        for level, multiplier in enumerate(shape.multipliers):
            for _ in range(shape.res_blocks):
                layers: list[nn.Module] = [ResBlock(width, multiplier * shape.channels, embedding)]
                width = multiplier * shape.channels
                layers += self.attention(width, shape.transformer_depths[level])
                self.input_blocks.append(Block(*layers))
                self.skips.append(width)
            if level < len(shape.multipliers) - 1:
                self.input_blocks.append(Block(named(op=nn.Conv2d(width, width, 3, stride=2, padding=1))))
                self.skips.append(width)

        attention = self.attention(width, shape.middle_depth)
        self.middle_block = Block(ResBlock(width, width, embedding), *attention, ResBlock(width, width, embedding))

    def attention(self, width: int, depth: int) -> list[nn.Module]:
        """The transformer behind a residual block, or nothing at depth 0."""
        if depth == 0:
            return []
        shape = self.shape
        heads = shape.heads or width // shape.head_channels
        return [SpatialTransformer(width, depth, shape.context_channels, heads, shape.linear_projections)]

    def embed(self, timesteps: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every residual block receives: [b, embedding]."""
        emb = self.time_embed(_timestep_embedding(timesteps, self.shape.channels).to(dtype))
        return emb if y is None else emb + self.label_emb(y)


class UNet(Encoder):
    """The denoiser of SD1.5 or SDXL by `shape`.

    `time_embed`, `input_blocks`, `middle_block`, `output_blocks` and `out` run in this order; `label_emb` is
    there for shapes with `label_channels` and runs right after `time_embed`. `controlnets` are no parts of it: it runs
    them as sd-webui-controlnet's hook does.
    """

    controlnets: list[ControlNet]

    def __init__(self, shape: UNetShape) -> None:
        super().__init__(shape)
        self.controlnets = []
        skips, width = list(self.skips), self.skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(shape.multipliers))):
            for index in range(shape.res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(width + skips.pop(), multiplier * shape.channels, self.embedding)]
                width = multiplier * shape.channels
                layers += self.attention(width, shape.transformer_depths[level])
                if level > 0 and index == shape.res_blocks:
                    layers.append(named(up=nn.Upsample(scale_factor=2.0), conv=nn.Conv2d(width, width, 3, padding=1)))
                self.output_blocks.append(Block(*layers))

        self.out = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, shape.latent_channels, 3, padding=1))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None, hint: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in latents.

        x [b, 4, h, w]; timesteps [b]; context [b, tokens, context_channels]; y [b, label_channels] for shapes with
        labels and None for the others; hint [b, 3, 8 h, 8 w] for the ControlNets. Returns [b, 4, h, w].
        """
        controls = [controlnet(x, hint, timesteps, context, y) for controlnet in self.controlnets]
        emb = self.embed(timesteps, y, x.dtype)
        skips = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for control in controls:
            h = h + control.pop()
            skips = [skip + one for skip, one in zip(skips, control, strict=True)]
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)


class ControlNet(Encoder):
    """An encoder that steers a UNet of the same shape: an input for each of its skips, and one for its middle."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__(shape)
        hints = (3, 16, 16, 32, 32, 96, 96, 256, shape.channels)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(hints)):
            stride = 2 if index in (2, 4, 6) else 1
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers[:-1])
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1)) for width in self.skips)
        self.middle_block_out = nn.Sequential(nn.Conv2d(self.skips[-1], self.skips[-1], 1))

    def forward(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None
    ) -> list[Tensor]:
        """One tensor of the shape of each skip, and last one of the middle's; arguments as for the UNet."""
        emb = self.embed(timesteps, y, x.dtype)
        guided = self.input_hint_block(hint)
        h, controls = x, []
        for index, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = block(h, emb, context)
            if index == 0:
                h = h + guided
            controls.append(zero_conv(h))
        return [*controls, self.middle_block_out(self.middle_block(h, emb, context))]


def _embedding(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, out_channels), nn.SiLU(), nn.Linear(out_channels, out_channels))


def _timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sines and cosines of `timesteps` [b] at `channels / 2` geometric frequencies: float32 [b, channels].

    The formula is that of "Attention is all you need", 3.5, with cosines first. Built on the timesteps' device,
    so that it costs no host synchronisation.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.pow(10000.0, -exponents)[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def build_unet(shape: UNetShape) -> UNet:
    """Build the UNet on the meta device, where it takes no memory, in evaluation mode and without gradients.

    Raises BenchError when its parameter count is not the one `shape` promises.
    """
    with torch.device("meta"):
        unet = UNet(shape)
    return _checked(unet, shape.parameters)


def build_controlnet(shape: UNetShape) -> ControlNet:
    """The ControlNet for such a UNet, likewise."""
    with torch.device("meta"):
        controlnet = ControlNet(shape)
    return _checked(controlnet, shape.control_parameters)


def _checked(module: Encoder, promised: int | None) -> Any:
    module.eval().requires_grad_(False)
    count = sum(parameter.numel() for parameter in module.parameters())
    if promised is not None and count != promised:
        name = f"{module.shape.name} {type(module).__name__}"
        raise BenchError(f"the {name} should have {promised:,} parameters but has {count:,}")
    return module
