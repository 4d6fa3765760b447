"""A UNet in ldm/sgm layout: the module tree, tensor names and tensor shapes of the real models, weights random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.layers import Block, ResBlock, SpatialTransformer, group_norm, named
from lib_async_mover.bench.shapes import UNetShape


class UNet(nn.Module):
    """The denoiser of SD1.5 or SDXL by `shape`.

    `time_embed`, `input_blocks`, `middle_block`, `output_blocks` and `out` run in this order; `label_emb` is
    there for shapes with `label_channels` and runs right after `time_embed`.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        embedding = 4 * shape.channels  # width of the time (and label) embedding that every residual block receives
        self.time_embed = _embedding(shape.channels, embedding)
        if shape.label_channels is not None:
            self.label_emb = nn.Sequential(_embedding(shape.label_channels, embedding))

        width = shape.channels
        skips = [width]
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(shape.latent_channels, width, 3, padding=1))])
        for level, multiplier in enumerate(shape.multipliers):
            for _ in range(shape.res_blocks):
                layers: list[nn.Module] = [ResBlock(width, multiplier * shape.channels, embedding)]
                width = multiplier * shape.channels
                layers += self._attention(width, shape.transformer_depths[level])
                self.input_blocks.append(Block(*layers))
                skips.append(width)
            if level < len(shape.multipliers) - 1:
                self.input_blocks.append(Block(named(op=nn.Conv2d(width, width, 3, stride=2, padding=1))))
                skips.append(width)

        attention = self._attention(width, shape.middle_depth)
        self.middle_block = Block(ResBlock(width, width, embedding), *attention, ResBlock(width, width, embedding))

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(shape.multipliers))):
            for index in range(shape.res_blocks + 1):
                layers = [ResBlock(width + skips.pop(), multiplier * shape.channels, embedding)]
                width = multiplier * shape.channels
                layers += self._attention(width, shape.transformer_depths[level])
                if level > 0 and index == shape.res_blocks:
                    layers.append(named(up=nn.Upsample(scale_factor=2.0), conv=nn.Conv2d(width, width, 3, padding=1)))
                self.output_blocks.append(Block(*layers))

        self.out = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, shape.latent_channels, 3, padding=1))

    def _attention(self, width: int, depth: int) -> list[nn.Module]:
        """The transformer behind a residual block, or nothing at depth 0."""
        if depth == 0:
            return []
        shape = self.shape
        heads = shape.heads or width // shape.head_channels
        return [SpatialTransformer(width, depth, shape.context_channels, heads, shape.linear_projections)]

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict the noise in latents.

        x [b, 4, h, w]; timesteps [b]; context [b, tokens, context_channels]; y [b, label_channels] for shapes with
        labels and None for the others. Returns [b, 4, h, w].
        """
        emb = self.time_embed(_timestep_embedding(timesteps, self.shape.channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)

        skips = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)


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
    unet.eval().requires_grad_(False)
    count = sum(parameter.numel() for parameter in unet.parameters())
    if shape.parameters is not None and count != shape.parameters:
        raise BenchError(f"the {shape.name} UNet should have {shape.parameters:,} parameters but has {count:,}")
    return unet
