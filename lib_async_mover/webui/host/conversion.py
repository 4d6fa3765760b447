"""What was done to each model that streams, and what is needed to undo it."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lib_async_mover import Mover, detach
from lib_async_mover.webui.host.component import Component
from lib_async_mover.webui.host.guard import Guard
from lib_async_mover.webui.host.guests import GUESTS
from lib_async_mover.webui.host.residency import Stage
from lib_async_mover.webui.host.stock import Hook, Placed, Redirected, StockLayout, undo_redirect


class Conversion:
    """One per model that streams. Holds parts of the model, never the model itself."""

    def __init__(self, name: str, found: StockLayout, taken: list[Placed], vram_mb: float) -> None:
        """
        Args:
            found: how stock held the UNet.
            taken: stock's hooks that were taken off it.
        """
        self.name = name
        self.found = found
        self.taken = taken
        self.vram_mb = vram_mb
        self.stages: list[Stage] = []
        self.redirected: list[Redirected] = []
        self.guards: list[Guard] = []
        self.oom_retries = 0  # calls of stages that were made again because memory ran out

    @property
    def hook(self) -> Hook | None:
        """Stock's closure for this model, if stock ever set it up."""
        return self.taken[0].hook if self.taken else None

    @property
    def components(self) -> list[Component]:
        return [component for stage in self.stages for component in stage.components]

    @property
    def busy(self) -> bool:
        """In the middle of a forward of any component."""
        return any(stage.busy for stage in self.stages)

    def undo(self) -> None:
        """Everything of ours goes, and the weights are on the CPU. Stock's hooks on the UNet are not put back."""
        for guard in self.guards:
            guard.remove()
        for entry in self.redirected:
            undo_redirect(entry)
        for stage in self.stages:
            stage.unhook()
            for component in stage.components:
                GUESTS.dismiss(component.mover)
                detach(component.module)


class Conversions:
    """The models that stream. `lock` is held while one of them is converted or restored."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._by_model: WeakKeyDictionary[nn.Module, Conversion] = WeakKeyDictionary()

    def of(self, sd_model: Any) -> Conversion | None:
        with self.lock:
            return self._by_model.get(sd_model) if isinstance(sd_model, nn.Module) else None

    def add(self, sd_model: nn.Module, conversion: Conversion) -> None:
        with self.lock:
            self._by_model[sd_model] = conversion

    def remove(self, sd_model: nn.Module) -> None:
        with self.lock:
            self._by_model.pop(sd_model, None)

    def items(self) -> list[tuple[nn.Module, Conversion]]:
        with self.lock:
            return list(self._by_model.items())

    def movers(self) -> list[Mover]:
        """Every mover that is on a live model."""
        return [component.mover for _, conversion in self.items() for component in conversion.components]

    def stats(self) -> list[dict[str, Any]]:
        """See `webui.status`."""
        with self.lock:
            return [
                {
                    "name": one.name,
                    "oom_retries": one.oom_retries,
                    "stages": {part.key: part.mover.stats() for part in one.components},
                }
                for _, one in self.items()
            ]


CONVERSIONS = Conversions()
