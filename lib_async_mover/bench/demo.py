"""The demo: a benchmark with settings that show the point on what this machine has."""

from __future__ import annotations

from .budget import parse_budgets
from .device import default_device
from .options import BenchOptions


def demo_options(device: str | None = None) -> BenchOptions:
    """SD1.5's real shapes on a GPU; without one, the tiny UNet on a CPU with an emulated bus.

    On the CPU the bus is set so slow that copying all weights takes 0.8 of a step's computing, as for SD1.5 on a
    laptop's RTX 3060: it shows in the step unless it overlaps.
    """
    device = device or default_device()
    if device.startswith("cpu"):
        return BenchOptions(
            model="tiny", device=device, budgets=tuple(parse_budgets("20%,35%,50%")), steps=20, bus_ratio=0.8
        )
    return BenchOptions(
        model="sd15", device=device, budgets=tuple(parse_budgets("128,256,512,1024,50%")), steps=10
    )
