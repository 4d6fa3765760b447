"""
The pipeline, played on paper: one copy stream and one compute stream, both in order, over fixed slots.

DESIGN.md 4, with two details of the engine:

- A streamed unit's slot becomes free when the *next streamed* unit is entered, or at the end of the forward;
  resident units in between trigger nothing. So only streamed units are steps of this simulation, and a
  resident's compute time belongs to the streamed unit before it.
- A loose leaf (larger than the arena) is loaded on the spot: its copy begins when it is entered, and nothing is
  copied ahead across it, as if it overlapped every slot. That is the pessimistic reading.

    copy_end[j] = max(copy_end[j−1], free[dep j]) + b_j / B
    comp_end[j] = max(comp_end[j−1], copy_end[j]) + c_j + overhead
    free[i]     = when the streamed unit after i is entered, before it waits for its own weights

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


@dataclass(frozen=True, slots=True)
class Track:
    """
    What the pipeline sees of a plan: the streamed units in order, times in ms.

    - `compute_ms`: of the unit, its overhead, and every resident up to the next streamed unit
    - `wait[j]` = 1 + dep j: copy j waits until unit `wait[j]` is entered (n: until the forward ends); an index
      above j means the forward before
    - `lead_ms`: residents before the first streamed unit; `gap_ms`: between two forwards
    - `launch_ms`: CPU time of one forward; a forward lasts at least as long
    """

    copy_ms: Sequence[float]
    compute_ms: Sequence[float]
    wait: Sequence[int]
    lead_ms: float
    gap_ms: float
    launch_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    One steady forward, times in ms on one clock. `enter` has one entry more: the end of the forward.

    `begin` and `end` are of the copies; a copy may begin before the forward does.
    """

    step_ms: float
    enter: Sequence[float]
    begin: Sequence[float]
    end: Sequence[float]


@dataclass(frozen=True)
class Simulation:
    """
    The steady state of a plan: ms per step, ms of it that compute waits for weights, bytes copied per step.

    `unit_stall_ms[k]` belongs to `plan.units[k]`; waits for loose leaves are in `stall_ms` alone.
    """

    step_ms: float
    stall_ms: float
    bytes_per_step: int
    unit_stall_ms: tuple[float, ...]


def run(track: Track) -> Schedule:
    """
    Plays forwards until the step time repeats: at least three, at most 24.

    Two units may take turns in waiting, so a step time that repeats every second forward counts too; the step
    time is then the mean of both. Without repetition it is the mean of the later half.
    """
    count = len(track.copy_ms)
    steps = list(zip(range(count), track.copy_ms, track.compute_ms, track.wait, strict=True))
    # enter[j] is overwritten as unit j is entered: an index not yet reached still holds the forward before,
    # which is exactly the one that `wait` means.
    enter = [0.0] * (count + 1)
    durations: list[float] = []
    now = copied = 0.0
    step: float | None = None
    while step is None:
        begin = now
        now += track.lead_ms
        for index, copy_ms, compute_ms, wait in steps:
            enter[index] = now
            free = enter[wait]
            copied = (free if free > copied else copied) + copy_ms
            now = (copied if copied > now else now) + compute_ms
        now = max(now, begin + track.launch_ms)
        enter[count] = now
        durations.append(now - begin)
        now += track.gap_ms
        step = _settled(durations)
    begins, ends = [0.0] * count, [0.0] * count
    begin = now
    now += track.lead_ms
    for index, copy_ms, compute_ms, wait in steps:
        enter[index] = now
        free = enter[wait]
        begins[index] = free if free > copied else copied
        ends[index] = copied = begins[index] + copy_ms
        now = (copied if copied > now else now) + compute_ms
    enter[count] = max(now, begin + track.launch_ms)
    return Schedule(step, enter, begins, ends)


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


def slot_waits(slots: Sequence[tuple[int, int] | None]) -> list[int]:
    """
    `Track.wait` for slots [start, stop) in bytes: 1 + the latest unit before, in cyclic order, that overlaps.

    None stands for a loose leaf: it waits until it is entered itself, and every later unit waits for its end.
    """
    count = len(slots)
    twice = [*slots, *slots]
    result = []
    for j, slot in enumerate(slots):
        if slot is None:
            result.append(j)
            continue
        start, stop = slot
        back = count + j - 1
        while back > j:
            other = twice[back]
            if other is None or (other[0] < stop and start < other[1]):
                break
            back -= 1
        result.append(back % count + 1)
    return result


def track_of(plan: Plan, workload: Workload) -> tuple[Track, list[int]]:
    """The plan as the pipeline sees it, and for each of its steps the unit's index in `plan.units` (−1: loose)."""
    leaves, rate = workload.leaves, workload.bytes_per_ms
    events = [(unit.first, unit.stop, unit.bytes, index) for index, unit in enumerate(plan.units)]
    events.extend((leaf, leaf + 1, leaves[leaf].bytes, -1) for leaf in plan.loose)
    events.sort()
    copy_ms: list[float] = []
    compute_ms: list[float] = []
    slots: list[tuple[int, int] | None] = []
    owners: list[int] = []
    lead_ms = 0.0
    for first, stop, size, index in events:
        cost = sum(leaf.ms for leaf in leaves[first:stop])
        if index >= 0 and plan.units[index].resident:
            if compute_ms:
                compute_ms[-1] += cost
            else:
                lead_ms += cost
            continue
        copy_ms.append(size / rate)
        compute_ms.append(cost + workload.unit_overhead_ms)
        owners.append(index)
        slots.append(None if index < 0 else (plan.units[index].offset, plan.units[index].end))
    launch_ms = workload.launch_ms + workload.unit_launch_ms * len(slots)
    return Track(copy_ms, compute_ms, slot_waits(slots), lead_ms, workload.gap_ms, launch_ms), owners


def simulate(plan: Plan, workload: Workload) -> Simulation:
    """The steady state of `plan` on `workload`: the numbers the planner itself decides by."""
    track, owners = track_of(plan, workload)
    schedule = run(track)
    unit_stalls = [0.0] * len(plan.units)
    total, moved = 0.0, sum(workload.leaves[leaf].bytes for leaf in plan.loose)
    for step, owner in enumerate(owners):
        stall = max(0.0, schedule.end[step] - schedule.enter[step])
        total += stall
        if owner >= 0:
            unit_stalls[owner] = stall
            moved += plan.units[owner].bytes
    return Simulation(schedule.step_ms, total, moved, tuple(unit_stalls))
