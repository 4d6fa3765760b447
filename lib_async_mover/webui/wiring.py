"""Tells the host what it gets from this extension. Everything is imported here: when the host calls back, the
extension's folder is no longer on sys.path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import script_callbacks

from lib_async_mover.webui.host.lifecycle import LIFECYCLE, Lifecycle
from lib_async_mover.webui.page import accordion, routes, settings, xyz


def connect() -> tuple[Lifecycle, Callable[[Callable[[str], str]], list[Any]]]:
    """Each time the script is executed, since the host has forgotten all callbacks then. See `webui.start`."""
    LIFECYCLE.arm()
    settings.apply_pin_limit()
    script_callbacks.on_script_unloaded(LIFECYCLE.disarm)
    script_callbacks.on_ui_settings(settings.add_options)
    script_callbacks.on_before_ui(xyz.add_axis)
    script_callbacks.on_app_started(routes.add_routes)
    return LIFECYCLE, accordion.build
