"""A slower bus, played on a fast one: after each copy the copy stream sleeps until the wanted bus would be done."""

from __future__ import annotations

from typing import Any

import torch


class Throttle:
    """Paces a CUDA copy stream. The sleep is a one-thread kernel, so it takes nothing from the compute."""

    def __init__(self, device: torch.device, copies: Any, gbps: float) -> None:
        """
        Args:
            gbps: what to slow down to, in 1e9 bytes per second; no effect where the bus is slower already.
        """
        self._sleep = getattr(torch.cuda, "_sleep", None)
        self._wanted_ms_per_byte = 1 / (gbps * 1e6)
        self._real_ms_per_byte = _measure_copy(device, copies)
        self._cycles_per_ms = _measure_sleep(device, copies, self._sleep) if self._sleep else 0.0

    def pace(self, count: int) -> None:
        """Sleeps as long as ``count`` bytes would still be on their way. To be called with the copy stream current."""
        extra_ms = count * (self._wanted_ms_per_byte - self._real_ms_per_byte)
        if self._sleep and extra_ms > 0:
            self._sleep(int(extra_ms * self._cycles_per_ms))


def _timed(device: torch.device, copies: Any, work: Any) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(copies):
        work()
        start.record(copies)
        work()
        end.record(copies)
    end.synchronize()
    return float(start.elapsed_time(end))


def _measure_copy(device: torch.device, copies: Any) -> float:
    count = 64 << 20
    source = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(count, dtype=torch.uint8, device=device)
    elapsed = _timed(device, copies, lambda: target.copy_(source, non_blocking=True))
    torch.cuda.current_stream(device).wait_stream(copies)
    return elapsed / count


def _measure_sleep(device: torch.device, copies: Any, sleep: Any) -> float:
    cycles = 20_000_000
    return cycles / _timed(device, copies, lambda: sleep(cycles))
