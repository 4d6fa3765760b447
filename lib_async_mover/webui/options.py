"""The Settings section. Keys are in `choice`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from lib_async_mover.pinning import PinLedger, ledger
from lib_async_mover.webui import choice, strings
from lib_async_mover.webui.state import STATE

SECTION = ("async_lowvram", strings.SECTION)
MAX_PIN_MB = 262144


def add_options() -> None:
    """Idempotent; the host calls it whenever it builds the settings."""

    def add(key: str, default: Any, label: str, info: str, component: Any, limits: dict | None, onchange: Any) -> None:
        option = shared.OptionInfo(default, label, component, limits, onchange=onchange, section=SECTION)
        shared.opts.add_option(key, option.info(info))

    buffer = {"minimum": 0, "maximum": choice.MAX_BUFFER_MB, "step": choice.BUFFER_STEP_MB}
    seconds = {"minimum": 0, "maximum": 30, "step": 1}
    s = strings
    add(choice.ENABLED_OPTION, False, s.OPTION_ENABLED, s.OPTION_ENABLED_INFO, gr.Checkbox, None,
        choice.follow_settings)  # fmt: skip
    add(choice.BUFFER_OPTION, 0, s.OPTION_BUFFER, s.OPTION_BUFFER_INFO, gr.Slider, buffer, choice.follow_settings)
    add(choice.REMEMBER_OPTION, True, s.OPTION_REMEMBER, s.OPTION_REMEMBER_INFO, gr.Checkbox, None, None)
    add(choice.ALL_OPTION, True, s.OPTION_ALL, s.OPTION_ALL_INFO, gr.Checkbox, None, None)
    add(choice.PIN_OPTION, 0, s.OPTION_PIN, s.OPTION_PIN_INFO, gr.Number, {"precision": 0}, apply_pin_limit)
    add(choice.INTERVAL_OPTION, 1, s.OPTION_INTERVAL, s.OPTION_INTERVAL_INFO, gr.Slider, seconds, None)


def apply_pin_limit() -> None:
    """For what is page-locked from now on: a model that streams already keeps its pages."""
    wanted_mb = choice.size_mb(choice.option(choice.PIN_OPTION, 0))
    if wanted_mb == 0:
        ledger.limit_bytes = PinLedger().limit_bytes
        return
    ledger.set_limit_mb(min(wanted_mb, MAX_PIN_MB))
    if STATE.host is not None:
        STATE.last_line = f"page-locked RAM is limited to {wanted_mb} MB"
