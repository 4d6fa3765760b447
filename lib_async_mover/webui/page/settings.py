"""The Settings section. Keys are in `choice`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from lib_async_mover.memory.pinning import PinLedger, ledger
from lib_async_mover.webui.host import choice
from lib_async_mover.webui.page import strings as s

SECTION = ("async_lowvram", s.SECTION)
CATEGORY = "system"  # of the host's own; a webui without categories does not look
MAX_PIN_MB = 262144


def add_options() -> None:
    """Idempotent; the host calls it whenever it builds the settings."""

    def add(
        key: str, default: Any, label: str, info: str, component: Any, limits: dict | None = None, onchange: Any = None
    ) -> None:
        option = shared.OptionInfo(default, label, component, limits, onchange=onchange, section=SECTION)
        option.category_id = CATEGORY
        shared.opts.add_option(key, option.info(info))

    reset = choice.STANDING.reset
    whole = {"precision": 0}
    seconds = {"minimum": 0, "maximum": 30, "step": 1}
    add(choice.ENABLED_OPTION, False, s.OPTION_ENABLED, s.OPTION_ENABLED_INFO, gr.Checkbox, onchange=reset)
    add(choice.BUFFER_OPTION, 0, s.OPTION_BUFFER, s.OPTION_BUFFER_INFO, gr.Number, whole, reset)
    add(choice.REMEMBER_OPTION, True, s.OPTION_REMEMBER, s.OPTION_REMEMBER_INFO, gr.Checkbox)
    add(choice.ALL_OPTION, True, s.OPTION_ALL, s.OPTION_ALL_INFO, gr.Checkbox)
    add(choice.PIN_OPTION, 0, s.OPTION_PIN, s.OPTION_PIN_INFO, gr.Number, whole, apply_pin_limit)
    add(choice.INTERVAL_OPTION, 1, s.OPTION_INTERVAL, s.OPTION_INTERVAL_INFO, gr.Slider, seconds)


def apply_pin_limit() -> None:
    """For what is page-locked from now on: a model that streams already keeps its pages."""
    limit_mb = choice.as_megabytes(choice.option(choice.PIN_OPTION, 0), 1, MAX_PIN_MB)
    if limit_mb:
        ledger.set_limit_mb(limit_mb)
    else:
        ledger.limit_bytes = PinLedger().limit_bytes
