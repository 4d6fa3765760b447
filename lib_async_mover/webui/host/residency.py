"""One stage on the GPU at a time: the contract of `lowvram.module_in_gpu`, kept by streamed stages too.

Stock's closures and other extensions know one verb: `lowvram.module_in_gpu.to(cpu)` when another stage comes.
A streamed stage has no module to move, it has arenas to give back; so an `Occupant` sits in `module_in_gpu`
and translates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from modules import lowvram
from torch import nn

from lib_async_mover.webui.host.component import Component

_LOCK = threading.RLock()


class Occupant:
    """Stands in `lowvram.module_in_gpu` for the streamed components of a stage. `module` is the first one's."""

    def __init__(self, name: str, components: Sequence[Component]) -> None:
        self._name = name
        self._components = components
        self.module: nn.Module = components[0].module

    @property
    def busy(self) -> bool:
        """In the middle of a forward."""
        return any(component.mover.busy for component in self._components)

    def to(self, device: Any = None, *_: Any, **__: Any) -> Occupant:
        """`.to(cpu)` gives the stage's VRAM back now, or at the end of a forward that is under way; anything else asks
        for what a forward does by itself."""
        if device is not None and torch.device(device).type == "cpu":
            for component in self._components:
                component.mover.release()
        return self

    def __repr__(self) -> str:
        return f"<streamed {self._name}>"


class Stage:
    """What is on the GPU together: it takes the GPU when one of its components runs, until another stage comes.
    `on_enter` is told which."""

    def __init__(
        self, name: str, components: Sequence[Component], on_enter: Callable[[Component], None] | None = None
    ) -> None:
        self.name = name
        self.components = components
        self.occupant = Occupant(name, components)
        self._on_enter = on_enter

    @property
    def busy(self) -> bool:
        return self.occupant.busy

    @property
    def on_gpu(self) -> bool:
        return lowvram.module_in_gpu is self.occupant

    def hook(self) -> None:
        for component in self.components:
            component.hook(partial(self._entered, component), partial(self._left, component))

    def unhook(self) -> None:
        """The components' weights must be on the CPU, or go there next."""
        if self.on_gpu:
            lowvram.module_in_gpu = None
        for component in self.components:
            component.unhook()

    def take_gpu(self) -> None:
        """Send whoever is on the GPU away."""
        with _LOCK:
            held = lowvram.module_in_gpu
            if held is self.occupant:
                return
            if held is not None:
                held.to(lowvram.cpu)
            lowvram.module_in_gpu = self.occupant

    def _entered(self, component: Component) -> None:
        self.take_gpu()
        if self._on_enter is not None:
            self._on_enter(component)

    def _left(self, component: Component) -> None:
        if not self.on_gpu:  # somebody took the GPU in the middle of the forward
            component.mover.release()


def give_vram_back() -> None:
    """An image begins, and what other extensions load for it wants room: the one before it may have failed half-way,
    and then its last stage is still on the GPU."""
    if isinstance(lowvram.module_in_gpu, Occupant):
        lowvram.send_everything_to_cpu()


def send_everything_to_cpu(stock: Callable[[], None]) -> None:
    """Stock's verb, re-entrant: inside a forward (ControlNet calls it in there) the streamed stage keeps its place."""
    with _LOCK:
        held = lowvram.module_in_gpu
        if not (isinstance(held, Occupant) and held.busy):
            stock()
