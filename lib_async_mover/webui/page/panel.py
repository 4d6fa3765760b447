"""The markup inside the accordion. It never changes: JavaScript fills text nodes and attributes by `data-alv`."""

from __future__ import annotations

import json
from html import escape

from lib_async_mover.webui.page import strings
from lib_async_mover.webui.page.access import PAGE_KEY

PRESETS = 4
GROUPS = 6
CURVE_BOX = "0 0 400 160"
PICTURE_BOX = "0 0 400 110"


def header() -> str:
    """The live line in the accordion's header."""
    return f'<span class="alv-readout" data-alv="readout">{escape(strings.LIVE["asked"])}</span>'


def body(name: str) -> str:
    """Everything below the slider. `name` is its id, and what the ids inside begin with."""
    s, live = strings, strings.LIVE
    facts = "".join(
        f'<div><dt>{escape(label)}</dt><dd data-alv="{key}">{escape(live["nothing"])}</dd></div>'
        for key, label in (
            ("used", s.FACT_WEIGHTS), ("step", s.FACT_STEP), ("streamed", s.FACT_STREAMED), ("pinned", s.FACT_PINNED)
        )
    )  # fmt: skip
    presets = '<button type="button" class="alv-preset" data-alv="preset" hidden>0</button>' * PRESETS
    texts = escape(json.dumps(live, ensure_ascii=False))
    help_text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in s.HELP)
    return f"""<div class="alv" id="{name}" data-strings="{texts}" data-key="{PAGE_KEY}">
<div class="alv-presets" role="group" aria-label="{escape(s.PRESETS_LABEL)}">
<button type="button" class="alv-preset" data-alv="auto" title="{escape(s.AUTO_HELP)}">{escape(s.AUTO)}</button>
<span class="alv-dim" data-alv="presets-heading" hidden>{escape(s.PRESETS_HEADING)}</span>{presets}
</div>
<p class="alv-verdict" data-alv="verdict" aria-live="polite">&#8203;</p>
<p class="alv-warning" data-alv="warning" role="status" hidden>&#8203;</p>
<p class="alv-warning" data-alv="error" role="status" hidden>&#8203;</p>
<dl class="alv-facts" data-alv="facts" hidden>{facts}</dl>
{_curve(name)}
{_picture(name)}
<details class="alv-help"><summary>{escape(s.HELP_TITLE)}</summary>{help_text}</details>
</div>"""


def _curve(name: str) -> str:
    s = strings
    ticks = "".join(
        f'<line class="alv-grid" data-alv="{axis}-line" /><text class="alv-tick" data-alv="{axis}-tick" '
        f'text-anchor="{anchor}">&#8203;</text>'
        for axis, anchor, count in (("x", "middle", 6), ("y", "end", 5))
        for _ in range(count)
    )
    return f"""<figure class="alv-figure" data-alv="curve" aria-labelledby="{name}_curve" hidden>
<figcaption id="{name}_curve">{escape(s.CURVE_TITLE)}</figcaption>
<svg class="alv-curve" data-alv="curve-svg" viewBox="{CURVE_BOX}" role="slider" tabindex="0"
 aria-labelledby="{name}_curve" aria-valuemin="0" aria-valuemax="0" aria-valuenow="0">
{ticks}<path class="alv-area" data-alv="area" /><path class="alv-line" data-alv="line" />
<line class="alv-cursor" data-alv="cursor" visibility="hidden" />
<circle class="alv-ring" data-alv="ring" r="5" visibility="hidden" />
<circle class="alv-dot" data-alv="dot" r="5" visibility="hidden" />
<text class="alv-axis" data-alv="x-name" text-anchor="end" x="396" y="158">{escape(s.LIVE["curve_axis_x"])}</text>
<text class="alv-axis" x="4" y="10">{escape(s.LIVE["curve_axis_y"])}</text>
</svg>
<p class="alv-dim" data-alv="curve-note">{escape(s.CURVE_LEGEND)}</p>
</figure>"""


def _picture(name: str) -> str:
    s = strings
    legend = "".join(
        f'<span data-alv="legend-{key}"><i class="alv-key alv-key-{key}"></i><span>{escape(text)}</span></span>'
        for key, text in (("resident", s.LEGEND_RESIDENT), ("streamed", s.LEGEND_STREAMED))
    )
    groups = '<text class="alv-tick" data-alv="group" text-anchor="middle">&#8203;</text>' * GROUPS
    return f"""<figure class="alv-figure" data-alv="picture" aria-labelledby="{name}_picture" hidden>
<figcaption id="{name}_picture">{escape(s.PICTURE_TITLE)}</figcaption>
<svg class="alv-blocks" data-alv="blocks-svg" viewBox="{PICTURE_BOX}" aria-hidden="true">
<path class="alv-resident" data-alv="resident" />
<path class="alv-streamed" data-alv="streamed-bars" />{groups}</svg>
<p class="alv-legend">{legend}</p>
<p class="alv-dim" data-alv="blocks-note">&#8203;</p>
</figure>"""
