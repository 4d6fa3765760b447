"""One stage on the GPU at a time: the contract of `lowvram.module_in_gpu`, kept by streamed stages too.

Stock's closures and other extensions know one verb: `lowvram.module_in_gpu.to(cpu)` when another stage comes.
A streamed stage has no module to move, it has an arena to give back; so an `Occupant` sits in `module_in_gpu`
and translates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from modules import lowvram
from torch import nn

if TYPE_CHECKING:
    from lib_async_mover import Mover

_LOCK = threading.RLock()


class Occupant:
    """Stands in `lowvram.module_in_gpu` for a streamed stage. `module` is the stage's module."""

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
    """One module that streams: it takes the GPU when its forward starts and gives it up when another stage comes."""

    def __init__(self, name: str, module: nn.Module, mover: Mover) -> None:
        self.name = name
        self.module = module
        self.mover = mover
        self.occupant = Occupant(self)
        self._depth = 0
        self._handles: list[Any] = []

    def hook(self) -> None:
        """Watch the module's forward: before the mover enters it, and after the mover has left it."""
        if self._handles:
            return
        self._handles = [
            self.module.register_forward_pre_hook(self._before, prepend=True),
            self.module.register_forward_hook(self._after, always_call=True),
        ]

    def unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._depth = 0

    @property
    def busy(self) -> bool:
        """In the middle of a forward."""
        return self._depth > 0

    @property
    def on_gpu(self) -> bool:
        return lowvram.module_in_gpu is self.occupant

    def leave_gpu(self) -> None:
        """Give the VRAM back now; a forward that is under way keeps it to its end."""
        if not self.busy:
            self.mover.release()

    def take_gpu(self) -> None:
        """Send whoever is on the GPU away, and start uploading."""
        with _LOCK:
            held = lowvram.module_in_gpu
            if held is self.occupant:
                return
            if held is not None:
                held.to(lowvram.cpu)
            lowvram.module_in_gpu = self.occupant
        self.mover.prefetch()

    def _before(self, _module: nn.Module, _args: Any) -> None:
        if not self._handles:
            return
        self._depth += 1
        if self._depth == 1:
            self.take_gpu()

    def _after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0 and not self.on_gpu:  # somebody took the GPU in the middle of the forward
            self.mover.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        """The hooks that a copy of the model carries: they do nothing."""
        return Stage(self.name, self.module, self.mover)


def send_everything_to_cpu(stock: Callable[[], None]) -> None:
    """Stock's verb, re-entrant: inside a forward (ControlNet calls it in there) the streamed stage keeps its place."""
    with _LOCK:
        held = lowvram.module_in_gpu
        if isinstance(held, Occupant) and held.busy:
            return
        stock()
