"""
The pipeline, played on paper: one copy stream and one compute stream, both in order, over fixed slots, and the CPU
that launches what they do.

DESIGN.md 4, with three details of the engine:

- Nothing computes before the CPU has launched it. The CPU waits for nobody, so that a device that had to wait for
  weights may catch up with it.

- A streamed unit's slot becomes free when the *next streamed* unit is entered, or at the end of the forward;
  resident units in between trigger nothing. So only streamed units are steps of this simulation, and a
  resident's compute time belongs to the streamed unit before it.
- A loose leaf (larger than the arena) is loaded on the spot: its copy begins when it is entered, and nothing is
  copied ahead across it, as if it overlapped every slot. That is the pessimistic reading.

    copy_end[j] = max(copy_end[j−1], free[dep j]) + b_j / B
    comp_end[j] = max(max(comp_end[j−1], copy_end[j]) + c_j + overhead, launched[j−1] + late_j)
    free[i]     = when the streamed unit after i is entered, before it waits for its own weights

`dep j` is the latest unit before j, in cyclic order and including j one step earlier, whose slot overlaps j's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
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
    - `issue_ms`: CPU time of what `compute_ms` is about
    - `late_ms`: from when the CPU comes to the unit to when all that is computed, if nothing but the CPU is waited for
    - `lead_ms`, `lead_issue_ms`, `lead_late_ms`: the same of residents before the first streamed unit
    - `gap_ms`: between two forwards
    """

    copy_ms: Sequence[float]
    compute_ms: Sequence[float]
    wait: Sequence[int]
    issue_ms: Sequence[float]
    late_ms: Sequence[float]
    lead_ms: float
    lead_issue_ms: float
    lead_late_ms: float
    gap_ms: float


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
    columns = (track.copy_ms, track.compute_ms, track.wait, track.issue_ms, track.late_ms)
    steps = list(zip(range(count), *columns, strict=True))
    # enter[j] is overwritten as unit j is entered: an index not yet reached still holds the forward before,
    # which is exactly the one that `wait` means.
    enter = [0.0] * (count + 1)
    durations: list[float] = []
    now = copied = launched = 0.0
    issued_ms = track.lead_issue_ms + sum(track.issue_ms)
    step: float | None = None
    while step is None:
        begin = now
        now = max(now + track.lead_ms, launched + track.lead_late_ms)
        launched += track.lead_issue_ms
        for index, copy_ms, compute_ms, wait, issue_ms, late_ms in steps:
            enter[index] = now
            free = enter[wait]
            copied = (free if free > copied else copied) + copy_ms
            now = (copied if copied > now else now) + compute_ms
            if launched + late_ms > now:
                now = launched + late_ms
            launched += issue_ms
        enter[count] = now
        durations.append(now - begin)
        now += track.gap_ms
        launched += track.gap_ms
        step = _settled(durations)
        if step is not None and step < issued_ms * (1 - _TOLERANCE):
            # The device still catches up with a CPU that is far ahead. One day it will have.
            launched, step = max(launched, now), None
            durations.clear()
    begins, ends = [0.0] * count, [0.0] * count
    now = max(now + track.lead_ms, launched + track.lead_late_ms)
    launched += track.lead_issue_ms
    for index, copy_ms, compute_ms, wait, issue_ms, late_ms in steps:
        enter[index] = now
        free = enter[wait]
        begins[index] = free if free > copied else copied
        ends[index] = copied = begins[index] + copy_ms
        now = max((copied if copied > now else now) + compute_ms, launched + late_ms)
        launched += issue_ms
    enter[count] = now
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
    streamed = sorted(event for event in events if event[3] < 0 or not plan.units[event[3]].resident)
    firsts = [first for first, *_ in streamed]
    segments = [_segment(workload, first, after) for first, after in pairwise([0, *firsts, len(leaves)])]
    lead, computes = segments[0], segments[1:]
    slots = [None if index < 0 else (plan.units[index].offset, plan.units[index].end) for *_, index in streamed]
    track = Track(
        [size / rate for _, _, size, _ in streamed],
        [compute_ms + workload.unit_overhead_ms for compute_ms, _, _ in computes],
        slot_waits(slots),
        [issue_ms + workload.unit_launch_ms for _, issue_ms, _ in computes],
        [late_ms + workload.unit_launch_ms for _, _, late_ms in computes],
        *lead,
        workload.gap_ms,
    )
    return track, [index for *_, index in streamed]


def _segment(workload: Workload, first: int, stop: int) -> tuple[float, float, float]:
    """Of some leaves: compute time, launch time, and how long both take together, in ms."""
    each_ms = workload.launch_ms / len(workload.leaves)
    compute_ms = late_ms = 0.0
    for place, leaf in enumerate(workload.leaves[first:stop], start=1):
        compute_ms += leaf.ms
        late_ms = max(late_ms, place * each_ms) + leaf.ms
    return compute_ms, each_ms * (stop - first), late_ms


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
