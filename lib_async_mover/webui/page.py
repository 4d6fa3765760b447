"""Tells the host what the page, the API and the settings get from this extension."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib_async_mover.webui import choice, refusal
from lib_async_mover.webui.state import STATE

if TYPE_CHECKING:
    from lib_async_mover.webui.lifecycle import Extension


def register(extension: Extension | None) -> None:
    """Each time the host executes the script: it has forgotten all callbacks then."""
    if extension is None:
        return
    from modules import script_callbacks

    from lib_async_mover.webui import options, route, xyz

    choice.take_defaults()
    extension.adapter.arm()  # with what the settings say, before the model is loaded
    options.apply_pin_limit()
    script_callbacks.on_ui_settings(options.add_options)
    script_callbacks.on_before_ui(xyz.add_axis)
    script_callbacks.on_app_started(route.add_routes)


def build(extension: Extension | None, elem_id: Callable[[str], str]) -> list[Any]:
    """The script's part of the page. Returns the script's inputs."""
    if extension is not None:
        return extension.ui(elem_id)
    return refusal.build((STATE.host and STATE.host.reason) or "?", elem_id)
