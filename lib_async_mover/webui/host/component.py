"""A component: one module of a stage, with its mover, watched where it is entered and left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lib_async_mover import Mover
from lib_async_mover.webui.host.method_patch import MethodPatch
from lib_async_mover.webui.host.stages import ComponentSpec


class Component:
    """`on_enter` is called before a forward of the module, `on_leave` after it, unless it is one within another."""

    def __init__(self, spec: ComponentSpec, mover: Mover) -> None:
        self.key = spec.key
        self.module = spec.module
        self.mover = mover
        self.failed = False  # its last forward ended by an error
        self._spec = spec
        self._on_enter: Callable[[], None] | None = None
        self._on_leave: Callable[[], None] | None = None
        self._handles: list[Any] = []
        self._entrances: list[Entrance] = []

    def hook(self, on_enter: Callable[[], None], on_leave: Callable[[], None]) -> None:
        """Watch the module: before the mover enters it, and after the mover has left it."""
        self._on_enter, self._on_leave = on_enter, on_leave
        module, owner = self.module, self._spec.owner
        if owner is not None:
            self._entrances = [Entrance(self, owner, name) for name in self._spec.methods]
            for entrance in self._entrances:
                entrance.install()
        else:
            self._handles = [
                module.register_forward_pre_hook(Watch(self.enter), prepend=True),
                module.register_forward_hook(Watch(self.leave), always_call=True),
            ]
        if self.key.startswith("text"):
            embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
            self._handles += [part.register_forward_pre_hook(bring_along) for part in embeddings]

    def unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        for entrance in self._entrances:
            entrance.close()
        self._handles, self._entrances = [], []
        self._on_enter = self._on_leave = None

    def enter(self) -> None:
        if self._on_enter is not None and not self.mover.busy:
            self._on_enter()

    def leave(self) -> None:
        if self._on_leave is not None and not self.mover.busy:
            self.failed = sys.exc_info()[0] is not None
            self._on_leave()


class Watch:
    """A hook, in front of the mover's or behind it. It never travels with a copy of the model: the copy's is inert."""

    def __init__(self, notify: Callable[[], None] | None) -> None:
        self._notify = notify

    def __call__(self, *_: Any) -> None:
        if self._notify is not None:
            self._notify()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return Watch(None)


class Entrance(MethodPatch):
    """A method through which a module is entered that is not called itself."""

    def __init__(self, component: Component, owner: nn.Module, name: str) -> None:
        super().__init__(owner, name)
        self._component: Component | None = component

    def close(self) -> None:
        """For good: if somebody wraps us, calls are only passed on from now on."""
        self._component = None
        self.remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        component = self._component
        if component is None:
            return self.original()(*args, **kwargs)
        component.enter()
        frame = sys._getframe()
        component.mover.enter_forward(args, kwargs, frame)
        completed = False
        try:
            result = self.original()(*args, **kwargs)
            completed = True
            return result
        finally:
            component.mover.leave_forward(frame, completed)
            component.leave()


def bring_along(module: Any, args: tuple) -> tuple | None:
    """Token ids go to where the embedding's weight is: SD3's encoders ask it where it lies before it is called."""
    device = module.weight.device
    if not any(isinstance(value, torch.Tensor) and value.device != device for value in args):
        return None
    return tuple(value.to(device) if isinstance(value, torch.Tensor) else value for value in args)
