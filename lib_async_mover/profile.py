"""The profile: how long each leaf computes and how fast the bus is, from timing marks on a real forward.

No mark is ever waited for: a forward that was timed is read at the start of a later one, once the device has passed
its last mark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from torch import nn

from .backend import Backend
from .bracket import Tally
from .leaf import Leaf
from .pack import Pack
from .workload import LeafCost, Workload

MILESTONES = 12  # leaves at which the CPU looks whether the device is right behind
WAIT_MS = 0.02  # between the marks around a wait even where nothing is waited for, if the CPU is slower
UNIT_MS = 0.01  # what a streamed unit adds to the device's time: two event waits
CALL_MS = 0.01  # of CPU time that torch takes to call a module with a hook, beyond what we do in it
MARGIN = 1.2  # on a unit's CPU time: a plan with fewer units bears a busy CPU better
LAG = 3  # milestones that the device may be behind: the CPU does not wait for room in its queue then
STEADY = 0.95  # of the CPU's time: a device that took less is catching up after a pause, which is no rhythm


@dataclass
class Timing:
    """One timed forward, still as marks."""

    start: Any
    end: Any = None
    waits: list[tuple[Any, Any]] = field(default_factory=list)
    leaves: list[tuple[int, Any]] = field(default_factory=list)  # (execution index, mark before its compute)
    milestones: list[Any] = field(default_factory=list)  # marks at the leaves at which the CPU looks back
    moments_s: list[float] = field(default_factory=list)  # CPU time there, without what went into entering units
    caught_up: list[bool] = field(default_factory=list)  # whether the device had passed the one before
    free: list[bool] = field(default_factory=list)  # whether it was near enough not to hold the CPU up
    launch_ms: float = float("inf")
    host_ms: float = 0.0
    streamed_units: int = 0


@dataclass(frozen=True)
class Sample:
    """One timed forward, resolved. Times in ms."""

    span_ms: float
    stall_ms: float
    copied_bytes: int
    gbps: float  # 0 where nothing was copied
    launch_bound: bool  # the device waited for the CPU
    launch_ms: float  # CPU time of a forward that is not held up, without entering units; infinite if it always was
    most_launch_ms: float  # the same of this forward, held up or not
    host_ms: float  # CPU time between the two marks, all of it
    streamed_units: int
    leaf_ms: dict[int, float]  # by execution index; empty unless leaves were timed

    @property
    def steady(self) -> bool:
        """Whether the next forwards will take as long."""
        return self.span_ms >= STEADY * self.host_ms

    @property
    def stall_share(self) -> float:
        return self.stall_ms / self.span_ms if self.span_ms > 0 else 0.0


class Profiler:
    """Times one forward at a time. Serves as the pipeline's `Watch` while it does."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._timing: Timing | None = None
        self._handles: list[Any] = []
        self._before: Any = None

    def start(self, order: list[Leaf], detailed: bool, tally: Tally) -> None:
        """The coming forward of the leaves in ``order`` is timed, ``detailed``: each of them for some microseconds."""
        self._backend.time_copies(True)
        timing = self._timing = Timing(self._backend.mark_compute())
        for leaf in order[:: max(1, len(order) // MILESTONES)]:
            self._handles.append(leaf.module.register_forward_pre_hook(self._milestone(timing, tally)))
        for leaf in order if detailed else ():
            self._handles.append(leaf.module.register_forward_pre_hook(self._stopwatch(timing, leaf.index)))

    def _milestone(self, timing: Timing, tally: Tally) -> Callable[[nn.Module, tuple], None]:
        def look_back(module: nn.Module, args: tuple) -> None:
            self._look_back(timing, tally)
            timing.milestones.append(self._backend.mark_compute())

        return look_back

    def _look_back(self, timing: Timing, tally: Tally) -> None:
        marks = [timing.start, *timing.milestones]
        timing.moments_s.append(tally.launch_s)
        timing.caught_up.append(self._backend.passed(marks[-1]))
        timing.free.append(timing.caught_up[-1] or self._backend.passed(marks[max(0, len(marks) - LAG)]))

    def _stopwatch(self, timing: Timing, index: int) -> Callable[[nn.Module, tuple], None]:
        def mark(module: nn.Module, args: tuple) -> None:
            timing.leaves.append((index, self._backend.mark_compute()))

        return mark

    def before_wait(self) -> None:
        self._before = self._backend.mark_compute()

    def after_wait(self) -> None:
        if self._timing is not None:
            self._timing.waits.append((self._before, self._backend.mark_compute()))

    def stop(self, tally: Tally, streamed_units: int) -> Any:
        """The timed forward is over. Returns the mark of its end."""
        timing = self._timing
        assert timing is not None
        self._look_back(timing, tally)
        timing.launch_ms = free_launch_ms(timing.moments_s, timing.free)
        timing.host_ms, timing.streamed_units = tally.host_s * 1e3, streamed_units
        timing.end = self._backend.mark_compute()
        self._end_stopwatches()
        return timing.end

    def _end_stopwatches(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def abandon(self) -> None:
        """The timed forward was not like others (an exception, a leaf out of order)."""
        if self._timing is not None:
            self._end_stopwatches()
            self._timing = None
            self._backend.time_copies(False)

    @property
    def busy(self) -> bool:
        return self._timing is not None

    def result(self) -> Sample | None:
        """The timed forward in milliseconds; None while the device has not passed it. Gives it out once."""
        timing = self._timing
        if timing is None or timing.end is None or not self._backend.passed(timing.end):
            return None
        self._timing = None
        copies = self._backend.copy_times()
        self._backend.time_copies(False)
        copied_bytes, copied_ms = sum(count for count, _ in copies), sum(ms for _, ms in copies)
        elapsed = self._backend.elapsed_ms
        span_ms = elapsed(timing.start, timing.end)
        waits_ms = (elapsed(before, after) for before, after in timing.waits)
        stall_ms = sum(wait_ms for wait_ms in waits_ms if wait_ms > WAIT_MS)
        return Sample(
            span_ms=span_ms,
            stall_ms=stall_ms,
            copied_bytes=copied_bytes,
            gbps=copied_bytes / copied_ms / 1e6 if copied_ms > 0 else 0.0,
            # A device that is past a mark made a moment ago waits for the CPU. Where it waited for weights before, what
            # counts is that it has caught up.
            launch_bound=2 * sum(timing.caught_up) >= len(timing.milestones) and all(timing.caught_up[-LAG:]),
            launch_ms=timing.launch_ms,
            most_launch_ms=timing.moments_s[-1] * 1e3,
            host_ms=timing.host_ms,
            streamed_units=timing.streamed_units,
            leaf_ms=self._leaf_ms(timing),
        )

    def _leaf_ms(self, timing: Timing) -> dict[int, float]:
        """Each leaf lasts until the next one's mark, less what was waited in between."""
        if not timing.leaves:
            return {}
        elapsed = self._backend.elapsed_ms
        start = timing.start
        stops = [(elapsed(start, mark), index) for index, mark in timing.leaves]
        waits = sorted((elapsed(start, before), elapsed(start, after)) for before, after in timing.waits)
        times: dict[int, float] = {}
        bounds = [*stops[1:], (elapsed(start, timing.end), -1)]
        for (begin, index), (until, _) in zip(stops, bounds, strict=True):
            waited = sum(after - before for before, after in waits if begin <= before < until)
            times[index] = times.get(index, 0.0) + max(0.0, until - begin - waited)
        if stops:
            times[stops[0][1]] += max(0.0, stops[0][0] - sum(a - b for b, a in waits if b < stops[0][0]))
        return times


def guessed_workload(pack: Pack, gbps: float, enter_ms: float) -> Workload:
    """Before anything was measured: every leaf takes as long, and the bus is the bottleneck."""
    each_ms = sum(pack.leaf_bytes) / gbps / 1e6 / len(pack.order)
    return _workload(pack, [each_ms] * len(pack.order), gbps, 0.0, enter_ms)


def workload_of(
    pack: Pack, plain: Sample, leaf_ms: dict[int, float], gbps: float, gap_ms: float, enter_ms: float
) -> Workload:
    """What the planner needs, from a forward timed as a whole and the times of single leaves.

    Leaf marks cost time themselves, so leaf times are scaled to sum to what the plain forward computed. A forward that
    waited for its launches does not tell that; all is known then is that it was not more.

    Args:
        leaf_ms: by execution index.
        gbps: the bus, in 1e9 bytes per second.
        gap_ms: from the end of a forward to the start of the next.
        enter_ms: CPU time that entering a streamed unit takes.
    """
    compute_ms = max(1e-3, plain.span_ms - plain.stall_ms - UNIT_MS * plain.streamed_units)
    marked_ms = sum(leaf_ms.values()) or 1.0
    if plain.launch_bound:
        compute_ms = min(compute_ms, plain.launch_ms, marked_ms)  # what units cost the CPU is no part of it
    scale = compute_ms / marked_ms
    return _workload(pack, [leaf_ms.get(leaf.index, 0.0) * scale for leaf in pack.order], gbps, gap_ms, enter_ms)


def free_launch_ms(moments_s: list[float], free: list[bool]) -> float:
    """CPU time of a forward that is not held up, in ms, from those parts of one in which it was not.

    Args:
        moments_s: CPU time since the forward began, at its milestones and at its end.
        free: whether the CPU was not held up since the milestone before.
    """
    parts_s = [after - before for before, after in pairwise(moments_s)]
    free_s = [part_s for part_s, was_free in zip(parts_s, free[1:], strict=True) if was_free]
    if LAG * len(free_s) < len(parts_s):
        return float("inf")
    return 1e3 * (moments_s[0] + sum(free_s) / len(free_s) * len(parts_s))


def launches_of(workload: Workload, least_ms: float, enter_ms: float) -> Workload:
    """The workload with the CPU's part; 0 where that is not known.

    Args:
        least_ms: of all forwards seen. Whatever disturbs a CPU makes it slower, so that is the nearest to the truth.
    """
    known_ms = least_ms if least_ms < float("inf") else 0.0
    return replace(workload, launch_ms=known_ms, unit_launch_ms=_unit_launch_ms(enter_ms))


def _unit_launch_ms(enter_ms: float) -> float:
    return (enter_ms + CALL_MS) * MARGIN


def _workload(pack: Pack, leaf_ms: list[float], gbps: float, gap_ms: float, enter_ms: float) -> Workload:
    rows = zip(pack.order, pack.leaf_bytes, leaf_ms, strict=True)
    costs = tuple(LeafCost(leaf.name, count, ms) for leaf, count, ms in rows)
    return Workload(
        costs, gbps, pack.fixed_bytes, pack.barriers, UNIT_MS, gap_ms, unit_launch_ms=_unit_launch_ms(enter_ms)
    )
