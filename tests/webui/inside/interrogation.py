"""Laid into the webui as an extension: the interrogator without BLIP and CLIP, which would have to be downloaded. What
surrounds them is the webui's own: it evicts everything first.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from modules import interrogate, shared


def load(self: Any) -> None:
    self.dtype = torch.float32
    self.blip_model = SimpleNamespace(generate=lambda *_, **__: [caption()], to=lambda *_: self.blip_model)
    self.clip_model = SimpleNamespace(encode_image=lambda image: torch.ones(1, 4), to=lambda *_: self.clip_model)
    self.clip_preprocess = lambda image: torch.zeros(3, 4, 4)


def caption() -> str:
    """MiB that are on the device while others' models compute."""
    adapter = sys.modules.get("lib_async_mover.webui.host.conversion")
    movers = adapter.CONVERSIONS.movers() if adapter else []
    return f"{sum(mover.stats()['arena_mib'] or 0 for mover in movers):.0f} MiB beside"


interrogate.InterrogateModels.load = load
interrogate.InterrogateModels.categories = lambda self: []
shared.interrogator = interrogate.InterrogateModels("interrogate")
