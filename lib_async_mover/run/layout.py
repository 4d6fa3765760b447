"""The layout: one plan in memory, with the arena, the units over it, and the pipeline that serves them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from lib_async_mover.device.backend import Backend
from lib_async_mover.memory.arena import Arena
from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.memory.joint_store import JointStore
from lib_async_mover.memory.leaf import Leaf, kept_strides
from lib_async_mover.plan.plan import Plan
from lib_async_mover.run.binding import Binding, twin_of
from lib_async_mover.run.pipeline import Pipeline
from lib_async_mover.run.unit import Unit


class Layout:
    """What serves forwards until the next plan."""

    def __init__(self, plan: Plan, store: JointStore, backend: Backend) -> None:
        """The plan's leaf indices refer to the store's order; what stands lies in front of its arena.

        Raises ArenaAllocationError if the device has no room for the arena. Nothing is held then.
        """
        self.plan = plan
        self._backend = backend
        self._store = store
        self._arena = Arena(store.standing_bytes + plan.arena_bytes, backend.device)
        backend.memory_taken(self._arena.raw)
        self._unit_of: dict[int, Unit] = {}  # by id of the leaf
        self._twins: list[torch.Tensor] = []
        units: list[Unit] = []
        offset = 0
        for standing in store.standing:
            units.append(self._unit(-1, True, [standing], offset))
            offset += store.places[id(standing)].bytes
        for index, planned in enumerate(plan.units):
            leaves = store.order[planned.first : planned.stop]
            units.append(self._unit(index, planned.resident, leaves, store.standing_bytes + planned.offset))
        self.pipeline = Pipeline(backend, units, store.stores[0])
        backend.fence_copies()  # the arena's memory is new
        self._uses = self._holders()

    def _unit(self, index: int, resident: bool, leaves: Sequence[Leaf], offset: int) -> Unit:
        places = [self._store.places[id(leaf)] for leaf in leaves]
        count = sum(place.bytes for place in places)
        twins: dict[int, torch.Tensor] = {}
        start = offset
        with torch.inference_mode(False):
            for place in places:
                for tensor, inner in place.tensors:
                    view = self._arena.view(tensor, kept_strides(tensor), start + inner)
                    twins[id(tensor)] = twin_of(tensor, view)
                start += place.bytes
            binding = Binding(leaves, twins)
        self._twins += twins.values()
        span, first = places[0].span, places[0].offset
        source, target = span.raw[first : first + count], self._arena.raw[offset : offset + count]
        unit = Unit(index, resident, source, span.pinned, target, binding, self._store.store_of[id(leaves[0])])
        self._unit_of.update((id(leaf), unit) for leaf in leaves)
        return unit

    def fetch(self, leaf: Leaf) -> bool:
        """A leaf that is not bound is about to run; False if it has to be loaded on demand."""
        unit = self._unit_of.get(id(leaf))
        return unit is not None and self.pipeline.fetch(unit)

    def bind_residents(self, leaf: Leaf) -> None:
        """A guest runs, as its ``leaf`` is about to: see `Pipeline.bind_residents`."""
        self.pipeline.bind_residents(self._store.store_of[id(leaf)])

    def streamed_bytes(self, store: HostStore) -> int:
        """What of one part every step copies."""
        units = [unit for unit in self._unit_of.values() if unit.store is store and not unit.resident]
        return sum({id(unit): unit.source.numel() for unit in units}.values())

    @property
    def held_bytes(self) -> int:
        """VRAM that it takes now."""
        return self._arena.bytes if self._arena.allocated else 0

    def allocate(self) -> None:
        """Takes the arena's memory again, if it was given back. Raises ArenaAllocationError."""
        if not self._arena.allocated:
            self._arena.allocate()
            self._backend.memory_taken(self._arena.raw)
            self.pipeline.invalidate_all()

    def _holders(self) -> tuple[int, int]:
        return self._arena.uses(), sum(map(sys.getrefcount, self._twins))

    def free(self) -> bool:
        """Gives the arena's memory back, in order with copies and compute. Between forwards.

        False if somebody else holds some of it, a weight or a view: then it goes with that, and the layout is of no
        more use.
        """
        if self._arena.allocated:
            self._backend.fence_compute()
            self._backend.memory_freed()
            if self.pipeline.grad_seen or self._holders() != self._uses:
                return False
            self._arena.free()
        return True
