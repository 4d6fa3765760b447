"""A method of one object replaced, without touching its class: hooks cannot see a method, nor catch an error."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn


class MethodPatch:
    """An attribute of the object itself, in front of the method of its class or of what somebody put there before. What
    derives from it says what a call does."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self._owner = weakref.ref(owner)  # it may hold the whole model, whose end ours must not put off
        self.name = name
        self._previous: Callable[..., Any] | None = vars(owner).get(name)

    @property
    def owner(self) -> nn.Module:
        owner = self._owner()
        assert owner is not None, "called through its owner, which is gone"
        return owner

    def install(self) -> None:
        setattr(self.owner, self.name, self)

    def remove(self) -> None:
        """Gives the place back. If somebody stands in front of us by now, ours stays, and only passes calls on."""
        owner = self._owner()
        if owner is None or vars(owner).get(self.name) is not self:
            return
        if self._previous is None:
            delattr(owner, self.name)
        else:
            setattr(owner, self.name, self._previous)

    def original(self) -> Callable[..., Any]:
        """What would be called without us."""
        return self._previous or MethodType(getattr(type(self.owner), self.name), self.owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model does not stream: it gets its class's method."""
        owner = self.owner
        return MethodType(getattr(type(owner), self.name), memo.get(id(owner), owner))
