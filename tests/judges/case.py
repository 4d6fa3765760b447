"""A judge: an architecture that others wrote, built small with random weights, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from lib_async_mover.memory.leaf import aligned, extent_bytes

rand = torch.randn


@dataclass(frozen=True)
class Case:
    """``inputs`` are keyword arguments, other ones on every call; torch's dice are cast beforehand."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]

    def model(self) -> nn.Module:
        """Without a tensor that hides others: many begin as zeros, such as the last layer of a ControlNet."""
        torch.manual_seed(0)
        model = self.build().eval()
        learned = [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "embed"))]
        for tensor in [*model.parameters(), *learned]:
            tensor.add_(rand(tensor.shape), alpha=0.02)
        return model

    def draw(self, seed: int) -> dict[str, Any]:
        """The inputs of one forward."""
        torch.manual_seed(seed)
        return self.inputs()


def ids(*shape: int, below: int = 99) -> torch.Tensor:
    """Token numbers, none of them special."""
    return torch.randint(3, below, shape)


def steps(count: int = 1) -> torch.Tensor:
    """Time steps of a diffusion."""
    return torch.randint(0, 999, (count,))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All in whatever a model returned, caches included."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
    elif is_dataclass(value):
        yield from tensors([getattr(value, field.name) for field in fields(value)])
    elif type(value).__module__.startswith(("transformers.", "diffusers.")):
        yield from tensors(list(vars(value).values()))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two results are equal to the bit."""
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def owned(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors, those that no state dict has too; shared ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def packed_bytes(model: nn.Module) -> int:
    """Bytes of all tensors as they are packed: the padding counts where layers are so small."""
    distinct = {id(tensor): tensor for tensor in owned(model).values()}
    return sum(aligned(extent_bytes(tensor)) for tensor in distinct.values())
