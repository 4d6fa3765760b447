"""The extension's life inside the host: script executed, again and again; script unloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import script_callbacks

from lib_async_mover.webui import ui
from lib_async_mover.webui.adapter import Adapter
from lib_async_mover.webui.host import Host
from lib_async_mover.webui.state import STATE


class Extension:
    """What the script talks to."""

    def __init__(self, host: Host) -> None:
        self.adapter = Adapter(host)

    def ui(self, elem_id: Callable[[str], str]) -> list[Any]:
        return ui.build(elem_id)

    def before_sampling(self, p: Any, enabled: Any = None, buffer_mb: Any = None, *_: Any) -> None:
        """The hook before every sampling. A nested pass that hands on no arguments keeps the choice that stands."""
        if enabled is None:
            enabled, buffer_mb = STATE.wanted.enabled, STATE.wanted.buffer_mb
        self.adapter.before_sampling(p.sd_model, enabled, buffer_mb)


_extension: Extension | None = None


def begin(host: Host) -> Extension:
    """Idempotent: a second call, after a reload of the script, finds the first one's state."""
    global _extension
    if _extension is None:
        _extension = Extension(host)
    _extension.adapter.arm()
    script_callbacks.on_script_unloaded(_extension.adapter.disarm)
    return _extension
