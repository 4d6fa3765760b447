"""One stage on the GPU at a time: the contract of `lowvram.module_in_gpu`, kept by streamed stages too.

Stock's closures and other extensions know one verb: `lowvram.module_in_gpu.to(cpu)` when another stage comes.
A streamed stage has no module to move, it has arenas to give back; so an `Occupant` sits in `module_in_gpu`
and translates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from modules import lowvram
from torch import nn

from lib_async_mover.webui import ahead

if TYPE_CHECKING:
    from lib_async_mover import Mover
    from lib_async_mover.webui.part import Part

_LOCK = threading.RLock()


class Occupant:
    """Stands in `lowvram.module_in_gpu` for a streamed stage. `module` is the stage's (first) module."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def module(self) -> nn.Module:
        return self._stage.module

    @property
    def busy(self) -> bool:
        return self._stage.busy

    def to(self, device: Any = None, *_: Any, **__: Any) -> Occupant:
        """`.to(cpu)` gives the stage's VRAM back; anything else asks for what a forward does by itself."""
        if device is not None and torch.device(device).type == "cpu":
            self._stage.leave_gpu()
        return self

    def __repr__(self) -> str:
        return f"<streamed {self._stage.name}>"


class Stage:
    """What is on the GPU together: it takes the GPU when one of its parts runs, until another stage comes."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        self.name = name
        self.parts = parts
        self.occupant = Occupant(self)
        self.before: Callable[[], None] | None = None  # a forward is about to begin: what comes next may be uploaded
        self.after: Callable[[], None] | None = None  # a forward is over

    @property
    def module(self) -> nn.Module:
        return self.parts[0].module

    @property
    def mover(self) -> Mover:
        return self.parts[0].mover

    def hook(self) -> None:
        for part in self.parts:
            part.stage = self
            part.hook()

    def unhook(self) -> None:
        for part in self.parts:
            part.unhook()

    @property
    def busy(self) -> bool:
        """In the middle of a forward."""
        return any(part.mover.busy for part in self.parts)

    @property
    def on_gpu(self) -> bool:
        return lowvram.module_in_gpu is self.occupant

    def leave_gpu(self) -> None:
        """Give the VRAM back now; a forward that is under way keeps it to its end."""
        for part in self.parts:
            part.mover.release()

    def take_gpu(self) -> None:
        """Send whoever is on the GPU away."""
        with _LOCK:
            held = lowvram.module_in_gpu
            if held is self.occupant:
                return
            if held is not None:
                held.to(lowvram.cpu)
            lowvram.module_in_gpu = self.occupant

    def entered(self, _part: Part) -> None:
        """A forward of a part is about to begin."""
        self.take_gpu()
        ahead.arrived(self)  # also if stock's closure took the GPU for us
        if self.before is not None:
            self.before()

    def left(self, part: Part) -> None:
        """A forward of a part is over."""
        if not self.on_gpu:  # somebody took the GPU in the middle of it
            part.mover.release()
        elif self.after is not None:
            self.after()


def send_everything_to_cpu(stock: Callable[[], None]) -> None:
    """Stock's verb, re-entrant: inside a forward (ControlNet calls it in there) the streamed stage keeps its place."""
    with _LOCK:
        held = lowvram.module_in_gpu
        if isinstance(held, Occupant) and held.busy:
            return
        ahead.drop()
        stock()
