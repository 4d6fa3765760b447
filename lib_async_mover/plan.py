"""The plan: which units are resident, where every unit lives in the arena, and how long a step should take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from lib_async_mover.candidates import Candidate
from lib_async_mover.errors import PlanError
from lib_async_mover.limit import limit_ms
from lib_async_mover.outline import align
from lib_async_mover.placement import ALIGN
from lib_async_mover.search import search_of
from lib_async_mover.simulate import simulate
from lib_async_mover.workload import Workload

__all__ = ["ALIGN", "Plan", "PlannedUnit", "align", "make_plan", "whole_plan"]


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
    `arena_bytes` is at most the budget less the workload's `fixed_bytes`. Sizes in bytes, times in ms per step.
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
    The plan with the shortest simulated step found that keeps weights within `budget_bytes` of VRAM.

    Deterministic, and more budget never predicts a slower step: the search knows budgets on a fixed grid, and the
    plan is the best of all grid points up to the budget. Grid points whose `limit_ms` is no better than what a
    larger one already reached are not searched. Two calls with equal workloads share the search.

    A budget too small for some leaf is no error: that leaf becomes loose.
    Raises PlanError if the budget is negative or not a number.
    """
    if isinstance(budget_bytes, bool) or not math.isfinite(budget_bytes) or budget_bytes < 0:
        raise PlanError(f"The budget must be a number of bytes, zero or more; found {budget_bytes!r}.")
    budget_bytes = int(budget_bytes)
    return _plan(workload, budget_bytes, search_of(workload).best(budget_bytes))


def whole_plan(workload: Workload) -> Plan:
    """Everything resident, in as few copies as the barriers allow; for what is used at once and then released."""
    outline = search_of(workload).outline
    at = outline.bytes_at
    cuts = [0, *sorted(workload.barriers - {0}), len(workload.leaves)]
    units: list[PlannedUnit] = []
    for first, stop in pairwise(cuts):
        units.append(PlannedUnit(first, stop, at[stop] - at[first], units[-1].end if units else 0, True))
    count = units[-1].end
    budget_bytes = count + workload.fixed_bytes
    step_ms = workload.resident_ms
    return Plan(tuple(units), budget_bytes, count, count, 0, step_ms, 0.0, limit_ms(workload, budget_bytes))


def _plan(workload: Workload, budget_bytes: int, found: Candidate) -> Plan:
    room = max(0, budget_bytes - workload.fixed_bytes)
    outline = search_of(workload).outline
    at = outline.bytes_at
    units: list[PlannedUnit] = []
    loose: list[int] = []
    for (first, stop), offset in zip(found.streamed, found.offsets, strict=True):
        size = at[stop] - at[first]
        if align(size) > room:
            loose.extend(range(first, stop))
        else:
            units.append(PlannedUnit(first, stop, size, found.resident_bytes + offset, False))
    ring_bytes = max((unit.end - found.resident_bytes for unit in units), default=0)
    position = 0
    for first, stop in outline.resident_ranges(found.streamed):
        unit = PlannedUnit(first, stop, at[stop] - at[first], position, True)
        units.append(unit)
        position = unit.end
    units.sort(key=lambda unit: unit.first)
    plan = Plan(
        units=tuple(units),
        budget_bytes=budget_bytes,
        arena_bytes=found.resident_bytes + ring_bytes,
        resident_bytes=found.resident_bytes,
        ring_bytes=ring_bytes,
        predicted_ms=found.step_ms,
        stall_ms=0.0,
        limit_ms=limit_ms(workload, budget_bytes),
        loose=frozenset(loose),
    )
    return replace(plan, stall_ms=simulate(plan, workload).stall_ms)
