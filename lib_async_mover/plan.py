"""The plan: which units are resident, where every unit lives in the arena, and how long a step should take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lib_async_mover.errors import PlanError
from lib_async_mover.limit import limit_ms
from lib_async_mover.simulate import simulate
from lib_async_mover.workload import Workload

ALIGN = 512


def align(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return (size + ALIGN - 1) // ALIGN * ALIGN


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """Leaves [first, stop) in execution order, moved as one copy of `bytes` into the arena at `offset`."""

    first: int
    stop: int
    bytes: int
    offset: int
    resident: bool

    @property
    def end(self) -> int:
        """Where the slot ends: the offset plus the aligned size."""
        return self.offset + align(self.bytes)


@dataclass(frozen=True)
class Plan:
    """
    Every leaf is in exactly one unit, in execution order, or in `loose` (larger than the arena: load on the spot).

    Residents own [0, resident_bytes) of the arena, each alone; streamed units share [resident_bytes, arena_bytes).
    All sizes in bytes, all times in ms per step.
    """

    units: tuple[PlannedUnit, ...]
    budget_bytes: int
    arena_bytes: int
    resident_bytes: int
    ring_bytes: int
    predicted_ms: float
    stall_ms: float
    limit_ms: float
    loose: frozenset[int] = frozenset()

    @property
    def streamed_bytes(self) -> int:
        """Bytes that every step copies, loose leaves aside."""
        return sum(unit.bytes for unit in self.units if not unit.resident)

    @property
    def streamed_units(self) -> int:
        """How many copies every step issues, loose leaves aside."""
        return sum(not unit.resident for unit in self.units)


def make_plan(workload: Workload, budget_bytes: int) -> Plan:
    """
    The plan with the shortest simulated step that keeps weights within `budget_bytes` of VRAM.

    A budget too small for some leaf is no error: that leaf becomes loose.
    Raises PlanError if the budget is negative or not a number.
    """
    if isinstance(budget_bytes, bool) or not math.isfinite(budget_bytes) or budget_bytes < 0:
        raise PlanError(f"The budget must be a number of bytes, zero or more; found {budget_bytes!r}.")
    budget_bytes = int(budget_bytes)
    room = max(0, budget_bytes - workload.fixed_bytes) // ALIGN * ALIGN
    candidates = [_ring(workload, budget_bytes, room, room // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16)]
    return min(candidates, key=lambda plan: plan.predicted_ms)


def _ring(workload: Workload, budget_bytes: int, room: int, grain: int) -> Plan:
    runs: list[tuple[int, int, int]] = []
    loose = set()
    first, size = 0, 0
    for index, leaf in enumerate(workload.leaves):
        too_big = align(leaf.bytes) > room
        if index > first and (too_big or index in workload.barriers or size + leaf.bytes > grain):
            runs.append((first, index, size))
            first, size = index, 0
        if too_big:
            loose.add(index)
            first = index + 1
        else:
            size += leaf.bytes
    if first < len(workload.leaves):
        runs.append((first, len(workload.leaves), size))
    fits = sum(align(size) for _, _, size in runs) <= room
    units, offset, high = [], 0, 0
    for first, stop, size in runs:
        if offset + align(size) > room:
            offset = 0
        units.append(PlannedUnit(first, stop, size, offset, fits))
        offset += align(size)
        high = max(high, offset)
    plan = Plan(
        units=tuple(units),
        budget_bytes=budget_bytes,
        arena_bytes=high,
        resident_bytes=high if fits else 0,
        ring_bytes=0 if fits else high,
        predicted_ms=0.0,
        stall_ms=0.0,
        limit_ms=limit_ms(workload, budget_bytes),
        loose=frozenset(loose),
    )
    result = simulate(plan, workload)
    return replace(plan, predicted_ms=result.step_ms, stall_ms=result.stall_ms)
