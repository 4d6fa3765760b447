"""A slower bus, played on a fast one: after each copy the copy stream sleeps until the wanted bus would be done."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from lib_async_mover.bench.device import Device
from lib_async_mover.bench.errors import BenchError
from lib_async_mover.device.accelerator import AcceleratorBackend
from lib_async_mover.device.backend import Backend
from lib_async_mover.device.cpu import CpuBackend

PROBE_BYTES = 64 << 20
PROBE_CYCLES = 20_000_000


def throttled_backend(device: torch.device, gbps: float) -> Backend:
    """A backend whose copies take as long as over a bus of `gbps` (1e9 bytes a second); no effect on a slower one.

    Raises BenchError where no slower bus can be played.
    """
    if device.type == "cpu":
        return CpuBackend(bus_gbps=gbps)
    if device.type != "cuda":
        raise BenchError(f"a slower bus can be played on CUDA and on the CPU, not on {device}: leave --bus-... out")
    return AcceleratorBackend(device, after_copy=sleep_after_copy(device, gbps))


@lru_cache
def sleep_after_copy(device: torch.device, gbps: float) -> Callable[[int], None]:
    """What makes the current stream sleep for as long as so many bytes would still be on their way: one thread does.

    Measured once, so that all rows of a run have the same bus.
    """
    clock = Device(str(device))
    source = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    real_ms_per_byte = clock.time_ms(lambda: target.copy_(source, non_blocking=True), 2)[1] / PROBE_BYTES
    cycles_per_ms = PROBE_CYCLES / clock.time_ms(lambda: torch.cuda._sleep(PROBE_CYCLES), 2)[1]
    cycles_per_byte = max(0.0, 1 / (gbps * 1e6) - real_ms_per_byte) * cycles_per_ms
    return lambda count: torch.cuda._sleep(int(count * cycles_per_byte))
