"""The markup inside the accordion. It never changes: JavaScript fills text nodes and attributes by `data-alv`."""

from __future__ import annotations

import json
from html import escape

from lib_async_mover.webui.page import strings
from lib_async_mover.webui.page.access import PAGE_KEY

PRESETS = 4
GROUPS = 6
TICKS = (("x", "middle", 9), ("y", "end", 5))


def header() -> str:
    """In the accordion's header: on or off, and the live line."""
    return (
        f'<span class="alv-switch" data-alv="switch">{escape(strings.LIVE["off"])}</span>'
        f'<span class="alv-readout" data-alv="readout">{escape(strings.LIVE["asked"])}</span>'
    )


def sentence() -> str:
    """What to do next, and the button that does it."""
    return """<div class="alv"><div class="alv-advice">
<p class="alv-sentence" data-alv="sentence" aria-live="polite">&#8203;</p>
<button type="button" class="alv-button alv-do" data-alv="do" hidden>&#8203;</button></div>
<p class="alv-warning" data-alv="note" role="status" hidden>&#8203;</p></div>"""


def sizes() -> str:
    """Beside the number: a slider of sizes that are worth a choice, and presets."""
    s = strings
    presets = '<button type="button" class="alv-button" data-alv="preset" hidden>&#8203;</button>' * PRESETS
    return f"""<div class="alv">
<p class="alv-dim" aria-hidden="true">{escape(s.SLIDER_LABEL)}</p>
<input type="range" class="alv-range" data-alv="range" min="0" max="0" step="1" aria-label="{escape(s.SLIDER_LABEL)}">
<div class="alv-presets" role="group" aria-label="{escape(s.PRESETS_LABEL)}">
<button type="button" class="alv-button" data-alv="auto" title="{escape(s.AUTO_HELP)}">{escape(s.AUTO)}</button>
{presets}</div></div>"""


def details(name: str) -> str:
    """Everything else, folded. `name` is its id, and what the ids inside begin with."""
    s, live = strings, strings.LIVE
    facts = "".join(
        f'<div><dt>{escape(label)}</dt><dd data-alv="{key}">{escape(live["nothing"])}</dd></div>'
        for key, label in (
            ("used", s.FACT_WEIGHTS), ("step", s.FACT_STEP), ("waits", s.FACT_WAITS), ("streamed", s.FACT_STREAMED),
            ("pinned", s.FACT_PINNED),
        )
    )  # fmt: skip
    texts = escape(json.dumps(live, ensure_ascii=False))
    help_text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in s.HELP)
    return f"""<details class="alv" id="{name}" data-strings="{texts}" data-key="{PAGE_KEY}">
<summary>{escape(s.DETAILS_TITLE)}</summary>
{_curve(name)}
{_picture(name)}
<dl class="alv-facts" data-alv="facts" hidden>{facts}</dl>
<h4>{escape(s.HELP_TITLE)}</h4>{help_text}
</details>"""


def _curve(name: str) -> str:
    s = strings
    ticks = "".join(
        f'<line class="alv-grid" data-alv="{axis}-line" /><text class="alv-tick" data-alv="{axis}-tick" '
        f'text-anchor="{anchor}">&#8203;</text>'
        for axis, anchor, count in TICKS
        for _ in range(count)
    )
    return f"""<figure class="alv-figure" data-alv="curve" aria-labelledby="{name}_curve" hidden>
<figcaption id="{name}_curve">{escape(s.CURVE_TITLE)}</figcaption>
<svg class="alv-curve" data-alv="curve-svg" role="slider" tabindex="0"
 aria-labelledby="{name}_curve" aria-valuemin="0" aria-valuemax="0" aria-valuenow="0">
{ticks}<path class="alv-area" data-alv="area" /><path class="alv-line" data-alv="line" />
<line class="alv-cursor" data-alv="cursor" visibility="hidden" />
<circle class="alv-ring" data-alv="ring" r="7" visibility="hidden" />
<circle class="alv-dot" data-alv="dot" r="4" visibility="hidden" />
<text class="alv-tick" data-alv="x-name" text-anchor="end">{escape(s.LIVE["curve_axis_x"])}</text>
<text class="alv-tick" x="4" y="10">{escape(s.LIVE["curve_axis_y"])}</text>
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
<svg class="alv-blocks" data-alv="blocks-svg" aria-hidden="true">
<path class="alv-resident" data-alv="resident" />
<path class="alv-streamed" data-alv="streamed-bars" />{groups}</svg>
<p class="alv-legend">{legend}</p>
<p class="alv-dim" data-alv="blocks-note">&#8203;</p>
</figure>"""
