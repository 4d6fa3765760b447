"""The CUDA and XPU backend: one copy stream, two events a unit, no stream context in the hot path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .backend import Backend
from .pinning import register_cuda
from .staging import Stager
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

    def enter(self) -> bool:
        before, self._compute = self._compute, self._torch.current_stream(self.device)
        self._foreign = self._torch.current_device() != self.device.index
        return bool(before != self._compute)

    def install(self, units: Sequence[Unit]) -> None:
        for unit in units:
            unit.ready = self._torch.Event()
            unit.done = self._torch.Event()
        pageable = any(unit.bytes and not unit.source.is_pinned() for unit in units)
        if pageable and self._stager is None:
            self._stager = Stager(self.device, self._copies)
        elif not pageable and self._stager is not None:
            self._stager.close()
            self._stager = None

    def copy(self, unit: Unit, after: Unit | None) -> None:
        if self._stager is not None:
            # Everything goes through the one worker then, so that copies stay in order.
            self._stager.submit(unit, after, self._stamp(unit))
            return
        copies = self._copies
        if after is not None:
            copies.wait_event(after.done)
        times = self._stamp(unit)
        if times is not None:
            times[0].record(copies)
        previous = self._torch.current_device() if self._foreign else None
        # set_stream costs a microsecond, the stream context manager ten.
        self._torch.set_stream(copies)
        try:
            unit.target.copy_(unit.source, non_blocking=True)
            if self._throttle is not None:
                self._throttle.pace(unit.bytes)
        finally:
            self._torch.set_stream(self._compute)
            if previous is not None:
                self._torch.set_device(previous)
        if times is not None:
            times[1].record(copies)
        unit.ready.record(copies)

    def _stamp(self, unit: Unit) -> tuple[Any, Any] | None:
        if self._timed is None:
            return None
        start, end = self._torch.Event(enable_timing=True), self._torch.Event(enable_timing=True)
        self._timed.append((unit.bytes, start, end))
        return start, end

    def acquire(self, unit: Unit) -> None:
        if self._stager is not None:
            self._stager.wait_issued(unit)
        self._compute.wait_event(unit.ready)

    def leave(self, unit: Unit) -> None:
        unit.done.record(self._compute)

    def rest(self, units: Sequence[Unit]) -> None:
        pass  # fence_copies covers all compute, whatever it read

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
