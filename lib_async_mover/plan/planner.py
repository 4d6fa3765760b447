"""The planner: which leaves stay on the device, which are streamed in which units, and where every unit lies.

1. For a model cut into pieces of a few sizes, and a few ring sizes: walk it once, with the bus working ahead by at
   most the ring, and stream whatever arrives in time; what is left is resident.
2. Join what is streamed into units of a few sizes, place them in the ring, and simulate.
3. Of all layouts that are as good as the fastest take the one that moves the fewest bytes.

The figures in capitals were found by trial, on recorded profiles and machines of many speeds (tests/plan).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from lib_async_mover.errors import PlanError
from lib_async_mover.plan.limit import limit_ms
from lib_async_mover.plan.plan import Plan, PlannedUnit
from lib_async_mover.plan.simulation import Pipeline, PrefixSums, Range
from lib_async_mover.plan.workload import Workload

PARTS = (40, 80, 160, 320, 640)  # that a model is cut into
RINGS = (0.5, 0.25, 0.12, 0.06, 0.03)  # of the room
JOINED = (1, 3)  # pieces in a unit
EQUAL = 1.005  # × the fastest: as good, for compute times are only measured
PROMISING = 1.03  # × the fastest: worth more than two placements, for
TRIED = 8  # so many layouts at most, with
PLACEMENTS = 6  # so many each
BISECTIONS = 9


class Layout(NamedTuple):
    """Streamed units and their slots, in bytes from the ring's start; all else is resident."""

    step_ms: float
    pipeline: Pipeline
    slots: Sequence[Range]


def least_budget_bytes(workload: Workload) -> int:
    """The smallest budget that there is a plan for: what is always on the device, and the largest leaf."""
    return workload.fixed_bytes + max(leaf.bytes for leaf in workload.leaves)


def make_plan(workload: Workload, budget_bytes: int) -> Plan:
    """The plan with the shortest simulated step found that keeps weights within `budget_bytes` of VRAM; of plans
    within half a percent of it, the one that moves the fewest bytes. Deterministic.

    Raises PlanError if the budget is not a number, or less than `least_budget_bytes`.
    """
    least_bytes = least_budget_bytes(workload)
    if isinstance(budget_bytes, bool) or not math.isfinite(budget_bytes) or budget_bytes < least_bytes:
        raise PlanError(
            f"The budget must be at least {least_bytes} bytes, what is always on the device and the largest leaf; "
            f"found {budget_bytes!r}. Raise it to that."
        )
    return _make_plan(workload, int(budget_bytes))


def whole_plan(workload: Workload) -> Plan:
    """Everything resident, in as few copies as the barriers allow; for what is used at once and then released."""
    return make_plan(workload, workload.fixed_bytes + workload.weight_bytes)


@lru_cache(maxsize=64)
def _make_plan(workload: Workload, budget_bytes: int) -> Plan:
    sums = PrefixSums(workload)
    layout = _best_layout(sums, budget_bytes - workload.fixed_bytes)
    resident_bytes = layout.pipeline.resident_bytes
    units = [
        PlannedUnit(*unit, sums.size(unit), resident_bytes + start, False)
        for unit, (start, _) in zip(layout.pipeline.units, layout.slots, strict=True)
    ]
    # Barriers lie between units, so these cut the model into the streamed units and what lies between them.
    borders = {0, sums.count, *workload.barriers, *(leaf for unit in layout.pipeline.units for leaf in unit)}
    streamed = {unit.first for unit in units}
    offset = 0
    for unit in pairwise(sorted(borders)):
        if unit[0] not in streamed:
            units.append(PlannedUnit(*unit, sums.size(unit), offset, True))
            offset = units[-1].end
    schedule = layout.pipeline.play(layout.slots)
    return Plan(
        units=tuple(sorted(units, key=lambda unit: unit.first)),
        budget_bytes=budget_bytes,
        resident_bytes=resident_bytes,
        ring_bytes=max((stop for _, stop in layout.slots), default=0),
        predicted_ms=schedule.step_ms,
        stall_ms=math.fsum(schedule.stalls_ms),
        limit_ms=limit_ms(workload, budget_bytes),
    )


def _best_layout(sums: PrefixSums, room: int) -> Layout:
    """The best layout found that takes at most `room` bytes; any leaf fits them."""
    if room >= sums.bytes_at[-1]:
        return Layout(0.0, Pipeline(sums, []), [])
    found: list[Layout] = []
    best_ms = math.inf
    for units in _candidates(sums, room):
        pipeline = Pipeline(sums, units)
        if pipeline.least_ms < best_ms * EQUAL and pipeline.resident_bytes + max(pipeline.sizes) <= room:
            found.append(_placed(pipeline, room, [None, 0]))
            best_ms = min(best_ms, found[-1].step_ms)
    # Never empty: with everything streamed the room is the ring, and holds any piece.
    promising = [layout for layout in found if layout.step_ms <= best_ms * PROMISING]
    for _, pipeline, _ in sorted(promising, key=lambda layout: layout.step_ms)[:TRIED]:
        count = len(pipeline.units)
        largest = max(range(count), key=lambda unit: pipeline.sizes[unit])
        found.append(_placed(pipeline, room, [largest, *range(0, count, -(-count // PLACEMENTS))]))
    best_ms = min(layout.step_ms for layout in found)
    equal = (layout for layout in found if layout.step_ms <= best_ms * EQUAL)
    return min(equal, key=lambda layout: (-layout.pipeline.resident_bytes, layout.step_ms))


def _candidates(sums: PrefixSums, room: int) -> Iterator[list[Range]]:
    """What could be streamed, in which units."""
    total = sums.bytes_at[-1]
    seen: set[tuple[Range, ...]] = set()
    for parts in PARTS:
        grain = min(total // parts, room // 2)
        pieces = _join(sums, [(leaf, leaf + 1) for leaf in range(sums.count)], grain)
        rings = [int(room * share) for share in RINGS]
        for streamed in [pieces, *(_streamed(sums, pieces, room, ring) for ring in rings if ring >= 2 * grain)]:
            for many in JOINED:
                units = _join(sums, streamed, many * grain)
                if units and tuple(units) not in seen:
                    seen.add(tuple(units))
                    yield units


def _join(sums: PrefixSums, ranges: Sequence[Range], most_bytes: int) -> list[Range]:
    """Neighbours made one, up to `most_bytes` and not across a barrier."""
    at, barriers = sums.bytes_at, sums.workload.barriers
    joined = list(ranges[:1])
    for begin, end in ranges[1:]:
        first, stop = joined[-1]
        if begin == stop and at[end] - at[first] <= most_bytes and begin not in barriers:
            joined[-1] = (first, end)
        else:
            joined.append((begin, end))
    return joined


def _streamed(sums: PrefixSums, pieces: Sequence[Range], room: int, ring: int) -> list[Range]:
    """The pieces to stream so that all others and a ring of `ring` bytes fit `room`; none if that cannot be.

    By bisection, from strict to lax: without waiting on a machine that computes in 0 to 1 × the time; then on this
    one, waiting for 0 to 1 × what must be copied. So no more is streamed than must be, spread as compute is, and a
    machine faster than it was measured to be waits the least.
    """
    load, at, ms = sums.workload, sums.bytes_at, sums.ms_at
    rate = load.bytes_per_ms
    copies = [(at[stop] - at[first]) / rate for first, stop in pieces]
    computes = [max(ms[b] - ms[a], sums.launch_ms * (b - a)) + load.unit_overhead_ms for a, b in pieces]
    needed_ms = (at[-1] - room + ring) / rate
    best = [False] * len(pieces)
    strict, lax = 0.0, 2.0
    for _ in range(BISECTIONS):
        middle = (strict + lax) / 2
        speed, stall_ms = min(1.0, middle), max(0.0, middle - 1.0) * needed_ms
        flags, moved_ms = _walk(copies, computes, ring / rate, load.gap_ms, speed, stall_ms)
        if moved_ms >= needed_ms * (1 - 1e-12):
            best, lax = flags, middle
        else:
            strict = middle
    return [piece for piece, flag in zip(pieces, best, strict=True) if flag]


def _walk(
    copies: Sequence[float], computes: Sequence[float], ring_ms: float, gap_ms: float, speed: float, stall_ms: float
) -> tuple[list[bool], float]:
    """Streams what arrives in time, but for `stall_ms` a forward: (which pieces, ms of copies in all).

    `ahead_ms` is how much of the bus's work is done before its turn. A piece that is late is the best resident: it
    relieves every run of leaves that it lies in (interval stabbing).
    """
    flags = [False] * len(copies)
    ahead_ms = moved_ms = 0.0
    for _ in range(2):  # the second forward begins where the first left the bus
        left_ms, moved_ms = stall_ms + 1e-9, 0.0
        for piece, (copy_ms, compute_ms) in enumerate(zip(copies, computes, strict=True)):
            spare_ms = ahead_ms - copy_ms
            flags[piece] = streams = copy_ms <= ring_ms and spare_ms + left_ms >= 0
            most_ms = ring_ms
            if streams:
                moved_ms += copy_ms
                most_ms -= copy_ms
                if spare_ms < 0:
                    left_ms += spare_ms
                    spare_ms = 0.0
                ahead_ms = spare_ms
            ahead_ms += compute_ms * speed
            if ahead_ms > most_ms:
                ahead_ms = most_ms
        ahead_ms = min(ahead_ms + gap_ms * speed, ring_ms)
    return flags, moved_ms


def _placed(pipeline: Pipeline, room: int, firsts: Sequence[int | None]) -> Layout:
    """The fastest of some placements in what residents leave of `room`: `_laps` from a unit, or `_alternating`."""
    ring, sizes = room - pipeline.resident_bytes, pipeline.sizes
    found = []
    for first in firsts:
        slots = _alternating(sizes, ring) if first is None else _laps(sizes, ring, first)
        found.append(Layout(pipeline.play(slots).step_ms, pipeline, slots))
        if found[-1].step_ms <= pipeline.least_ms * (1 + 1e-9):
            break
    return min(found, key=lambda layout: layout.step_ms)


def _alternating(sizes: Sequence[int], ring: int) -> list[Range]:
    """Slots at both ends of the ring in turn: where it holds two or three units."""
    return [(ring - size, ring) if unit % 2 else (0, size) for unit, size in enumerate(sizes)]


def _laps(sizes: Sequence[int], ring: int, first: int) -> list[Range]:
    """Slots one after the other, in laps over the ring.

    A lap leaves some bytes unused: at its end in the half that begins with unit `first`, at its beginning in the half
    before. So both meet at `first` without loss.
    """
    slots = [(0, 0)] * len(sizes)
    turn = [*range(first, len(sizes)), *range(first)]
    half = len(sizes) // 2
    begin, end = 0, ring
    for unit in turn[:half]:
        begin = begin if begin + sizes[unit] <= ring else 0
        slots[unit] = (begin, begin + sizes[unit])
        begin += sizes[unit]
    for unit in reversed(turn[half:]):
        end = end if end >= sizes[unit] else ring
        slots[unit] = (end - sizes[unit], end)
        end -= sizes[unit]
    return slots
