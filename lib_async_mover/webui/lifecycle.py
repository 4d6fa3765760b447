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
        self.adapter.before_sampling(p, *self._choice(enabled, buffer_mb))

    def before_process(self, p: Any, enabled: Any = None, buffer_mb: Any = None, *_: Any) -> None:
        """The hook before a generation, ahead of any checkpoint that it loads."""
        self.adapter.begin_generation(p, *self._choice(enabled, buffer_mb))

    def process(self, p: Any, *_: Any) -> None:
        """The hook before conditioning and the VAE's first use: the live model is the generation's by now."""
        self.adapter.apply(p.sd_model)

    @staticmethod
    def _choice(enabled: Any, buffer_mb: Any) -> tuple[Any, Any]:
        return (STATE.wanted.enabled, STATE.wanted.buffer_mb) if enabled is None else (enabled, buffer_mb)


_extension: Extension | None = None


def begin(host: Host) -> Extension:
    """Idempotent: a second call, after a reload of the script, finds the first one's state."""
    global _extension
    if _extension is None:
        _extension = Extension(host)
    _extension.adapter.arm()
    script_callbacks.on_script_unloaded(_extension.adapter.disarm)
    return _extension
