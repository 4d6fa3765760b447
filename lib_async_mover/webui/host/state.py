"""What the adapter knows, apart from the models: the host, what is asked for, what was last said.

It lives in the package: *Reload UI* and *Reload custom script bodies* execute the script again, while models,
and the hooks on them, stay.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from lib_async_mover.webui.host.choice import Choice
from lib_async_mover.webui.host.detection import Host, flag_given

logger = logging.getLogger("async_lowvram")


class State:
    """One per process."""

    def __init__(self) -> None:
        self.host = Host(torch.device("cpu"), "the script has not run yet")
        self.requested = Choice()  # by the generation at hand, or the last one
        self.given_up = False  # the mover failed: stock makes the rest of this generation
        self.last_line = ""
        self.last_error: str | None = None
        self.error_is_new = False  # of the generation at hand, or after it

    @property
    def streaming(self) -> bool:
        """Does the mover take the models that come now?"""
        return self.requested.enabled and not self.given_up

    def begin_generation(self) -> None:
        """A fresh start after a failure."""
        self.given_up = self.error_is_new = False

    def say(self, line: str) -> None:
        """Log one line for an event."""
        self.last_line = line
        logger.info("%s", line)

    def warn(self, line: str, error: BaseException | None = None) -> None:
        """Log one line for something that went wrong, with the traceback of `error` if given."""
        self.last_error, self.error_is_new = line, True
        logger.warning("%s", line, exc_info=error)

    def facts(self) -> dict[str, Any]:
        """As plain values; `enabled` and `buffer_mb` are what the last generation asked for."""
        return {
            "supported": self.host.supported,
            "reason": self.host.reason,
            "device": str(self.host.device),
            "flag": flag_given(),
            "enabled": self.requested.enabled,
            "buffer_mb": self.requested.buffer_mb,
            "last_line": self.last_line,
            "last_error": self.last_error,
        }


STATE = State()
