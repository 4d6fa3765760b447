"""A part: one module of a stage, with its mover, watched where it is entered and left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lib_async_mover.webui.anatomy import Root
from lib_async_mover.webui.standin import Standin

if TYPE_CHECKING:
    from lib_async_mover import Mover
    from lib_async_mover.webui.residency import Stage


class Entrance(Standin):
    """A method through which a module is entered that is not called itself."""

    def __init__(self, part: Part, owner: nn.Module, name: str) -> None:
        super().__init__(owner, name)
        self._part: Part | None = part

    def close(self) -> None:
        """For good: if somebody wraps us, calls are only passed on from now on."""
        self._part = None
        self.remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        part = self._part
        if part is None:
            return self.original()(*args, **kwargs)
        part.enter()
        part.mover.begin(args, kwargs, sys._getframe())
        completed = False
        try:
            result = self.original()(*args, **kwargs)
            completed = True
            return result
        finally:
            part.mover.finish(completed)
            part.leave()


class Part:
    """Hooks never travel with a copy of the model: the copy gets inert ones."""

    def __init__(self, root: Root, mover: Mover) -> None:
        self.root = root
        self.mover = mover
        self.stage: Stage | None = None
        self._handles: list[Any] = []
        self._entrances: list[Entrance] = []

    @property
    def module(self) -> nn.Module:
        return self.root.module

    def hook(self) -> None:
        """Watch the module: before the mover enters it, and after the mover has left it."""
        module = self.module
        if self.root.owner is not None:
            self._entrances = [Entrance(self, self.root.owner, name) for name in self.root.methods]
            for entrance in self._entrances:
                entrance.install()
        else:
            self._handles = [
                module.register_forward_pre_hook(Before(self), prepend=True),
                module.register_forward_hook(After(self), always_call=True),
            ]
        if self.root.key.startswith("text"):
            embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
            self._handles += [part.register_forward_pre_hook(bring_along) for part in embeddings]

    def unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        for entrance in self._entrances:
            entrance.close()
        self._handles, self._entrances, self.stage = [], [], None

    def enter(self) -> None:
        if self.stage is not None and not self.mover.busy:
            self.stage.entered(self)

    def leave(self) -> None:
        if self.stage is not None and not self.mover.busy:
            self.stage.left(self)


class _Watch:
    def __init__(self, part: Part | None) -> None:
        self.part = part

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(None)


class Before(_Watch):
    """Forward pre-hook of a part's module, in front of the mover's."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.part is not None:
            self.part.enter()


class After(_Watch):
    """Forward hook of a part's module, behind the mover's; called after exceptions too."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.part is not None:
            self.part.leave()


def bring_along(module: Any, args: tuple) -> tuple | None:
    """Token ids go to where the embedding's weight is: SD3's encoders ask it where it lies before it is called."""
    device = module.weight.device
    if not any(isinstance(value, torch.Tensor) and value.device != device for value in args):
        return None
    return tuple(value.to(device) if isinstance(value, torch.Tensor) else value for value in args)
