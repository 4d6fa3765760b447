"""A small model for engine tests, in shapes that give the mover something to stumble over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Edit = Callable[[nn.Module], object]


class _Editable(nn.Module):
    """Calls ``edit(self)`` inside its forward, where a LoRA would: right before it computes."""

    edit: Edit | None = None

    def forward(self, *args: Any) -> Any:
        if self.edit is not None:
            self.edit(self)
        return super().forward(*args)


class Linear(_Editable, nn.Linear):
    pass


class Conv2d(_Editable, nn.Conv2d):
    pass


class Block(nn.Module):
    """Runs its leaves in another order than it defines them, as the transformer blocks of ldm do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.late = Linear(width, width)
        self.early = Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.late(torch.tanh(self.early(self.norm(x))))


class Net(nn.Module):
    """A chain of blocks, with a convolution, wider layers, and a buffer that is read directly.

    Runs what its ``path`` says, block numbers in any order and any number of times, and raises ``error`` at its step
    ``fail_at``.
    """

    fail_at: int | None = None
    error: BaseException = RuntimeError("an out-of-memory error, say")

    def __init__(self, blocks: int = 6, width: int = 32) -> None:
        super().__init__()
        self.path: Sequence[int] = range(blocks)
        self.register_buffer("table", torch.randn(width))
        self.embed = Conv2d(4, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = Linear(4 * width, width, bias=False)
        self.out = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.table
        for step, number in enumerate(self.path):
            if step == self.fail_at:
                raise self.error
            x = self.blocks[number](x)
        return self.out(self.narrow(torch.tanh(self.wide(x))))

    def edit_inside(self, edit: Edit | None) -> None:
        """Three leaves are edited so in every forward from now on; None ends it."""
        for leaf in (self.blocks[2].late, self.embed, self.narrow):
            leaf.edit = edit


def make(model: type[nn.Module] = Net, seed: int = 0, **kwargs: int) -> Any:
    """A model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return model(**kwargs).eval()


def rows(seed: int = 1, size: int = 8) -> torch.Tensor:
    """An input for `Chain`, and for whatever has one inside."""
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """Eight linear layers; a subclass reads something of its own ``before`` and ``after`` them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.after(x)


def image(seed: int = 1, size: int = 8) -> torch.Tensor:
    """An input for `Net`."""
    return torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(seed))
