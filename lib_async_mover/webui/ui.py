"""The accordion in txt2img and img2img. Building it reads state and changes nothing: with `--api` the host builds it
several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from lib_async_mover.webui.state import AUTO_BUFFER_MB, STATE

MAX_SLIDER_MB = 8192


def build(elem_id: Callable[[str], str]) -> list[Any]:
    """Returns the script's inputs: enabled, buffer size in MB. Their labels are API names: do not change them."""
    with InputAccordion(STATE.wanted.enabled, label="Async lowvram", elem_id=elem_id("enabled")) as enabled:
        buffer_mb = gr.Slider(
            label="Buffer size (MB)",
            minimum=0,
            maximum=MAX_SLIDER_MB,
            step=16,
            value=STATE.wanted.buffer_mb,
            elem_id=elem_id("buffer_mb"),
            info=f"Keeps about this much of the model's weights on the GPU. 0 = auto ({AUTO_BUFFER_MB} MB for now)",
        )
        gr.HTML(status_line(), elem_id=elem_id("status"))
    return [enabled, buffer_mb]


def status_line() -> str:
    """One line for the accordion."""
    device = STATE.host.device if STATE.host else "the GPU"
    how = "from the first model load on (--async-lowvram)" if STATE.flag else "from the next image on, when enabled"
    return f"<p>Weights stream to {device} ahead of the compute, {how}. Images stay bit-identical.</p>"
