"""Laid into the benchmark's webui behind its probe: plays small cards without a GPU.

One of N GB decodes images of 128² · N pixels at most, of a batch altogether; more is out of memory.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from modules import processing, scripts

probe = next(entry.module for entry in scripts.scripts_data if entry.path.endswith("async_lowvram_bench.py"))
probe.FAILED = None  # that there is no CUDA
probe.CARD.gb = json.loads(os.environ[probe.SETTINGS_VARIABLE])["vram_gb"]
probe.CARD.play = lambda gb: setattr(probe.CARD, "gb", gb)
decode = processing.decode_latent_batch


def decode_or_refuse(model: Any, batch: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    pixels = batch.shape[0] * batch.shape[2] * batch.shape[3] * 64
    if pixels > 128 * 128 * probe.CARD.gb:
        raise torch.cuda.OutOfMemoryError(f"CUDA out of memory: {pixels} pixels")
    return decode(model, batch, *args, **kwargs)


processing.decode_latent_batch = decode_or_refuse
