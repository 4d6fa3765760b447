"""Callbacks by category. Loading the scripts again clears them, as the host does."""

from __future__ import annotations

callbacks: dict[str, list] = {}


def clear_callbacks():
    callbacks.clear()


def on_script_unloaded(callback, *, name=None):
    callbacks.setdefault("script_unloaded", []).append(callback)


def on_ui_settings(callback, *, name=None):
    callbacks.setdefault("ui_settings", []).append(callback)


def on_before_ui(callback, *, name=None):
    callbacks.setdefault("before_ui", []).append(callback)


def on_app_started(callback, *, name=None):
    callbacks.setdefault("app_started", []).append(callback)


def script_unloaded_callback():
    for callback in reversed(callbacks.get("script_unloaded", [])):
        callback()
