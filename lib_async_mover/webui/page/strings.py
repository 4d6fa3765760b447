"""Every English sentence of the page, in one place. `localizations/*.json` translate them by their text.

The page fills each "{}" with a number; a translation has as many, in the same order.
"""

from __future__ import annotations

# The labels of the script's inputs are names in the API: they never change.
TITLE = "Async lowvram"
BUFFER_LABEL = "Buffer size (MB)"
BUFFER_INFO = "Keeps about this much of the model's weights on the GPU, and streams the rest. 0 = auto"

# What the page's JavaScript shows, by the name it knows it under.
LIVE = {
    "vram": "VRAM {} / {} GB",
    "weights": "weights {} MB",
    "speed": "{} it/s",
    "waits": "waits {} %",
    "asked": "Getting the memory use…",
    "next": "starts with the next image",
    "measuring": "measuring",
    "busy": "preparing the model…",
    "silent": "no answer from the webui; asking again in {} s",
    "login": "log in again to see the memory use",
    "off_verdict": "Off: the webui moves the weights itself. Tick the box in the header, then make an image.",
    "next_verdict": "On: the weights stream from the next image on. The image stays the same to the last bit.",
    "measuring_verdict": "Measuring how fast this card computes and copies. The curve comes after this image.",
    "curve_point": "{} MB: {} it/s predicted. Click or press Enter to use it",
    "curve_axis_x": "MB of VRAM for weights",
    "curve_axis_y": "it/s",
    "used": "{} of {} MB: {} MB stay, {} MB take turns",
    "streamed": "{} MB in {} copies a step, at {} GB/s",
    "step": "{} ms measured",
    "step_predicted": "{} ms measured, {} ms predicted, {} ms at best",
    "pinned": "{} MB",
    "pinned_pageable": "{} MB, and {} MB that could not be page-locked (slower)",
    "nothing": "nothing yet",
    "blocks_note": "Each bar is a block of the UNet, in the order of use. Point at one to see its size.",
    "block": "{} MB, {} ms a step",
    "full": "VRAM is nearly full: {} of {} GB. Use a smaller buffer or a smaller image.",
    "full_windows": "VRAM is nearly full: {} of {} GB. Windows may now use RAM in its place, which is slow: use a "
    "smaller buffer or image, or choose Prefer No Sysmem Fallback in the NVIDIA control panel.",
    "preset": "{} MB",
}

# Text that stands in the page from the start.
AUTO = "↻ Auto"
AUTO_HELP = "Let the extension choose: the smallest buffer that is as fast as any that fits"
PRESETS_LABEL = "Buffer size presets"
PRESETS_HEADING = "Presets for this card:"
CURVE_TITLE = "Speed against VRAM for weights"
CURVE_LEGEND = "Line: predicted from times measured on this card. Dot: measured in the last image. Click to use a size."
PICTURE_TITLE = "Where the weights of each block are"
LEGEND_RESIDENT = "stay on the GPU"
LEGEND_STREAMED = "stream in every step"
FACT_WEIGHTS = "Weights on the GPU"
FACT_STREAMED = "Streamed"
FACT_STEP = "One step"
FACT_PINNED = "Page-locked RAM"
HELP_TITLE = "What does this mean?"
HELP = (
    "Stable Diffusion uses the layers of its UNet one after the other, in every step. This extension keeps the weights "
    "in page-locked RAM and copies each layer's weights to the GPU before their turn comes, so that the GPU need not "
    "wait.",
    "The buffer is all the VRAM that the UNet's weights take. With a larger one fewer weights have to be copied in "
    "every step. Above a certain size that gains nothing: the curve shows where.",
    "The share after “waits” is the part of a step in which the GPU waits for weights. Near 0 %, a larger buffer "
    "makes nothing faster.",
    "Images also need VRAM of their own, for activations and for the VAE. If memory runs out with a small buffer, make "
    "smaller images, or use an attention optimization such as sdp and a tiled VAE.",
    "To stop: untick the box. The next image then uses the webui's own mechanism.",
)

# Where the extension steps aside
REFUSED_LABEL = "Async lowvram: not used here"
REFUSED = "Not used here: {}. Nothing was changed."

# Settings
SECTION = "Async lowvram"
OPTION_ENABLED = "Stream weights when the webui starts"
OPTION_ENABLED_INFO = "what the box in the accordion is at first; --async-lowvram ticks it too"
OPTION_BUFFER = "Buffer size when the webui starts (MB)"
OPTION_BUFFER_INFO = "0 = auto"
OPTION_REMEMBER = "Remember what was chosen in the accordion"
OPTION_REMEMBER_INFO = "the two settings above follow it"
OPTION_ALL = "Stream the text encoders and the VAE too"
OPTION_ALL_INFO = "otherwise only the UNet; applies when a model starts to stream"
OPTION_PIN = "Most page-locked RAM to use (MB)"
OPTION_PIN_INFO = "0 = auto: 45 % of RAM on Windows, 75 % elsewhere; weights beyond it are copied more slowly"
OPTION_INTERVAL = "Seconds between two updates of the memory readout"
OPTION_INTERVAL_INFO = "0 = no readout"

AXIS = "[Async lowvram] Buffer size"

# What the planner says of a plan (`lib_async_mover.plan.budget.verdict`), with its numbers taken out
VERDICTS = (
    "bus-bound, waiting {} % of the step: a larger buffer helps",
    "compute-bound: a buffer of {} MB would be as fast",
    "compute-bound: a larger buffer would not help",
)

_NOT_TRANSLATED = ("AXIS", "TITLE", "SECTION", "REFUSED", "REFUSED_LABEL")


def translatable() -> list[str]:
    """All strings that a localization should have. The webui puts a setting's remark in brackets."""
    texts: list[str] = []
    for name, value in list(globals().items()):
        if not name.isupper() or name in _NOT_TRANSLATED or name.startswith("_"):
            continue
        if isinstance(value, str):
            texts.append(f"({value})" if name.startswith("OPTION_") and name.endswith("_INFO") else value)
        else:
            texts += value.values() if isinstance(value, dict) else value
    return list(dict.fromkeys(texts))
