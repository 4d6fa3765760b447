"""
The pipeline, played on paper: one copy stream and one compute stream, both in order, over fixed slots.

DESIGN.md 4, with two details of the engine:

- A streamed unit's slot becomes free when the *next streamed* unit is entered, or at the end of the forward;
  resident units in between trigger nothing. So only streamed units are steps of this simulation, and a
  resident's compute time belongs to the streamed unit before it.
- A loose leaf (larger than the arena) is loaded on the spot. It is played as a unit that overlaps every slot:
  nothing is copied ahead across it. That is the pessimistic reading.

    copy_end[j] = max(copy_end[j−1], free[dep j]) + b_j / B
    comp_end[j] = max(comp_end[j−1], copy_end[j]) + c_j + overhead
    free[i]     = comp_end[i] seen from the next streamed unit, that is its enter time

`dep j` is the latest unit before j, in cyclic order and including j one step earlier, whose slot overlaps j's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from lib_async_mover.plan import Plan
    from lib_async_mover.workload import Workload

MIN_CYCLES = 3
MAX_CYCLES = 24
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Track:
    """What the pipeline sees of a plan: streamed units in order, in ms. `wait[j]` = 1 + dep j (see `run`)."""

    copy_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    wait: tuple[int, ...]
    lead_ms: float
    gap_ms: float


@dataclass(frozen=True)
class Simulation:
    """
    The steady state of a plan: ms per step, ms of it that compute waits for weights, bytes copied per step.

    `unit_stall_ms[k]` belongs to `plan.units[k]`; loose leaves' stalls are in `stall_ms` alone.
    """

    step_ms: float
    stall_ms: float
    bytes_per_step: int
    unit_stall_ms: tuple[float, ...]


def run(track: Track) -> tuple[float, list[float]]:
    """
    Steady-state step time in ms (without the gap), and the stall of every streamed unit in the last cycle.

    Cycles are played until the step time repeats (also with period two: two units may take turns), at least
    three and at most 24; then it is the mean of the last ones.
    """
    count = len(track.copy_ms)
    steps = list(zip(track.copy_ms, track.compute_ms, track.wait))
    # enter[j]: when unit j was last entered; enter[count]: the end of the forward. Overwritten as we go: an index
    # not yet reached still holds the previous cycle's time, which is exactly what `wait` refers to.
    enter = [0.0] * (count + 1)
    durations: list[float] = []
    now = copied = 0.0
    while True:
        begin = now
        now += track.lead_ms
        index = 0
        for copy_ms, compute_ms, wait in steps:
            enter[index] = now
            index += 1
            free = enter[wait]
            if copied < free:
                copied = free
            copied += copy_ms
            if now < copied:
                now = copied
            now += compute_ms
        enter[count] = now
        durations.append(now - begin)
        now += track.gap_ms
        step = _settled(durations)
        if step is not None:
            break
    # The stalls of the last cycle, from its own enter times.
    ends = enter[1:]
    stalls = [max(0.0, ends[j] - enter[j] - track.compute_ms[j]) for j in range(count)]
    return step, stalls


def _settled(durations: list[float]) -> float | None:
    if len(durations) < MIN_CYCLES:
        return None
    last = durations[-1]
    near = _TOLERANCE * last
    if abs(last - durations[-2]) <= near:
        return last
    if len(durations) > 4 and abs(last - durations[-3]) <= near and abs(durations[-2] - durations[-4]) <= near:
        return (last + durations[-2]) / 2
    if len(durations) >= MAX_CYCLES:
        tail = durations[MAX_CYCLES // 2:]
        return sum(tail) / len(tail)
    return None


def waits(slots: Sequence[tuple[int, int]]) -> list[int]:
    """
    `wait[j]` = 1 + index of the latest unit before j, in cyclic order, whose slot [start, stop) overlaps j's.

    A unit always overlaps itself one cycle earlier. An index ≤ j means this cycle, > j the cycle before.
    """
    count = len(slots)
    result = []
    for j, (start, stop) in enumerate(slots):
        dep = j
        for back in range(1, count):
            other = slots[j - back]
            if other[0] < stop and start < other[1]:
                dep = (j - back) % count
                break
        result.append(dep + 1)
    return result


def track_of(plan: Plan, workload: Workload) -> tuple[Track, list[int]]:
    """The plan as the pipeline sees it, and for each of its steps the unit's index in `plan.units` (−1: loose)."""
    leaves, rate = workload.leaves, workload.bytes_per_ms
    everything = (0, max(1, plan.arena_bytes))
    events: list[tuple[int, int, int, bool, int]] = []  # first, stop, bytes, resident, unit
    for index, unit in enumerate(plan.units):
        events.append((unit.first, unit.stop, unit.bytes, unit.resident, index))
    events.extend((leaf, leaf + 1, leaves[leaf].bytes, False, -1) for leaf in plan.loose)
    events.sort()
    copy_ms: list[float] = []
    compute_ms: list[float] = []
    slots: list[tuple[int, int]] = []
    owners: list[int] = []
    lead_ms = 0.0
    for first, stop, size, resident, index in events:
        cost = sum(leaf.ms for leaf in leaves[first:stop])
        if resident:
            if compute_ms:
                compute_ms[-1] += cost
            else:
                lead_ms += cost
            continue
        copy_ms.append(size / rate)
        compute_ms.append(cost + workload.unit_overhead_ms)
        owners.append(index)
        slots.append(everything if index < 0 else (plan.units[index].offset, plan.units[index].end))
    return Track(tuple(copy_ms), tuple(compute_ms), tuple(waits(slots)), lead_ms, workload.gap_ms), owners


def simulate(plan: Plan, workload: Workload) -> Simulation:
    """The steady state of `plan` on `workload`. Exact: same model, same numbers as the planner's own."""
    track, owners = track_of(plan, workload)
    step_ms, stalls = run(track)
    unit_stalls = [0.0] * len(plan.units)
    moved = 0
    for step, owner in enumerate(owners):
        if owner >= 0:
            unit_stalls[owner] = stalls[step]
            moved += plan.units[owner].bytes
    moved += sum(workload.leaves[leaf].bytes for leaf in plan.loose)
    return Simulation(step_ms, sum(stalls), moved, tuple(unit_stalls))
