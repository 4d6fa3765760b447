"""The hooks a mover leaves on modules. They never travel: a copied or pickled module carries inert ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from .leaf import Leaf

if TYPE_CHECKING:
    from .mover import Mover


def inert(*args: Any, **kwargs: Any) -> None:
    """What a hook becomes in a deep copy or a pickle of the module: nothing."""


def _inert() -> Any:
    return inert


class Hook:
    """Belongs to one mover."""

    def __init__(self, mover: Mover) -> None:
        self.mover = mover

    def __deepcopy__(self, memo: dict) -> Any:
        return inert

    def __reduce__(self) -> Any:
        return _inert, ()


class Trap(Hook):
    """Forward pre-hook of a leaf that is not bound. A bound leaf carries none, so it costs nothing."""

    def __init__(self, mover: Mover, leaf: Leaf) -> None:
        super().__init__(mover)
        self.leaf = leaf

    def __call__(self, module: nn.Module, args: tuple) -> None:
        self.mover.trapped(self.leaf, args)


class RootEnter(Hook):
    """Forward pre-hook of the root."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.mover.begin(args, kwargs, sys._getframe(1))


class RootPark(Hook):
    """State-dict and load-state-dict pre-hook of the root: its weights are in RAM, and the device reads none."""

    def __call__(self, *args: Any) -> None:
        self.mover.park()


class RootLeave(Hook):
    """Forward hook of the root, called after exceptions too."""

    def __call__(self, module: nn.Module, args: tuple, result: Any) -> None:
        self.mover.finish(result is not None or sys.exc_info()[0] is None)
