"""Memory in use, by the field names of the webui's own `/sdapi/v1/memory`. All sizes in bytes.

Cheap enough to be asked once a second, and a guest: it creates no CUDA context and resets no peak.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch


def memory(device: torch.device) -> dict[str, Any]:
    """{"ram": …, "cuda": …}; each is {"error": …} where it cannot be told. `cuda` is XPU too, as in the host."""
    return {"ram": _ram(), "cuda": _device_memory(device)}


def _ram() -> dict[str, Any]:
    found = _process()
    if found is None:
        return {"error": "psutil is not installed"}
    process, total = found
    used = process.memory_info().rss
    return {"free": total - used, "used": used, "total": total}


@lru_cache(maxsize=1)
def _process() -> tuple[Any, int] | None:
    try:
        import psutil
    except ImportError:
        return None
    return psutil.Process(os.getpid()), int(psutil.virtual_memory().total)


def _device_memory(device: torch.device) -> dict[str, Any]:
    api = getattr(torch, device.type, None)
    if device.type not in ("cuda", "xpu") or api is None:
        return {"error": "unavailable"}
    if not api.is_initialized():
        return {"error": "not used yet"}
    try:
        return _counters(api, device)
    except (RuntimeError, AttributeError) as error:  # an old XPU build has no mem_get_info
        return {"error": f"{error}"}


def _counters(api: Any, device: torch.device) -> dict[str, Any]:
    stats = api.memory_stats(device)
    free, total = api.mem_get_info(device)

    def pair(name: str) -> dict[str, int]:
        return {"current": stats.get(f"{name}.all.current", 0), "peak": stats.get(f"{name}.all.peak", 0)}

    return {
        "system": {"free": free, "used": total - free, "total": total},
        "active": pair("active_bytes"),
        "allocated": pair("allocated_bytes"),
        "reserved": pair("reserved_bytes"),
        "inactive": pair("inactive_split_bytes"),
        "events": {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)},
    }
