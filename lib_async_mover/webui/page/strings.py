"""Every English sentence of the page, in one place. `localizations/*.json` translate them by their text.

The page fills each "{}" with a number; a translation has as many, in the same order.
"""

from __future__ import annotations

# The labels of the script's inputs are names in the API: they never change.
TITLE = "Async lowvram"
BUFFER_LABEL = "Buffer size (MB)"
BUFFER_INFO = "0 = auto"

# What the page's JavaScript shows, by the name it knows it under.
LIVE = {
    # the header
    "on": "On",
    "off": "Off",
    "asked": "Getting the memory use…",
    "vram": "VRAM {} / {} GB",
    "speed": "{} it/s",
    "busy": "preparing the model…",
    "trouble": "see the message inside",
    "silent": "no answer from the webui; asking again in {} s",
    "login": "log in again to see the memory use",
    # the sentence, before there is a measurement
    "is_off": "Off: the webui moves the weights itself.",
    "off_next": "Off from the next image on.",
    "next": "On from the next image on. Images stay the same to the last bit.",
    "unread": "On. The readout is switched off in Settings → Async lowvram.",
    "measuring": "Measuring how fast this card computes and copies.",
    "short": "A few more steps are needed to measure this card: make another image.",
    "measured": "Measured: the best buffer size comes after this image.",
    "working": "Working out the best buffer size…",
    "pending": "{} MB from the next image on.",
    "pending_speed": "{} MB from the next image on: about {} it/s.",
    "pending_auto": "An automatic size from the next image on.",
    # and after it: by what was measured, and with what to do next
    "larger": "{} it/s. {} MB would give {} it/s.",
    "smaller": "{} it/s, as fast as this card can. {} MB would do, and leave {} MB for larger images.",
    "best": "{} it/s, as fast as this card can.",
    "copies": "{} it/s. This card's bus is the limit ({} GB/s): a larger buffer does not fit beside the image.",
    "copies_fp8": "{} it/s. This card's bus is the limit ({} GB/s). FP8 weights (Settings → Optimizations) would halve "
    "what is copied; images change slightly.",
    "auto": "{} it/s, as fast as this card can. Auto chose {} MB: more would gain nothing.",
    "auto_most": "{} it/s. Auto chose {} MB, the most that was free beside the image.",
    "full": "VRAM is nearly full: {} of {} GB. {} MB would leave {} MB more for the image, at {} it/s.",
    "full_most": "VRAM is nearly full: {} of {} GB. Make a smaller image, or close other programs.",
    "windows": "Windows may now use RAM in its place, which is slow: to avoid that, choose Prefer No Sysmem Fallback "
    "in the NVIDIA control panel.",
    "use": "Use {} MB",
    "switch_on": "Switch on",
    "error": "Something went wrong: {}",
    # sizes and the curve
    "auto_size": "auto",
    "preset": "{} MB",
    "preset_speed": "{} MB: {} it/s",
    "curve_point": "{} MB: {} it/s predicted. Click or press Enter to use it",
    "curve_axis_x": "MB of VRAM for weights",
    "curve_axis_y": "it/s",
    # the table of facts, and the bars
    "used": "{} of {} MB: {} MB stay, {} MB take turns",
    "streamed": "{} MB in {} copies a step, at {} GB/s",
    "step": "{} ms measured",
    "step_predicted": "{} ms measured, {} ms predicted, {} ms at best",
    "waits": "{} % of a step",
    "pinned": "{} MB",
    "pinned_pageable": "{} MB, and {} MB that could not be page-locked (slower)",
    "nothing": "nothing yet",
    "blocks_note": "Each bar is a block of the UNet, in the order of use. Point at one to see its size.",
    "block": "{} MB, {} ms a step",
}

# Text that stands in the page from the start.
SLIDER_LABEL = "VRAM for the model's weights; the rest is copied in every step"
AUTO = "↻ Auto"
AUTO_HELP = "Let the extension choose: the smallest buffer that is as fast as any that fits"
PRESETS_LABEL = "Buffer size presets"
DETAILS_TITLE = "Details"
CURVE_TITLE = "Speed against VRAM for weights"
CURVE_LEGEND = (
    "Line: predicted from times measured on this card. Dot: measured in the last image. Ring: the size chosen. Click "
    "to use a size."
)
PICTURE_TITLE = "Where the weights of each block are"
LEGEND_RESIDENT = "stay on the GPU"
LEGEND_STREAMED = "stream in every step"
FACT_WEIGHTS = "Weights on the GPU"
FACT_STREAMED = "Streamed"
FACT_STEP = "One step"
FACT_WAITS = "Waiting for weights"
FACT_PINNED = "Page-locked RAM"
HELP_TITLE = "What does this mean?"
HELP = (
    "Stable Diffusion uses the layers of its UNet one after the other, in every step. This extension keeps the weights "
    "in page-locked RAM and copies each layer's weights to the GPU before their turn comes, so that the GPU need not "
    "wait.",
    "The buffer is all the VRAM that the UNet's weights take. With a larger one fewer weights have to be copied in "
    "every step. Above a certain size that gains nothing: the curve shows where.",
    "Images also need VRAM of their own, for activations and for the VAE. If memory runs out, the buffer gives way by "
    "itself; if that is not enough, make smaller images, or use an attention optimization such as sdp and a tiled VAE.",
    "Only the box in the header switches: to stop, untick it, and the next image uses the webui's own mechanism. "
    "Folding this panel changes nothing.",
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
