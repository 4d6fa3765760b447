"""Copied into the benchmark's webui as an extension: tells what its process holds, and plays a smaller card.

The benchmark's own process: here peaks may be reset. All sizes in MiB. Settings come as JSON in the environment.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from fastapi import Body
from modules import devices, script_callbacks, scripts, shared

MIB, GIB = 2**20, 2**30
PATH, SETTINGS_VARIABLE = "/async-lowvram-bench", "ASYNC_LOWVRAM_BENCH"


class Card:
    """The GPU, or a smaller one of `gb` GiB that is played on it."""

    def __init__(self) -> None:
        self.gb: float | None = None
        self._mem_get_info = torch.cuda.mem_get_info

    def play(self, gb: float) -> None:
        """From now on, what a card of this size could not hold is refused. Raises RuntimeError without CUDA."""
        if not torch.cuda.is_available():
            raise RuntimeError("a smaller card can be played on CUDA alone: leave --vram-gb out")
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gb * GIB / total))
        self.gb = gb
        torch.cuda.mem_get_info = torch.cuda.memory.mem_get_info = self.mem_get_info

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """(free, total) in bytes, as on that card with nobody else on it."""
        free, total = self._mem_get_info(device)
        limit = min(total, int((self.gb or 0) * GIB))
        return max(0, min(free, limit - torch.cuda.memory_reserved(device))), limit


def slow_bus(gbps: float) -> None:
    """For the engine's own copies, if our extension is there: stock's cannot be slowed, and stay as they are."""
    engine = sys.modules.get("lib_async_mover")
    if engine is not None:
        from lib_async_mover.bench.throttle import throttled_backend

        engine.backend_for = lambda device: throttled_backend(device, gbps)  # type: ignore[attr-defined]


def peak_rss_bytes() -> int:
    """The most since the process began; `resource` would count what its parent had before."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else int(info.rss)


def movers() -> list[dict[str, Any]]:
    """`stats()` of every mover, the UNets' first."""
    webui = sys.modules.get("lib_async_mover.webui")
    models = webui.status().get("models", []) if webui else []
    stages = [stage for model in models for stage in model.get("stages", {}).items()]
    return [stats for _, stats in sorted(stages, key=lambda stage: stage[0] != "unet")]


def facts() -> dict[str, Any]:
    """What the process holds now, and at most since the last reset (VRAM) or its start (RSS)."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    peaks = torch.cuda.memory_stats() if cuda else {}
    found, pinning = movers(), sys.modules.get("lib_async_mover.memory.pinning")
    return {
        "gpu": torch.cuda.get_device_name() if cuda else f"none (CPU, {platform.machine()})",
        "torch": torch.__version__,
        "own_px": 1024 if getattr(shared.sd_model, "is_sdxl", False) else 512,
        "peak_mib": peaks["allocated_bytes.all.peak"] / MIB if peaks else None,
        "reserved_mib": peaks["reserved_bytes.all.peak"] / MIB if peaks else None,
        "rss_mib": psutil.Process().memory_info().rss / MIB,
        "peak_rss_mib": peak_rss_bytes() / MIB,
        "pinned_mib": pinning.ledger.pinned_bytes / MIB if pinning else 0.0,
        "oom_retries": sum(stats.get("oom_retries") or 0 for stats in found),
        "h2d_gbps": next((stats["h2d_gbps"] for stats in found if stats.get("h2d_gbps")), None),
        "pixels_sha256": PIXELS.get("sha256"),
        "blank": PIXELS.get("blank"),
        "vram_gb": CARD.gb,
    }


def change(vram_gb: float | None = None, reset: bool = False, bus_gbps: float | None = None) -> None:
    """Play another card or bus; `reset`: give back what is cached, and count peaks of VRAM anew."""
    if reset or vram_gb is not None:
        gc.collect()
        devices.torch_gc()  # the host's own, so that our extension sees it
    if vram_gb is not None:
        CARD.play(vram_gb)
    if bus_gbps is not None:
        slow_bus(bus_gbps)
    if reset and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def answer(**wanted: Any) -> dict[str, Any]:
    """The facts, and what went wrong."""
    try:
        change(**wanted)
        return {"error": FAILED, **facts()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def routes(_demo: Any, app: Any) -> None:
    """One, for the benchmark."""
    app.add_api_route(PATH, lambda wanted=Body(...): answer(**wanted), methods=["POST"])  # noqa: B008


class Hash(scripts.Script):
    """Of the pixels, where they are at hand: no image has to be sent or decoded."""

    def title(self) -> str:
        return "Async lowvram benchmark"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        first = processed.index_of_first_image  # a grid may lie before it, other scripts' pictures behind
        digest, blank = hashlib.sha256(), False
        for image in processed.images[first : first + p.batch_size * p.n_iter]:
            pixels = image.convert("RGB")
            blank |= all(low == high for low, high in pixels.getextrema())
            digest.update(pixels.tobytes())
        PIXELS.update(sha256=digest.hexdigest(), blank=blank)


CARD, PIXELS = Card(), dict[str, Any]()
FAILED: str | None = None
try:  # before the model loads
    change(**json.loads(os.environ.get(SETTINGS_VARIABLE, "{}")))
except Exception as error:
    FAILED = f"{type(error).__name__}: {error}"
script_callbacks.on_app_started(routes)
