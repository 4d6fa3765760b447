"""What the planner needs to know about a model: bytes and compute time per leaf, in execution order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from lib_async_mover.errors import PlanError

MIB = 1 << 20
_TIMES = ("unit_overhead_ms", "gap_ms", "launch_ms", "unit_launch_ms")


@dataclass(frozen=True, slots=True)
class LeafCost:
    """One leaf: its name, its weights in bytes (with the host store's padding), its compute time in ms."""

    name: str
    bytes: int
    ms: float

    @property
    def block(self) -> str:
        """The UNet's block: `input_blocks.4.1.norm` → `input_blocks.4`; `time_embed.0` → `time_embed`."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


@dataclass(frozen=True)
class Workload:
    """One forward of a model, and the machine it runs on.

    - `leaves`: in execution order
    - `gbps`: measured page-locked host-to-device bandwidth, in 1e9 bytes per second
    - `fixed_bytes`: weights that are always on the device and belong to no leaf; they count against the budget
    - `barriers`: leaf indices at which a new unit must start (where the host store begins a new span)
    - `unit_overhead_ms`: what a streamed unit adds to the compute timeline (events, swap, launch of the copy)
    - `gap_ms`: from the end of one forward to the start of the next; copies go on meanwhile
    - `launch_ms`: CPU time to launch one forward's kernels with everything resident; no forward takes less
    - `unit_launch_ms`: CPU time that a streamed unit adds to that

    Raises PlanError if a number is negative, not finite, or there are no leaves.
    """

    leaves: tuple[LeafCost, ...]
    gbps: float
    fixed_bytes: int = 0
    barriers: frozenset[int] = frozenset()
    unit_overhead_ms: float = 0.02
    gap_ms: float = 0.0
    launch_ms: float = 0.0
    unit_launch_ms: float = 0.0

    def __post_init__(self) -> None:
        if not self.leaves:
            raise PlanError("A workload needs at least one leaf; found none. Record a forward first.")
        if not (math.isfinite(self.gbps) and self.gbps > 0):
            raise PlanError(f"Bandwidth must be a positive number of GB/s; found {self.gbps!r}. Measure it again.")
        for name in ("fixed_bytes", *_TIMES):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise PlanError(f"{name} must be finite and not negative; found {value!r}.")
        for leaf in self.leaves:
            if leaf.bytes < 0 or not (math.isfinite(leaf.ms) and leaf.ms >= 0):
                raise PlanError(
                    f"Leaf {leaf.name!r}: bytes and ms must be finite and not negative; "
                    f"found {leaf.bytes!r} bytes, {leaf.ms!r} ms. Profile the model again."
                )
        for index in self.barriers:
            if not 0 <= index < len(self.leaves):
                raise PlanError(f"Barrier {index} is outside the {len(self.leaves)} leaves.")

    def __hash__(self) -> int:
        # Plans are cached by workload: a thousand leaves are summed once, not hashed at every look.
        return hash((len(self.leaves), self.weight_bytes, self.compute_ms, self.gbps, self.launch_ms))

    @cached_property
    def weight_bytes(self) -> int:
        """All bytes of all leaves, without `fixed_bytes`."""
        return sum(leaf.bytes for leaf in self.leaves)

    @cached_property
    def compute_ms(self) -> float:
        """What the device computes in one forward, in ms."""
        return math.fsum(leaf.ms for leaf in self.leaves)

    @cached_property
    def resident_ms(self) -> float:
        """One forward with everything resident, in ms: what it computes, or what it takes to launch that."""
        return max(self.compute_ms, self.launch_ms)

    @property
    def bytes_per_ms(self) -> float:
        """The bus, in the units the planner computes with."""
        return self.gbps * 1e6

    def scaled(self, compute: float = 1.0, gbps: float | None = None) -> Workload:
        """The same model on another machine: compute times multiplied by `compute`, another bus."""
        leaves = tuple(LeafCost(leaf.name, leaf.bytes, leaf.ms * compute) for leaf in self.leaves)
        return replace(self, leaves=leaves, gbps=self.gbps if gbps is None else gbps)
