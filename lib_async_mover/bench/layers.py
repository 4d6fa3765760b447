"""The building blocks of an ldm/sgm UNet, under the attribute names that checkpoints of those models use.

Only inference is supported; attention is torch's `scaled_dot_product_attention`.
Shapes: b batch, c channels, h and w latent height and width, t tokens, d width of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Normalisation over 32 groups, as everywhere in these UNets."""
    return nn.GroupNorm(32, channels, eps=eps)


class ResBlock(nn.Module):
    """Two convolutions around an added time embedding, and a shortcut: [b, c_in, h, w] -> [b, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))
        # The Dropout is never active here; it is there so that the convolution is `out_layers.3`.
        self.out_layers = nn.Sequential(
            group_norm(out_channels), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Attention(nn.Module):
    """Attention of x [b, t, d] to `context` [b, s, e], or to itself where `context` is None."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))

    def _split(self, tokens: Tensor) -> Tensor:
        """[b, t, heads * k] -> [b, heads, t, k]"""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        mixed = F.scaled_dot_product_attention(
            self._split(self.to_q(x)), self._split(self.to_k(source)), self._split(self.to_v(source))
        )
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """A linear layer whose first half is scaled by the GELU of its second: [b, t, d] -> [b, t, inner]."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """[b, t, d] -> [b, t, d], four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.net = nn.Sequential(GatedLinear(channels, inner), nn.Dropout(0.0), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the prompt, feed-forward; each normalised before and added after."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of x [b, c, h, w].

    SD1.5 projects in and out with 1x1 convolutions on the picture, SDXL with linear layers on the tokens.
    """

    def __init__(
        self, channels: int, depth: int, context_channels: int, heads: int, linear_projections: bool
    ) -> None:
        super().__init__()
        self.linear_projections = linear_projections
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = self._projection(channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, context_channels, heads) for _ in range(depth)]
        )
        self.proj_out = self._projection(channels)

    def _projection(self, channels: int) -> nn.Module:
        return nn.Linear(channels, channels) if self.linear_projections else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        if not self.linear_projections:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2).contiguous()
        if self.linear_projections:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear_projections:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, (height, -1)).contiguous()
        if not self.linear_projections:
            h = self.proj_out(h)
        return x + h


class Block(nn.Sequential):
    """One entry of `input_blocks` or `output_blocks`, or the `middle_block`: passes each layer what it takes."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sines and cosines of `timesteps` [b] at `channels / 2` geometric frequencies: float32 [b, channels].

    The formula is that of "Attention is all you need", 3.5, with cosines first. Built on the timesteps' device,
    so that it costs no host synchronisation.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.pow(10000.0, -exponents)[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
