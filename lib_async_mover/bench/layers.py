"""The building blocks of an ldm/sgm UNet, under the attribute names that checkpoints of those models use.

Only inference is supported; attention is torch's `scaled_dot_product_attention`.
Shapes: b batch, c channels, h and w latent height and width, t tokens, d width of a token.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F


def named(**layers: nn.Module) -> nn.Sequential:
    """One layer after the other, under these attribute names."""
    return nn.Sequential(OrderedDict(layers))


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Normalisation over 32 groups, as everywhere in these UNets."""
    return nn.GroupNorm(32, channels, eps=eps)


class ResBlock(nn.Module):
    """Two convolutions around an added time embedding, and a shortcut: [b, c_in, h, w] -> [b, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(group_norm(in_channels), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))
        # The Dropout is never active here; it is there so that the convolution is `out_layers.3`.
        self.out_layers = nn.Sequential(group_norm(out_channels), nn.SiLU(), nn.Dropout(0.0), second)
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Attention of x [b, t, d] to `source` [b, s, e], which may be x itself."""

    def __init__(self, channels: int, source_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source_channels, channels, bias=False)
        self.to_v = nn.Linear(source_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        tokens = self.to_q(x), self.to_k(source), self.to_v(source)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in tokens)  # [b, heads, t, d / heads]
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedGELU(nn.Module):
    """The first half of the last dimension, scaled by the GELU of the second: [b, t, 2 d] -> [b, t, d]."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the prompt, feed-forward; each normalised before and added after."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        gated = named(proj=nn.Linear(channels, 8 * channels), gate=GatedGELU())
        self.ff = named(net=nn.Sequential(gated, nn.Dropout(0.0), nn.Linear(4 * channels, channels)))
        self.attn2 = Attention(channels, context_channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of x [b, c, h, w].

    SD1.5 projects in and out with 1x1 convolutions on the picture, SDXL with linear layers on the tokens.
    """

    def __init__(self, channels: int, depth: int, context_channels: int, heads: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        blocks = [TransformerBlock(channels, context_channels, heads) for _ in range(depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm(x) if self.linear else self.proj_in(self.norm(x))
        h = h.flatten(2).transpose(1, 2).contiguous()
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).unflatten(2, x.shape[2:]).contiguous()
        return x + (h if self.linear else self.proj_out(h))


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
