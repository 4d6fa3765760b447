"""The pipeline on paper: a copy stream and a compute stream, both in order, over fixed slots, and a CPU that launches.

    copy_end[j] = max(copy_end[j−1], enter[wait j]) + b_j / B
    enter[j+1]  = max(max(enter[j], copy_end[j]) + c_j, launched + late_j)

- A streamed unit's slot is free when the *next streamed* unit is entered, or at the end of the forward; residents in
  between trigger nothing. So only streamed units are steps of this simulation, and a resident's compute time belongs
  to the streamed unit before it (`c_j`, with what the unit itself costs).
- `wait j` is one past the latest unit before j, in cyclic order, whose slot overlaps j's; at the latest j itself in
  the forward before.
- Nothing computes before the CPU has launched it. The CPU waits for nobody, so that a device that had to wait for
  weights may catch up with it. `late_j`: from when the CPU comes to unit j to when all up to the next one is computed,
  if nothing but the CPU is waited for.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.workload import Workload

FORWARDS = 24  # played at most, until the step time repeats
_TOLERANCE = 1e-9
Range = tuple[int, int]  # leaves [first, stop)


class PrefixSums:
    """A workload as running sums over its leaves, so that any run of them is a subtraction."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.count = len(workload.leaves)
        self.bytes_at = [0, *accumulate(leaf.bytes for leaf in workload.leaves)]
        self.ms_at = [0.0, *accumulate(leaf.ms for leaf in workload.leaves)]
        self.launch_ms = workload.launch_ms / self.count  # of a leaf
        self._behind_ms = [(leaf + 1) * self.launch_ms - ms for leaf, ms in enumerate(self.ms_at[:-1])]

    def size(self, leaves: Range) -> int:
        """Bytes of a run of leaves."""
        return self.bytes_at[leaves[1]] - self.bytes_at[leaves[0]]

    def late_ms(self, first: int, stop: int) -> float:
        """Launch and compute of leaves [first, stop), which overlap but for each leaf's own, in ms."""
        if first == stop:
            return 0.0
        return max(self._behind_ms[first:stop]) - first * self.launch_ms + self.ms_at[stop]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A steady forward, in ms from its beginning; one entry per streamed unit, in order.

    `enter` has one more, the end of the forward. `begin` and `end` are of the copies: a copy may begin before the
    forward does, and if it ends after its unit was entered, compute waits for it.
    """

    step_ms: float
    enter: Sequence[float]
    begin: Sequence[float]
    end: Sequence[float]

    @property
    def stalls_ms(self) -> list[float]:
        """How long compute waits for each streamed unit."""
        return [max(0.0, end - enter) for enter, end in zip(self.enter, self.end, strict=False)]


class Pipeline:
    """Streamed `units`, in order; all other leaves are resident."""

    def __init__(self, sums: PrefixSums, units: Sequence[Range]) -> None:
        load, ms = sums.workload, sums.ms_at
        firsts = [*(first for first, _ in units), sums.count]
        self.units = units
        self.sizes = [sums.size(unit) for unit in units]
        self.resident_bytes = sums.bytes_at[-1] - sum(self.sizes)
        self._gap_ms = load.gap_ms
        self._lead_ms = ms[firsts[0]], sums.launch_ms * firsts[0], sums.late_ms(0, firsts[0])
        self._rows = [  # of a unit and the residents after it: copy, compute, launch, and launch and compute together
            (
                size / load.bytes_per_ms,
                ms[after] - ms[first] + load.unit_overhead_ms,
                sums.launch_ms * (after - first) + load.unit_launch_ms,
                sums.late_ms(first, after) + load.unit_launch_ms,
            )
            for size, (first, after) in zip(self.sizes, pairwise(firsts), strict=True)
        ]
        self._issued_ms = load.launch_ms + len(units) * load.unit_launch_ms
        # No slots make a step shorter than this.
        self.least_ms = max(
            sum(self.sizes) / load.bytes_per_ms - load.gap_ms,
            load.compute_ms + len(units) * load.unit_overhead_ms,
            self._issued_ms,
        )

    def play(self, slots: Sequence[Range]) -> Schedule:
        """Over `slots`, bytes [start, stop), until the step time repeats, or else their mean for a dozen forwards."""
        count, gap_ms = len(slots), self._gap_ms
        lead_ms, lead_issue_ms, lead_late_ms = self._lead_ms
        rows = [(j, wait, *row) for j, (wait, row) in enumerate(zip(waits(slots), self._rows, strict=True))]
        # An entry is overwritten when its unit is entered: one not yet reached holds the forward before,
        # which is the one that `wait` means there.
        enter, end = [0.0] * (count + 1), [0.0] * count
        now = began = copied = launched = step_ms = 0.0
        ends = [0.0]
        for _ in range(FORWARDS):
            began = now
            now = max(now + lead_ms, launched + lead_late_ms)
            launched += lead_issue_ms
            for j, wait, copy_ms, compute_ms, issue_ms, late_ms in rows:
                enter[j] = now
                free = enter[wait]
                end[j] = copied = (free if free > copied else copied) + copy_ms
                now = (copied if copied > now else now) + compute_ms
                if launched + late_ms > now:
                    now = launched + late_ms
                launched += issue_ms
            enter[count] = now
            now += gap_ms
            launched += gap_ms
            ends.append(now)
            period = _period(ends)
            forwards = period or len(ends) // 2
            step_ms = (now - ends[-1 - forwards]) / forwards - gap_ms
            if period and step_ms >= self._issued_ms * (1 - _TOLERANCE):
                break
            if period:  # the device still catches up with a CPU that is far ahead of it: one day it will have
                launched, ends = now, [now]
        end = [ms - began for ms in end]
        begin = [ms - row[2] for ms, row in zip(end, rows, strict=True)]
        return Schedule(max(step_ms, self._issued_ms), [ms - began for ms in enter], begin, end)


def _period(ends: Sequence[float]) -> int:
    """After how many forwards the step time repeats: 1, 2 (two units may take turns in waiting), or 0 if not yet."""
    for period in (1, 2):
        if len(ends) > 2 * period + 1:
            last, before, first = ends[-1], ends[-1 - period], ends[-1 - 2 * period]
            if abs(last - 2 * before + first) <= _TOLERANCE * (last - before):
                return period
    return 0


def waits(slots: Sequence[Range]) -> list[int]:
    """Per unit, which one must be entered before its copy may begin; an index above its own: in the forward before.

    Plays who wrote last to which bytes, for two forwards: `owners[i]`, counted through, to those from `starts[i]` on.
    """
    count = len(slots)
    starts: list[float] = [0, math.inf]
    owners = [0]
    result = []
    for turn, (start, stop) in enumerate([*slots, *slots]):
        first, last = bisect_right(starts, start) - 1, bisect_left(starts, stop)
        before = owners[first:last] if start < stop else []
        if turn >= count:
            result.append(max([turn - count, *before]) % count + 1)
        if before:
            first += starts[first] < start
            if starts[last] == stop:
                starts[first:last], owners[first:last] = [start], [turn]
            else:
                starts[first:last], owners[first:last] = [start, stop], [turn, before[-1]]
    return result


def simulate(plan: Plan, workload: Workload) -> Schedule:
    """The steady state of `plan` on `workload`, by which the planner decides."""
    streamed = [unit for unit in plan.units if not unit.resident]
    units = [(unit.first, unit.stop) for unit in streamed]
    return Pipeline(PrefixSums(workload), units).play([(unit.offset, unit.end) for unit in streamed])
