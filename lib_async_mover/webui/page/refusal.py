"""What stands in the accordion's place on a host that is left alone: the reason, and no control."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from lib_async_mover.webui.page import strings


def build(reason: str, elem_id: Callable[[str], str]) -> list[Any]:
    """Returns the script's inputs: none."""
    with gr.Accordion(label=strings.REFUSED_LABEL, open=False, elem_id=elem_id("refused")):
        gr.HTML(f'<p class="async-lowvram-refused">{escape(strings.REFUSED.format(reason))}</p>')
    return []
