"""Laid into the webui as an extension: the CPU backend keeps account of page-locked RAM as a GPU's does, and a test
may have the system refuse it. Nothing is really locked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from modules import script_callbacks

refused = False


def lock(address: int, count: int) -> Callable[[], None] | None:
    return None if refused else (lambda: None)


if "lib_async_mover" in sys.modules:  # ours comes first by name; the models are loaded after both
    from lib_async_mover.device.cpu import CpuBackend

    CpuBackend.page_lock = staticmethod(lock)


def routes(_: Any, app: Any) -> None:
    @app.post("/probe/lock")
    def refuse(body: dict) -> dict:
        global refused
        refused = body["refused"]
        return {}

    @app.get("/probe/held")
    def held() -> dict:
        """Bytes that are page-locked by our account, and that movers hold on the device."""
        if "lib_async_mover" not in sys.modules:
            return {"pinned": 0, "device": 0}
        from lib_async_mover.memory.pinning import ledger
        from lib_async_mover.webui.host.conversion import CONVERSIONS

        device = sum(mover.stats()["arena_mib"] or 0 for mover in CONVERSIONS.movers())
        return {"pinned": ledger.pinned_bytes, "device": int(device * 2**20)}


script_callbacks.on_app_started(routes)
