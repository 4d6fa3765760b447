"""The plan: which units are resident, where every unit lies in the arena, and how long a step should take."""

from __future__ import annotations

from dataclasses import dataclass


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
        """Where the slot ends."""
        return self.offset + self.bytes


@dataclass(frozen=True)
class Plan:
    """Every leaf is in exactly one unit, in execution order; a unit is its leaves' bytes on end.

    Residents own [0, resident_bytes) of the arena, each alone; streamed units share the ring,
    [resident_bytes, arena_bytes). `arena_bytes` is at most the budget less the workload's `fixed_bytes`.
    Sizes in bytes, times in ms per step; `stall_ms` is what compute waits for weights.
    """

    units: tuple[PlannedUnit, ...]
    budget_bytes: int
    resident_bytes: int
    ring_bytes: int
    predicted_ms: float
    stall_ms: float
    limit_ms: float

    @property
    def arena_bytes(self) -> int:
        """What residents and ring take together."""
        return self.resident_bytes + self.ring_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes that every step copies."""
        return sum(unit.bytes for unit in self.units if not unit.resident)

    @property
    def streamed_units(self) -> int:
        """How many copies every step issues."""
        return sum(not unit.resident for unit in self.units)

    def residents(self) -> list[bool]:
        """Of every leaf, in execution order, whether it is resident."""
        return [unit.resident for unit in self.units for _ in range(unit.first, unit.stop)]
