"""The loadout: one plan laid out in memory, with the arena, the units over it, and the pipeline that serves them."""

from __future__ import annotations

from itertools import groupby

import torch

from .arena import Arena
from .backend import Backend
from .binding import Binding, twin_of
from .leaf import Leaf, kept_strides
from .masters import Masters
from .pack import Pack
from .pipeline import Pipeline
from .plan import Plan
from .unit import Unit


class Loadout:
    """What serves forwards until the next plan."""

    def __init__(self, plan: Plan, pack: Pack, backend: Backend, arena: Arena, before: Loadout | None = None) -> None:
        """
        Args:
            plan: its leaf indices refer to the pack's order; its arena begins after the standing tensors.
            arena: with room for both.
            before: the loadout of the same pack that lies in the arena now, and is over. What is resident in both is
                moved within the arena, not copied to it again.
        """
        self.plan = plan
        self.arena = arena
        self._places = pack.store.places
        self._masters = pack.masters
        self._rest: Masters | None = None  # those that are watched beside what is held
        self._references: int | None = None  # to the arena, when all that is held was seen to lie there
        self._leaves = [pack.standing, *pack.order] if pack.fixed_bytes else pack.order
        self._backend = backend
        self._unit_of: dict[int, Unit] = {}  # by id of the leaf
        self._offset_of: dict[int, int] = {}  # the same, of residents
        kept = before._loaded() if before is not None else {}
        units: list[Unit] = []
        if pack.fixed_bytes:
            units.append(self._unit(-1, True, [pack.standing], 0))
        for planned in plan.units:
            leaves, offset = pack.order[planned.first : planned.stop], pack.fixed_bytes + planned.offset
            # What is there and what is not are units of their own, so that only the latter is copied.
            resident = planned.resident
            for _, group in groupby(leaves, key=lambda leaf: resident and id(leaf) in kept):
                units.append(self._unit(len(units), resident, list(group), offset))
                offset += units[-1].bytes
        if kept:
            backend.fence_compute()
            stays = [leaf for leaf in [pack.standing, *pack.order] if id(leaf) in kept and id(leaf) in self._offset_of]
            with torch.inference_mode(False), torch.no_grad():
                arena.rearrange(
                    [(kept[id(leaf)], self._offset_of[id(leaf)], self._places[id(leaf)].bytes) for leaf in stays]
                )
            for leaf in stays:
                self._unit_of[id(leaf)].loaded = True
        self.pipeline = Pipeline(backend, units)
        for unit in units:
            if unit.loaded:
                backend.keep(unit)
        backend.fence_copies()  # the arena's memory is new, or was moved in

    def _unit(self, index: int, resident: bool, leaves: list[Leaf], offset: int) -> Unit:
        places = [self._places[id(leaf)] for leaf in leaves]
        count = sum(place.bytes for place in places)
        twins: dict[int, torch.Tensor] = {}
        start = offset
        with torch.inference_mode(False):
            for leaf, place in zip(leaves, places, strict=True):
                for tensor, inner in place.tensors:
                    twins[id(tensor)] = twin_of(tensor, self.arena.view(tensor, kept_strides(tensor), start + inner))
                if resident:
                    self._offset_of[id(leaf)] = start
                start += place.bytes
            binding = Binding(leaves, twins)
        first = places[0]
        source = first.span.raw[first.offset : first.offset + count]
        target = self.arena.raw[offset : offset + count]
        unit = Unit(index, resident, source, target, offset, binding, first.span.pinned)
        self._unit_of.update((id(leaf), unit) for leaf in leaves)
        return unit

    def _loaded(self) -> dict[int, int]:
        """Where the residents that are there begin, in bytes; by id of the leaf."""
        return {leaf: offset for leaf, offset in self._offset_of.items() if self._unit_of[leaf].loaded}

    def enter(self, leaf: Leaf) -> bool:
        """A leaf that is not bound is about to run; False if it has to be loaded on the spot."""
        unit = self._unit_of.get(id(leaf))
        return unit is not None and self.pipeline.enter(unit)

    def refresh(self, leaf: Leaf) -> None:
        """The leaf's weights in RAM changed: what is on the device of them is stale."""
        unit = self._unit_of.get(id(leaf))
        if unit is not None:
            self.pipeline.refresh(unit)

    def held_still(self) -> bool:
        """Whether residents are held and still lie in the arena, and no other packed tensor was touched.

        In-place edits of what is held need no look: they are where the next forward reads. `let_go` brings them home.
        """
        held, references = self.pipeline.held, self.arena.references
        if not held or not all(unit.binding.complete for unit in held):
            return False
        if references is None or references != self._references:
            if not all(unit.binding.in_place for unit in held):
                return False
            self._references = references
        if not (self._rest or self._masters).unchanged():
            return False
        if self._rest is None:
            units = set(map(id, held))
            self._rest = self._masters.without([leaf for leaf in self._leaves if id(self._unit_of[id(leaf)]) in units])
        return True

    def let_go(self, all_of_it: bool = False) -> None:
        """See `Pipeline.let_go`."""
        self._rest = None
        self.pipeline.let_go(all_of_it)

    def ensure(self) -> None:
        """Takes the arena's memory again, if it was given back. Raises ArenaAllocationError."""
        if not self.arena.allocated:
            self._backend.take(self.arena)
            self.pipeline.forget()

    def free(self) -> None:
        """Gives the arena's memory back, in order with copies and compute. Between forwards; nothing is held."""
        if self.arena.allocated:
            self._backend.fence_compute()
            self._backend.free(self.arena)
