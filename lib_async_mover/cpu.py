"""The CPU backend: a worker thread plays the copy stream, and a checker looks for missing waits.

For tests and for machines without a GPU. The compute is the calling thread, so it is over when a call returns; what a
real GPU would do wrong without a wait is therefore found by clock stamps: every use of a slot has a time on the
compute's clock, every wait of the copy stream carries one over, and a copy over a slot whose last use it does not know
of raises `RaceError`. Missing waits for copies need no checker: the data is not there yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .arena import Arena
from .backend import Backend
from .errors import RaceError
from .unit import Unit
from .worker import Worker

POISON = 0xFF  # NaN in every float format, and an absurd integer


class CpuBackend(Backend):
    """Copies run in a worker thread, in order, as late as ``delay`` says."""

    waits_block = True

    def __init__(
        self,
        bus_gbps: float | None = None,
        delay: Callable[[int], float] | None = None,
        poison: bool = False,
        memory_bytes: int = 2 << 30,
    ) -> None:
        """
        Args:
            bus_gbps: each copy lasts as long as it would over a bus of so many GB/s.
            delay: seconds to wait before a copy of so many bytes, instead of ``bus_gbps``.
            poison: fill a streamed slot with NaN the moment it is left.
            memory_bytes: what `free_bytes` says.
        """
        self.device = torch.device("cpu")
        if delay is None and bus_gbps:
            per_byte = 1 / (bus_gbps * 1e9)
            delay = lambda count: count * per_byte
        self._delay = delay
        self._poison = poison
        self._memory_bytes = memory_bytes
        self._overlapping: dict[int, list[Unit]] = {}
        self._clock = 0
        self._known = 0  # compute time up to which the copy stream has waited
        self._used: dict[int, float] = {}  # by unit index: when its slot was last read; infinite while in use
        self._taken = 0  # when the arena's memory came from the allocator
        self._timed: list[tuple[int, float]] | None = None
        self._copies = Worker("async-lowvram-copies")

    def enter(self) -> bool:
        return False

    def install(self, units: Sequence[Unit]) -> None:
        self._overlapping = {unit.index: [u for u in units if u.overlaps(unit)] for unit in units}
        self._used = {}

    def copy(self, unit: Unit, after: Unit | None) -> None:
        if after is not None and after.done is not None:
            self._known = max(self._known, after.done)
        unit.ready = threading.Event()
        self._check(unit)
        timed, delay = self._timed, self._delay

        def job() -> None:
            started = time.perf_counter()
            if delay is not None:
                time.sleep(delay(unit.bytes))
            unit.target.copy_(unit.source)
            if timed is not None:
                timed.append((unit.bytes, (time.perf_counter() - started) * 1e3))
            unit.ready.set()

        self._copies.submit(job)

    def _check(self, unit: Unit) -> None:
        for other in self._overlapping[unit.index]:
            used = self._used.get(other.index, 0)
            if used > self._known:
                raise RaceError(
                    f"copy of unit {unit.index} over unit {other.index}, which the compute may still read "
                    f"(until {used}, waited for {self._known})"
                )
        if self._taken > self._known:
            raise RaceError(f"copy of unit {unit.index} into memory that queued compute may still use otherwise")

    def acquire(self, unit: Unit) -> None:
        if not unit.ready.wait(timeout=60):
            raise RaceError(f"unit {unit.index} was waited for but its copy never came")
        if not unit.resident:
            self._used[unit.index] = float("inf")

    def leave(self, unit: Unit) -> None:
        self._clock += 1
        unit.done = self._clock
        self._used[unit.index] = self._clock
        if self._poison and not unit.resident:
            unit.target.fill_(POISON)

    def rest(self, units: Sequence[Unit]) -> None:
        self._clock += 1
        self._used.update((unit.index, self._clock) for unit in units)

    def keep(self, unit: Unit) -> None:
        unit.ready = threading.Event()
        unit.ready.set()

    def fence_copies(self) -> None:
        self._known = self._clock

    def fence_compute(self) -> None:
        self.synchronize()

    def take(self, arena: Arena) -> None:
        super().take(arena)
        self._clock += 1
        self._taken = self._clock
        if self._poison:
            arena.raw.fill_(POISON)

    def free(self, arena: Arena) -> None:
        if self._copies.pending:
            self.synchronize()
            raise RaceError("the arena was given back while copies into it were in flight")
        super().free(arena)

    def synchronize(self) -> None:
        self._copies.drain()

    def free_bytes(self) -> int:
        return self._memory_bytes

    def measure_gbps(self, source: torch.Tensor) -> float:
        started = time.perf_counter()
        source.clone()
        if self._delay is not None:
            time.sleep(self._delay(source.numel()))
        return source.numel() / 1e9 / (time.perf_counter() - started)

    def close(self) -> None:
        self._copies.close()

    def mark_compute(self) -> Any:
        return time.perf_counter()

    def time_copies(self, on: bool) -> None:
        self._timed = [] if on else None

    def copy_times(self) -> list[tuple[int, float]]:
        return list(self._timed or ())

    def passed(self, mark: Any) -> bool:
        return True

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return (end - start) * 1e3
