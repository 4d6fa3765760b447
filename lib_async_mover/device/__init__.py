"""How bytes move: copy streams, events, and the memory copies themselves. Knows bytes and fences, never a module."""

from __future__ import annotations

import torch

from lib_async_mover.device.accelerator import AcceleratorBackend
from lib_async_mover.device.backend import Backend
from lib_async_mover.device.cpu import CpuBackend
from lib_async_mover.errors import UnsupportedDeviceError


def backend_for(device: torch.device) -> Backend:
    """For where the weights are wanted; "cpu" plays it. Raises UnsupportedDeviceError if there is no copy stream."""
    if device.type == "cpu":
        return CpuBackend()
    runtime = getattr(torch, device.type, None)
    if device.type not in ("cuda", "xpu") or runtime is None or not runtime.is_available():
        raise UnsupportedDeviceError(
            f"expected a CUDA or XPU device (cpu, to try it out), found {device}: not supported here, nothing changed"
        )
    return AcceleratorBackend(device)
