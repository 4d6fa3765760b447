"""The accordion in txt2img and img2img. Building it reads state and changes nothing: with `--api` the host builds it
several times. Only two inputs are gradio's; everything that moves is `panel`'s, and JavaScript's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from lib_async_mover.webui.host.choice import MAX_BUFFER_MB, STANDING
from lib_async_mover.webui.page import panel, strings


def build(elem_id: Callable[[str], str]) -> list[Any]:
    """Returns the script's inputs: enabled, buffer size in MB. Their labels are API names: do not change them."""
    choice = STANDING.get()
    with InputAccordion(choice.enabled, label=strings.TITLE, elem_id=elem_id("enabled")) as enabled:
        with enabled.extra():
            gr.HTML(panel.header())
        gr.HTML(panel.sentence())
        with gr.Row(elem_classes="alv-size"):
            buffer_mb = gr.Number(
                label=strings.BUFFER_LABEL,
                info=strings.BUFFER_INFO,
                value=choice.buffer_mb,
                precision=0,
                minimum=0,
                maximum=MAX_BUFFER_MB,
                min_width=160,
                elem_id=elem_id("buffer_mb"),
            )
            with gr.Column(scale=3, min_width=200):
                gr.HTML(panel.sizes())
        gr.HTML(panel.details(elem_id("panel")))
    # Kept in the settings (see `StandingChoice`), which the first start would otherwise freeze in ui-config.json.
    for component in (enabled, getattr(enabled, "accordion", None), buffer_mb):
        if component is not None:
            component.do_not_save_to_config = True
    return [enabled, buffer_mb]
