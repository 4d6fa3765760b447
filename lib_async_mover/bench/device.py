"""The device under measurement: its name, its clock, its memory. CUDA, XPU, and the CPU as a stand-in."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from lib_async_mover.bench.errors import BenchError


def device_types() -> list[str]:
    """What this machine has of "cuda", "xpu" and "cpu", the best first."""
    gpus = [kind for kind in ("cuda", "xpu") if hasattr(torch, kind) and getattr(torch, kind).is_available()]
    return [*gpus, "cpu"]


class Device:
    """One torch device, with the few things a benchmark asks of it in the same words for all kinds.

    A CPU's memory is not counted: 0 bytes, always. Raises BenchError when the machine has no such device.
    """

    def __init__(self, name: str) -> None:
        device = torch.device(name)
        self.is_cpu = device.type == "cpu"
        if device.type not in device_types():
            raise BenchError(f"this machine has no {name!r} device that torch can use: try --device cpu")
        if not self.is_cpu:
            self._runtime: Any = getattr(torch, device.type)
            index = self._runtime.current_device() if device.index is None else device.index
            device = torch.device(device.type, index)
            self._runtime.set_device(device)  # events below are recorded in the current device's stream
        self.torch_device = device

    @property
    def name(self) -> str:
        """What the device calls itself, or the processor's architecture."""
        cpu = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
        return cpu if self.is_cpu else str(self._ask("get_device_name"))

    def _ask(self, function: str) -> Any:
        return 0 if self.is_cpu else getattr(self._runtime, function)(self.torch_device)

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        self._ask("synchronize")

    def release(self) -> None:
        """Drop garbage and hand cached device memory back, so that one measurement does not fragment the next."""
        gc.collect()
        if not self.is_cpu:
            self.synchronize()
            self._runtime.empty_cache()

    def free_bytes(self) -> int:
        """Device memory that nobody has taken."""
        return 0 if self.is_cpu else int(self._ask("mem_get_info")[0])

    def allocated_bytes(self) -> int:
        """Device memory that tensors hold now, by torch's own count."""
        return int(self._ask("memory_allocated"))

    def peak_bytes(self) -> int:
        """The most that tensors held at once since `reset_peak`."""
        return int(self._ask("max_memory_allocated"))

    def reset_peak(self) -> None:
        """Start a new count of `peak_bytes`."""
        self._ask("reset_peak_memory_stats")

    def time_ms(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Milliseconds of each of `repeats` calls of `work`, back to back, without a host wait between them.

        On a GPU these are times between marks in its current stream: work that is queued ahead counts when it runs.
        What `work` queued earlier may still run before the first mark: the steady state that a caller wants to time.
        """
        if self.is_cpu:
            moments_s = [time.perf_counter()]
            for _ in range(repeats):
                work()
                moments_s.append(time.perf_counter())
            return [(after - before) * 1e3 for before, after in pairwise(moments_s)]
        marks = [self._runtime.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        self.synchronize()
        return [before.elapsed_time(after) for before, after in pairwise(marks)]
