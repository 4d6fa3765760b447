"""The CUDA and XPU backend: one copy stream, two events a unit, no stream context in the hot path."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .backend import Backend
from .memcpy import driver_memcpy
from .pinning import register_cuda
from .staging import Carry, Stager, by_torch
from .throttle import Throttle
from .unit import Unit


class AcceleratorBackend(Backend):
    """Copies on a dedicated stream of ``torch.cuda`` or ``torch.xpu``, which offer the same calls."""

    def __init__(self, device: torch.device, bus_gbps: float | None = None) -> None:
        self._torch: Any = getattr(torch, device.type)
        index = self._torch.current_device() if device.index is None else device.index
        self.device = torch.device(device.type, index)
        self._copies = self._torch.Stream(device=self.device)
        self._compute = self._torch.current_stream(self.device)
        self._foreign = False  # the device is not the current one
        self._stager: Stager | None = None
        self._throttle = Throttle(self.device, self._copies, bus_gbps) if bus_gbps else None
        self._timed: list[tuple[int, Any, Any]] | None = None
        self._memcpy = driver_memcpy() if device.type == "cuda" else None
        self._stream = self._copies.cuda_stream if self._memcpy is not None else 0
        # A mover that is dropped, not detached, may have copies in flight into memory that is about to be freed. Weak
        # references are told before anything of a cycle is taken apart.
        weakref.finalize(self, self._torch.synchronize, self.device).atexit = False

    def enter(self) -> bool:
        before, self._compute = self._compute, self._torch.current_stream(self.device)
        self._foreign = self._torch.current_device() != self.device.index
        return bool(before != self._compute)

    def install(self, units: Sequence[Unit]) -> None:
        for unit in units:
            unit.ready = self._torch.Event()
            unit.done = self._torch.Event()
        pageable = self.waits_block = any(unit.bytes and not unit.pinned for unit in units)
        if pageable and self._stager is None:
            self._stager = Stager(self.device, self._copies)
        elif not pageable and self._stager is not None:
            self._stager.close()
            self._stager = None

    def copy(self, unit: Unit, after: Unit | None) -> None:
        if self._stager is not None:
            # Everything goes through the one worker then, so that copies stay in order.
            self._stager.submit(unit, after, self._issue)
        elif self._memcpy is not None and self._throttle is None and not self._foreign:
            self._issue(unit, after, self._by_driver)
        else:
            with self._torch.stream(self._copies):
                self._issue(unit, after, by_torch)

    def _by_driver(self, unit: Unit) -> None:
        assert self._memcpy is not None
        self._memcpy(unit.target.data_ptr(), unit.source.data_ptr(), unit.bytes, self._stream)

    def _issue(self, unit: Unit, after: Unit | None, carry: Carry) -> None:
        copies, timed = self._copies, self._timed
        if after is not None:
            copies.wait_event(after.done)
        if timed is None:
            self._carry(unit, carry)
        else:
            start, end = self._torch.Event(enable_timing=True), self._torch.Event(enable_timing=True)
            start.record(copies)
            self._carry(unit, carry)
            end.record(copies)
            timed.append((unit.bytes, start, end))
        unit.ready.record(copies)

    def _carry(self, unit: Unit, carry: Carry) -> None:
        carry(unit)
        if self._throttle is not None:
            self._throttle.pace(unit.bytes)

    def acquire(self, unit: Unit) -> None:
        if self._stager is not None:
            self._stager.wait_issued(unit)
        self._compute.wait_event(unit.ready)

    def leave(self, unit: Unit) -> None:
        unit.done.record(self._compute)

    def rest(self, units: Sequence[Unit]) -> None:
        pass  # fence_copies covers all compute, whatever it read

    def keep(self, unit: Unit) -> None:
        if self._stager is not None:
            self._stager.keep(unit)
        unit.ready.record(self._compute)

    def fence_copies(self) -> None:
        if self._stager is not None:
            self._stager.drain()
        self._copies.wait_stream(self._torch.current_stream(self.device))

    def fence_compute(self) -> None:
        if self._stager is not None:
            self._stager.drain()
        self._torch.current_stream(self.device).wait_stream(self._copies)

    def synchronize(self) -> None:
        if self._stager is not None:
            self._stager.drain()
        self._copies.synchronize()

    def register(self) -> Callable[[int, int], Callable[[], None] | None]:
        if self.device.type == "cuda":
            return lambda address, count: register_cuda(address, count, self.device)
        return lambda address, count: None  # XPU has no registration in place: staged copies

    def free_bytes(self) -> int:
        return int(self._torch.mem_get_info(self.device)[0])

    def close(self) -> None:
        self.synchronize()
        if self._stager is not None:
            self._stager.close()
            self._stager = None

    def measure_gbps(self, source: torch.Tensor) -> float:
        target = torch.empty_like(source, device=self.device)
        start, end = self._torch.Event(enable_timing=True), self._torch.Event(enable_timing=True)
        self._copies.wait_stream(self._torch.current_stream(self.device))
        with self._torch.stream(self._copies):
            target.copy_(source, non_blocking=True)  # the first copy wakes the bus up
            start.record(self._copies)
            target.copy_(source, non_blocking=True)
            if self._throttle is not None:
                self._throttle.pace(source.numel())
            end.record(self._copies)
        end.synchronize()
        return source.numel() / 1e6 / float(start.elapsed_time(end))

    def mark_compute(self) -> Any:
        mark = self._torch.Event(enable_timing=True)
        mark.record(self._compute)
        return mark

    def time_copies(self, on: bool) -> None:
        self._timed = [] if on else None

    def copy_times(self) -> list[tuple[int, float]]:
        return [(count, start.elapsed_time(end)) for count, start, end in self._timed or () if end.query()]

    def passed(self, mark: Any) -> bool:
        return bool(mark.query())

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))
