"""The adapter to stable-diffusion-webui: the one package here that imports the host's `modules`.

`host` does what has to be done to its models, `page` is what the user sees of it. `start()` is all that the script
needs. What imports parts of the host that a fork may lack is imported only after `detect()` said yes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lib_async_mover.webui.host.detection import detect, flag_given
from lib_async_mover.webui.host.state import STATE
from lib_async_mover.webui.page import refusal

if TYPE_CHECKING:
    from lib_async_mover.webui.host.lifecycle import Lifecycle

__all__ = ["start", "status"]

logger = logging.getLogger("async_lowvram")


def start() -> tuple[Lifecycle | None, Callable[[Callable[[str], str]], list[Any]]]:
    """Called each time the host executes the script.

    Returns the one to tell of generations, None on a host that is left alone, and what builds the script's part of the
    page: it takes what makes an `elem_id` of a name, and returns the script's inputs.
    """
    _make_audible()
    STATE.host = detect()
    if STATE.host.reason is not None:
        ignored = "--async-lowvram is ignored" if flag_given() else "nothing is changed"
        STATE.say(f"not used here, {STATE.host.reason}; {ignored}")
        return None, partial(refusal.build, STATE.host.reason)
    from lib_async_mover.webui.wiring import connect

    return connect()


def status() -> dict[str, Any]:
    """`State.facts`, and "models", one entry per model that streams: its name, and `stats()` of each component's mover
    (unet, text, text_2, …, vae_encoder, vae_decoder). Plain values: JSON can hold them."""
    models: list[dict[str, Any]] = []
    if STATE.host.supported:
        from lib_async_mover.webui.host.conversion import CONVERSIONS

        models = CONVERSIONS.stats()
    return {**STATE.facts(), "models": models}


def _make_audible() -> None:
    """Give the logger a handler of its own, once.

    The webui sets up logging only if `--loglevel` is given; without it, Python would drop our INFO lines.
    """
    if logger.handlers or logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("async lowvram: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
