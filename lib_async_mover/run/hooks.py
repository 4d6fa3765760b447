"""The hooks a mover leaves on modules. They never travel: a copied or pickled module carries inert ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def inert(*args: Any, **kwargs: Any) -> None:
    """What a hook becomes in a deep copy or a pickle of the module: nothing."""


def _inert() -> Any:
    return inert


class Hook:
    """Calls one of its owner's methods, as torch calls hooks; ``leaf`` in front, if there is one."""

    def __init__(self, call: Callable[..., None], *leaf: Any) -> None:
        self.owner: Any = getattr(call, "__self__", None)
        self._call = call
        self._leaf = leaf

    def __call__(self, *args: Any) -> None:
        self._call(*self._leaf, *args)

    def __deepcopy__(self, memo: dict) -> Any:
        return inert

    def __reduce__(self) -> Any:
        return _inert, ()
