"""What the adapter knows: what the user wants, which models stream, what was last said.

It lives in the package: *Reload UI* and *Reload custom script bodies* execute the script again, while models,
and the hooks on them, stay.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from lib_async_mover.webui.logs import logger

if TYPE_CHECKING:
    from lib_async_mover import Mover
    from lib_async_mover.webui.convert import Conversion
    from lib_async_mover.webui.host import Host



@dataclass(frozen=True)
class Wanted:
    """The user's choice. `buffer_mb` = 0 leaves the size to the extension."""

    enabled: bool = False
    buffer_mb: int = 0

    @property
    def vram_mb(self) -> float:
        """As `attach` wants it."""
        return self.buffer_mb


class State:
    """One per process. `lock` guards `conversions`, and is held while a model is converted or restored."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.host: Host | None = None
        self.flag = False
        self.wanted = Wanted()
        self.given_up = False  # the mover failed: stock makes the rest of this generation
        self.conversions: WeakKeyDictionary[nn.Module, Conversion] = WeakKeyDictionary()
        self.last_line = ""
        self.last_error: str | None = None

    @property
    def streaming(self) -> bool:
        """Does the mover take the models that come now?"""
        return self.wanted.enabled and not self.given_up

    def say(self, line: str) -> None:
        """Log one line for an event."""
        self.last_line = line
        logger.info("%s", line)

    def warn(self, line: str, error: BaseException | None = None) -> None:
        """Log one line for something that went wrong, with the traceback of `error` if given."""
        self.last_error = line
        logger.warning("%s", line, exc_info=error)

    def conversion_of(self, sd_model: object) -> Conversion | None:
        if not isinstance(sd_model, nn.Module):
            return None
        with self.lock:
            return self.conversions.get(sd_model)

    def movers(self) -> list[Mover]:
        """Every mover that is on a live model."""
        with self.lock:
            return [part.mover for conversion in list(self.conversions.values()) for part in conversion.parts]

    def status(self) -> dict[str, Any]:
        """Everything a readout wants, as plain values: JSON can hold it.

        `models` has one entry per model that streams, with `stats()` of each part's mover: unet, text,
        text_2, …, vae_encoder, vae_decoder.
        """
        with self.lock:
            conversions = list(self.conversions.values())
            return {
                "supported": self.host is not None and self.host.supported,
                "reason": self.host.reason if self.host else None,
                "host": self.host.name if self.host else None,
                "device": str(self.host.device) if self.host else None,
                "flag": self.flag,
                "enabled": self.wanted.enabled,
                "buffer_mb": self.wanted.buffer_mb,
                "vram_mb": self.wanted.vram_mb,
                "models": [
                    {"name": c.name, "stages": {part.root.key: part.mover.stats() for part in c.parts}}
                    for c in conversions
                ],
                "last_line": self.last_line,
                "last_error": self.last_error,
            }


STATE = State()


def status() -> dict[str, Any]:
    """`STATE.status()`, for whoever serves it."""
    return STATE.status()
