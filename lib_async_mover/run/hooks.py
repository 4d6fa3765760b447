"""The hooks a mover leaves on modules. They never travel: a copied or pickled module carries inert ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from torch import nn

from lib_async_mover.errors import AsyncMoverError


def inert(*args: Any, **kwargs: Any) -> None:
    """What a hook becomes in a deep copy or a pickle of the module: nothing."""


def _inert() -> Any:
    return inert


class Hook:
    """Calls one of its owner's methods, as torch calls hooks; ``first`` in front, if there is anything."""

    def __init__(self, call: Callable[..., None], *first: Any) -> None:
        self._call = call
        self._first = first

    @property
    def owner(self) -> Any:
        return getattr(self._call, "__self__", None)

    def __call__(self, *args: Any) -> None:
        self._call(*self._first, *args)

    def __deepcopy__(self, memo: dict) -> Any:
        return inert

    def __reduce__(self) -> Any:
        return _inert, ()


class GuestHook(Hook):
    """One on a guest, which may outlive the root: it does not keep its owner alive."""

    def __init__(self, call: Callable[..., None], *first: Any) -> None:
        super().__init__(inert, *first)
        self._ref = WeakMethod(call)

    @property
    def owner(self) -> Any:
        return getattr(self._ref(), "__self__", None)

    def __call__(self, *args: Any) -> None:
        (self._ref() or inert)(*self._first, *args)


def refuse_attached(module: nn.Module) -> None:
    """Raises AsyncMoverError if the module, or one inside it, streams already."""
    for name, child in module.named_modules():
        if any(isinstance(hook, Hook) and hook.owner is not None for hook in child._forward_pre_hooks.values()):
            raise AsyncMoverError(
                f"{name or type(module).__name__} streams already, as part of another module or by itself; "
                "detach that one before this one is attached"
            )
