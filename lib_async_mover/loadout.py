"""The loadout: one plan laid out in memory, with the arena, the units over it, and the pipeline that serves them."""

from __future__ import annotations

import torch

from .arena import Arena
from .backend import Backend
from .binding import Binding, twin_of
from .leaf import Leaf, kept_strides
from .pack import Pack
from .pipeline import Pipeline
from .plan import Plan
from .unit import Unit


class Loadout:
    """What serves forwards until the next plan. Making one takes the arena's memory."""

    def __init__(self, plan: Plan, pack: Pack, backend: Backend) -> None:
        """
        Args:
            plan: its leaf indices refer to the pack's order; its arena begins after the standing tensors.

        Raises:
            ArenaAllocationError: the device has no room for the arena; nothing was taken.
        """
        self.plan = plan
        self._places = pack.store.places
        self._backend = backend
        fixed = pack.fixed_bytes
        self.arena = Arena(fixed + plan.arena_bytes, backend.device)
        backend.take(self.arena)
        self._unit_of: dict[int, Unit] = {}  # by id of the leaf
        units = []
        if fixed:
            units.append(self._unit(-1, True, [pack.standing], 0))
        for index, planned in enumerate(plan.units):
            leaves = pack.order[planned.first : planned.stop]
            units.append(self._unit(index, planned.resident, leaves, fixed + planned.offset))
        self.pipeline = Pipeline(backend, units)
        self.pipeline.forget()

    def _unit(self, index: int, resident: bool, leaves: list[Leaf], offset: int) -> Unit:
        places = [self._places[id(leaf)] for leaf in leaves]
        count = sum(place.bytes for place in places)
        twins: dict[int, torch.Tensor] = {}
        start = offset
        with torch.inference_mode(False):
            for place in places:
                for tensor, inner in place.tensors:
                    twins[id(tensor)] = twin_of(tensor, self.arena.view(tensor, kept_strides(tensor), start + inner))
                start += place.bytes
            binding = Binding(leaves, twins)
        first = places[0]
        source = first.span.raw[first.offset : first.offset + count]
        target = self.arena.raw[offset : offset + count]
        unit = Unit(index, resident, source, target, offset, binding, first.span.pinned)
        self._unit_of.update((id(leaf), unit) for leaf in leaves)
        return unit

    def enter(self, leaf: Leaf) -> bool:
        """A leaf that is not bound is about to run; False if it has to be loaded on the spot."""
        unit = self._unit_of.get(id(leaf))
        return unit is not None and self.pipeline.enter(unit)

    def refresh(self, leaf: Leaf) -> None:
        """The leaf's weights in RAM changed: what is on the device of them is stale."""
        unit = self._unit_of.get(id(leaf))
        if unit is not None:
            self.pipeline.refresh(unit)

    def ensure(self) -> None:
        """Takes the arena's memory again, if it was given back. Raises ArenaAllocationError."""
        if not self.arena.allocated:
            self._backend.take(self.arena)
            self.pipeline.forget()

    def free(self) -> None:
        """Gives the arena's memory back, in order with copies and compute. Between forwards."""
        if self.arena.allocated:
            self._backend.fence_compute()
            self._backend.free(self.arena)
