"""Small models for engine tests, in shapes that give the mover something to stumble over."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Runs its leaves in another order than it defines them, as the transformer blocks of ldm do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.late = nn.Linear(width, width)
        self.early = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.late(torch.tanh(self.early(self.norm(x))))


class Net(nn.Module):
    """A chain of blocks of growing width, with a convolution, a buffer that is read directly, and a shared tensor."""

    def __init__(self, blocks: int = 6, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(width))
        self.embed = nn.Conv2d(4, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.wide = nn.Linear(width, 8 * width)
        self.narrow = nn.Linear(8 * width, width, bias=False)
        self.out = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.table
        for block in self.blocks:
            x = block(x)
        return self.out(self.narrow(torch.tanh(self.wide(x))))


def make(model: type[nn.Module] = Net, seed: int = 0, **kwargs: int) -> nn.Module:
    """A model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return model(**kwargs).eval()


def image(seed: int = 1, size: int = 8) -> torch.Tensor:
    """An input for `Net`."""
    return torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(seed))
