"""The profile: how long each leaf computes and how fast the bus is, from timing marks on a real forward.

No mark is ever waited for: a forward that was timed is read at the start of a later one, once the device has passed
its last mark.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from torch import nn

from lib_async_mover.device.backend import Backend, Mark, TimedCopies
from lib_async_mover.memory.joint_store import JointStore
from lib_async_mover.plan.workload import MIB
from lib_async_mover.run.forward_scope import ForwardTimes

WAIT_MS = 0.02  # between the marks around a wait even where nothing is waited for, if the CPU is slower
UNIT_MS = 0.01  # what a streamed unit adds to the device's time: two event waits
STEADY = 0.95  # of the CPU's time: a device that took less is catching up after a pause, which is no rhythm
LEAST_COPIED_BYTES = 64 * MIB  # copies of less say little of the bus, unless the model is small
EARLY = 8  # launches are timed over the first of so many parts of the leaves: the queue has room for those


class Kind(Enum):
    FIRST = auto()  # of a run, residents on their way: copies, and the CPU, which has an idle device before it
    WHOLE = auto()
    LEAVES = auto()  # each of them, which takes some microseconds of the CPU's time


@dataclass(frozen=True)
class Sample:
    """One timed forward, read. Times in ms."""

    span_ms: float  # on the device
    stall_share: float  # of that, waiting for weights
    compute_ms: float  # the rest, without what streamed units add
    launch_ms: float  # CPU time of its launches; infinite if it cannot be told
    cpu_ms: float  # CPU time of all of it, but for load hooks: launches take no longer
    steady: bool  # the next forwards will take as long
    gbps: float  # of the bus; 0 where too little was copied to tell
    leaf_ms: dict[int, float]  # by execution index; empty unless leaves were timed


class ForwardTimer:
    """Times one forward; told by the pipeline of its waits meanwhile."""

    def __init__(self, backend: Backend, store: JointStore, kind: Kind, times: ForwardTimes) -> None:
        self.kind = kind
        self._times = times
        self._backend = backend
        self._store = store
        self._copies: TimedCopies = []
        self._waits: list[tuple[Mark, Mark]] = []
        self._leaf_marks: list[tuple[int, Mark]] = []
        self._launch_ms = float("inf")
        # While the first leaf has not run, launches cannot be told.
        self._begun_s = time.perf_counter() if times.by_leaf else float("-inf")
        self._end: Mark = None
        backend.time_copies(self._copies)
        first, early = store.order[0].module, store.order[len(store.order) // EARLY].module
        self._handles = [
            first.register_forward_pre_hook(self._launches_begin),
            early.register_forward_pre_hook(self._look_at_launches),
        ]
        for index, leaf in enumerate(store.order if kind is Kind.LEAVES else ()):
            self._handles.append(leaf.module.register_forward_pre_hook(partial(self._mark_leaf, index)))
        self._start: Mark = backend.mark_compute()

    def _launches_begin(self, module: nn.Module, args: tuple) -> None:
        self._begun_s = time.perf_counter() - self._times.fetch_s

    def _look_at_launches(self, module: nn.Module, args: tuple) -> None:
        # A CPU that is far ahead waits for room in the device's queue: how long that takes is no measure of launches.
        if self._backend.passed(self._start):
            self._launch_ms = EARLY * 1e3 * (time.perf_counter() - self._times.fetch_s - self._begun_s)

    def _mark_leaf(self, index: int, module: nn.Module, args: tuple) -> None:
        self._leaf_marks.append((index, self._backend.mark_compute()))

    def before_wait(self) -> None:
        self._before = self._backend.mark_compute()

    def after_wait(self) -> None:
        self._waits.append((self._before, self._backend.mark_compute()))

    def stop(self, streamed_units: int) -> Mark:
        """The forward is over. Returns the mark of its end."""
        self.cancel()
        self._streamed_units = streamed_units
        self._host_ms = (time.perf_counter() - self._times.ready_s) * 1e3
        self._end = self._backend.mark_compute()
        return self._end

    def cancel(self) -> None:
        """Nothing more is marked."""
        for handle in self._handles:
            handle.remove()

    def read(self) -> Sample | None:
        """What was timed; None while the device has not passed its end."""
        elapsed = self._backend.elapsed_ms
        if not self._backend.passed(self._end):
            return None
        span_ms = elapsed(self._start, self._end)
        stall_ms = sum(ms for before, after in self._waits if (ms := elapsed(before, after)) > WAIT_MS)
        return Sample(
            span_ms=span_ms,
            stall_share=stall_ms / span_ms if span_ms > 0 else 0.0,
            compute_ms=max(1e-3, span_ms - stall_ms - UNIT_MS * self._streamed_units),
            launch_ms=self._launch_ms,
            cpu_ms=self._host_ms - self._times.fetch_s * 1e3,
            steady=span_ms >= STEADY * self._host_ms,
            gbps=self._gbps(),
            leaf_ms=self._leaf_ms(),
        )

    def _gbps(self) -> float:
        elapsed, passed = self._backend.elapsed_ms, self._backend.passed
        ended = [(count, elapsed(start, end)) for count, start, end in list(self._copies) if passed(end)]
        copied_bytes, copied_ms = sum(count for count, _ in ended), sum(ms for _, ms in ended)
        enough = copied_bytes >= min(LEAST_COPIED_BYTES, self._store.bytes // 4)
        return copied_bytes / copied_ms / 1e6 if enough and copied_ms > 0 else 0.0

    def _leaf_ms(self) -> dict[int, float]:
        """Each leaf lasts until the next one's mark, less what was waited in between; the first from the start."""
        elapsed = self._backend.elapsed_ms
        times: dict[int, float] = {}
        waits = [(elapsed(self._start, before), elapsed(self._start, after)) for before, after in self._waits]
        starts = [elapsed(self._start, mark) for _, mark in self._leaf_marks]
        ends = [*starts[1:], elapsed(self._start, self._end)]
        for (index, _), start, end in zip(self._leaf_marks, [0.0, *starts[1:]], ends, strict=False):
            waited = sum(after - before for before, after in waits if start <= before < end)
            times[index] = times.get(index, 0.0) + max(0.0, end - start - waited)
        return times
