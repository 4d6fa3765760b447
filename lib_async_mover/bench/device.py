"""The device under measurement: its name, its clock, its memory, its bus. CUDA, XPU, and the CPU as a stand-in."""

from __future__ import annotations

import gc
import logging
import platform
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from .errors import BenchError

logger = logging.getLogger("async_lowvram")

MIB = 1 << 20
_BUS_PROBE_BYTES = 256 * MIB  # a power of two: torch rounds page-locked allocations up to one
_BUS_PROBE_COPIES = 8


def default_device() -> str:
    """The best device type this machine has: "cuda", "xpu" or "cpu"."""
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            return kind
    return "cpu"


class Device:
    """One torch device, with the few things a benchmark asks of it in the same words for all kinds.

    Raises BenchError when the machine has no such device.
    """

    def __init__(self, name: str) -> None:
        device = torch.device(name)
        self.is_cpu = device.type == "cpu"
        self._torch: Any = None
        if not self.is_cpu:
            self._torch = getattr(torch, device.type, None)
            if self._torch is None or not hasattr(self._torch, "is_available") or not self._torch.is_available():
                raise BenchError(f"this machine has no {name!r} device that torch can use: try --device cpu")
            index = self._torch.current_device() if device.index is None else device.index
            device = torch.device(device.type, index)
            self._torch.set_device(device)  # events below are recorded in the current device's stream
        self.torch_device = device

    def leave_room_for_copies(self) -> None:
        """On a CPU the mover's copies run in a thread: without a core left for it, it and the compute would crawl."""
        if self.is_cpu:
            torch.set_num_threads(max(1, torch.get_num_threads() // 2))

    @property
    def name(self) -> str:
        """What the device calls itself, or the processor's architecture."""
        if self.is_cpu:
            return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
        return str(self._torch.get_device_name(self.torch_device))

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if not self.is_cpu:
            self._torch.synchronize(self.torch_device)

    def release(self) -> None:
        """Drop garbage and hand cached device memory back, so that one measurement does not fragment the next."""
        gc.collect()
        if not self.is_cpu:
            self.synchronize()
            self._torch.empty_cache()

    def free_bytes(self) -> int | None:
        """Device memory that nobody has taken; None on a CPU and where torch does not know."""
        read = None if self.is_cpu else getattr(self._torch, "mem_get_info", None)
        return None if read is None else int(read(self.torch_device)[0])

    def allocated_bytes(self) -> int | None:
        """Device memory that tensors hold now, by torch's own count; None where torch does not count it."""
        return self._memory("memory_allocated")

    def peak_bytes(self) -> int | None:
        """The most that tensors held at once since `reset_peak`; None where torch does not count it."""
        return self._memory("max_memory_allocated")

    def reset_peak(self) -> None:
        """Start a new count of `peak_bytes`."""
        if not self.is_cpu and hasattr(self._torch, "reset_peak_memory_stats"):
            self._torch.reset_peak_memory_stats(self.torch_device)

    def _memory(self, counter: str) -> int | None:
        read = None if self.is_cpu else getattr(self._torch, counter, None)
        return None if read is None else int(read(self.torch_device))

    def time_ms(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Milliseconds of each of `repeats` calls of `work`, back to back, without a host wait between them.

        On a GPU these are times between marks in its current stream, so work that is queued ahead counts when it
        runs, not when it is queued. The device is not waited for before the first mark: what `work` queued
        earlier may still run then, which is the steady state that a caller wants to time.
        """
        if self.is_cpu:
            moments_s = [time.perf_counter()]
            for _ in range(repeats):
                work()
                moments_s.append(time.perf_counter())
            return [(after - before) * 1e3 for before, after in pairwise(moments_s)]
        marks = [self._torch.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        self.synchronize()
        return [before.elapsed_time(after) for before, after in pairwise(marks)]

    def measure_h2d_gbps(self) -> float:
        """Bandwidth (1e9 bytes a second) of large copies from page-locked RAM; on the CPU, of plain copies."""
        source = torch.empty(_BUS_PROBE_BYTES, dtype=torch.uint8)
        if not self.is_cpu:
            try:
                source = source.pin_memory()
            except RuntimeError as error:
                logger.warning("no page-locked RAM for the bandwidth measurement, pageable it is: %s", error)
        source.fill_(1)
        target = torch.empty(_BUS_PROBE_BYTES, dtype=torch.uint8, device=self.torch_device)
        times_ms = self.time_ms(partial(target.copy_, source, non_blocking=True), 1 + _BUS_PROBE_COPIES)[1:]
        source = target = torch.empty(0)
        # torch keeps freed page-locked RAM for later use, which would sit in every rss_mib of this run.
        empty_host_cache = getattr(torch._C, "_host_emptyCache", None)
        if empty_host_cache is not None and not self.is_cpu:
            empty_host_cache()
        self.release()
        return _BUS_PROBE_BYTES / (median(times_ms) * 1e6)


def rss_mib() -> float | None:
    """Resident memory of this process in MiB, page-locked RAM included; None where nothing tells."""
    try:
        import psutil

        return float(psutil.Process().memory_info().rss) / MIB
    except ImportError:
        pass
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / MIB
    except (ImportError, OSError):
        return None
