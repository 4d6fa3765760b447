"""Our replacements for functions of the host, put in once and taken out without a trace."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from modules import devices, lowvram, sd_models

from lib_async_mover.errors import AsyncMoverError
from lib_async_mover.memory.host_store import trim_heap
from lib_async_mover.webui.host import convert, residency
from lib_async_mover.webui.host.conversion import CONVERSIONS
from lib_async_mover.webui.host.state import STATE

TRAININGS = (
    ("modules.textual_inversion.textual_inversion", "train_embedding"),
    ("modules.hypernetworks.hypernetwork", "train_hypernetwork"),
)


class Patch:
    """Replaces `owner.name` by `around(original, *args)`. If others have wrapped ours since, it goes quiet instead."""

    def __init__(self, owner: ModuleType, name: str, around: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self._around = around
        self._original: Callable[..., Any] | None = None
        self._wrapper: Callable[..., Any] | None = None
        self._active = False

    @property
    def original(self) -> Callable[..., Any]:
        """What stands there without us."""
        return self._original or getattr(self.owner, self.name)

    def install(self) -> None:
        self._active = True
        if self._wrapper is not None:  # there already, perhaps under somebody else's wrapper
            return
        original = getattr(self.owner, self.name)

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return original(*args, **kwargs)
            return self._around(original, *args, **kwargs)

        self._original, self._wrapper = original, wrapper
        _rebind(original, wrapper)

    def uninstall(self) -> None:
        self._active = False
        if self._wrapper is not None and getattr(self.owner, self.name, None) is self._wrapper:
            _rebind(self._wrapper, self._original)
            self._original = self._wrapper = None


def _rebind(old: Any, new: Any) -> None:
    """Wherever a module has `old`, its own or imported by name (the host's API has the trainings), it has `new`."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for key in [key for key, value in list(vars(module).items()) if value is old]:
                setattr(module, key, new)


class Patches:
    """The set of them. `set_up(stock, sd_model, use_medvram)` stands in for `lowvram.setup_for_low_vram`."""

    def __init__(self, set_up: Callable[..., None]) -> None:
        self._patches = [
            Patch(lowvram, "setup_for_low_vram", set_up),
            Patch(lowvram, "is_needed", _is_needed),
            Patch(lowvram, "send_everything_to_cpu", residency.send_everything_to_cpu),
            Patch(devices, "torch_gc", _torch_gc),
            Patch(sd_models, "send_model_to_trash", _send_model_to_trash),
            *_trainings(),
        ]

    def stock_is_needed(self, sd_model: Any) -> bool:
        """Do the webui's own flags park this model in RAM?"""
        return bool(next(patch for patch in self._patches if patch.name == "is_needed").original(sd_model))

    def install(self) -> None:
        """Idempotent. Either all of them are in afterwards, or, on an error, none."""
        try:
            for patch in self._patches:
                patch.install()
        except Exception:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        for patch in reversed(self._patches):
            patch.uninstall()


def _torch_gc(stock: Callable[[], None]) -> None:
    """Emptying the cache must not find a copy in flight."""
    for mover in CONVERSIONS.movers():
        mover.backend.synchronize()
    stock()


def _is_needed(stock: Callable[[Any], bool], sd_model: Any) -> bool:
    """A model that streams, or is about to, is parked in RAM, whatever the webui's flags say."""
    return STATE.streaming or CONVERSIONS.of(sd_model) is not None or stock(sd_model)


def _send_model_to_trash(stock: Callable[[Any], None], sd_model: Any) -> None:
    """Its weights go to the meta device: their page-locked RAM must go back first."""
    try:
        convert.discard(sd_model)
    except AsyncMoverError as error:
        STATE.warn(f"page-locked RAM of a model that is thrown away stays until its forward is over: {error}")
    stock(sd_model)
    trim_heap()


def _trainings() -> list[Patch]:
    found = []
    for name, function in TRAININGS:
        try:
            found.append(Patch(importlib.import_module(name), function, _train))
        except ImportError:  # a host without training
            continue
    return found


def _train(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Streamed weights take no part in gradients. The host refuses to train under --lowvram; a model that was toggled
    goes back to stock for it."""
    given_up, STATE.given_up = STATE.given_up, True
    try:
        for sd_model, _ in CONVERSIONS.items():
            convert.restore(sd_model)
        return stock(*args, **kwargs)
    finally:
        STATE.given_up = given_up
