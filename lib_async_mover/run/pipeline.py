"""The pipeline: which unit may be copied when, which one is bound, and what happens when a forward goes its own way.

Streamed units run in a cycle that never ends; a unit's *turn* is its running number over all forwards. A turn is
copied once every earlier turn whose slot overlaps is over, so the copies run ahead of the compute by what the ring
holds, and from the end of one forward into the next. See [Note: the overlap] in device/backend.py for the waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

from lib_async_mover.device.backend import Backend
from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.run.unit import Residence, Unit

_unlabelled = nullcontext()


def label(name: str) -> AbstractContextManager:
    """A range in torch's profiler, if one is running: the label alone takes microseconds."""
    return record_function(f"async_lowvram::{name}") if torch.autograd._profiler_enabled() else _unlabelled


class Pipeline:
    """Serves one arena's units to one forward at a time."""

    def __init__(self, backend: Backend, units: Sequence[Unit], root: HostStore) -> None:
        """``units`` are in execution order; residents' slots overlap nobody's. Those of ``root`` run in every forward.
        """
        self._backend = backend
        self._root = root
        self._ring = [unit for unit in units if not unit.resident]
        self._residents = [unit for unit in units if unit.resident]
        self._place = {id(unit): place for place, unit in enumerate(self._ring)}
        self._reach = [self._reach_of(place) for place in range(len(self._ring))]
        self._absent = bool(self._residents)  # whether some resident is ABSENT
        self.grad_seen = False  # whether autograd may have saved twins
        self._over = 0  # turns before this one are over
        self._copied = 0  # turns before this one have had their copy issued
        self._end = 0  # first turn of the next forward
        self._current: Unit | None = None  # bound; its turn is `_over`
        self.timer: Any = None  # told `before_wait` and `after_wait`, if there is one

    def _reach_of(self, place: int) -> int:
        """How many turns back the latest unit lies whose slot overlaps: 1 … len(ring), itself one cycle ago at most."""
        count = len(self._ring)
        return next(
            back for back in range(1, count + 1) if self._ring[(place - back) % count].overlaps(self._ring[place])
        )

    def start_forward(self, stream_changed: bool, whole: bool) -> None:
        """Binds the root's residents that are there, and issues what copies may be issued.

        Residents are waited for again if the compute's stream has changed; a ``whole`` module's are all bound now.
        """
        self._end = self._over + len(self._ring)
        self._renew([unit for unit in self._residents if unit.binding.outdated()])
        self.issue_copies()
        for unit in self._residents:
            if stream_changed and unit.residence is Residence.READY:
                unit.residence = Residence.COPYING
            if whole or unit.index < 0:
                self.fetch(unit)
        self.bind_residents(self._root)

    def bind_residents(self, store: HostStore) -> None:
        """Binds those of one part that are there; of a guest's, once it runs."""
        for unit in self._residents:
            if unit.store is store and unit.residence is Residence.READY and unit.binding.packed():
                self._bind_resident(unit)

    def issue_copies(self) -> None:
        """Issues every copy whose slot is free. Residents that are not there are copied in their place of the order."""
        ring, reach, count = self._ring, self._reach, len(self._ring)
        while count:
            place = self._copied % count
            back = self._copied - reach[place]
            if back >= self._over:
                return
            self._copy_residents(ring[place].index)
            self._copy(ring[place], ring[back % count] if back >= 0 else None)
            self._copied += 1
            if place == count - 1:
                self._copy_residents()
        self._copy_residents()

    def _copy_residents(self, before: int | None = None) -> None:
        """Those that are absent, up to unit number ``before``."""
        if self._absent:
            absent = [unit for unit in self._residents if unit.residence is Residence.ABSENT]
            due = [unit for unit in absent if before is None or unit.index < before]
            for unit in due:
                self._copy(unit, None)
            self._absent = len(due) < len(absent)

    def _copy(self, unit: Unit, after: Unit | None) -> None:
        unit.binding.mark_copied()
        with label("copy"):
            done = after.done if after is not None else None
            unit.copy = self._backend.copy(unit.source, unit.target, unit.pinned, done)
        if unit.resident:
            unit.residence = Residence.COPYING

    def fetch(self, unit: Unit) -> bool:
        """A leaf of ``unit`` is about to run, and the unit is not bound: waits for its copy and binds it.

        False if the unit's turn in this forward is over, or its tensors are no longer the packed ones: the leaf must
        be served otherwise.
        """
        self.grad_seen |= torch.is_grad_enabled()
        if not unit.binding.packed():
            unit.store.intact = False
            return False
        outdated = unit.binding.outdated()
        if unit.resident:
            if outdated:
                self._renew([unit])
            if unit.residence is Residence.ABSENT:
                self._copy(unit, None)
            if unit.residence is Residence.COPYING:
                self._wait(unit)
            self._bind_resident(unit)
            return True
        count = len(self._ring)
        expected = self._over + (self._current is not None)
        turn = expected + (self._place[id(unit)] - expected) % count
        if turn >= self._end:
            return False
        self._release_current()
        self._skip_to(turn)
        self.issue_copies()
        if outdated:
            self._copy(unit, None)  # behind the first, on the same stream
        self._wait(unit)
        with label("bind"):
            unit.binding.bind()
        self._current = unit
        return True

    def _bind_resident(self, unit: Unit) -> None:
        with label("bind"):
            unit.binding.bind()
        unit.residence = Residence.BOUND

    def _wait(self, unit: Unit) -> None:
        assert unit.copy is not None
        with label("wait"):
            if self.timer is not None:
                self.timer.before_wait()
            try:
                self._backend.wait_for_copy(unit.copy)
            except BaseException:
                for other in [*self._ring, *self._residents]:  # then so may any that was issued since
                    if other.residence is not Residence.BOUND:
                        self._invalidate(other)
                raise
            if self.timer is not None:
                self.timer.after_wait()

    def _release_current(self) -> None:
        unit, self._current = self._current, None
        if unit is None:
            return
        assert unit.copy is not None
        unit.binding.unbind()
        self._write_back(unit)
        self._count_write(unit)
        unit.done = self._backend.release(unit.copy)
        self._over += 1

    def _write_back(self, unit: Unit) -> None:
        if not unit.binding.untouched():
            outdated = unit.binding.outdated()
            if not unit.binding.write_back():
                unit.store.intact = False
            elif not outdated:
                unit.binding.mark_copied()  # slot and host tensors are the same again

    def _count_write(self, unit: Unit) -> None:
        self.grad_seen |= torch.is_grad_enabled()
        if self.grad_seen:
            unit.binding.count_write()

    def _skip_to(self, turn: int) -> None:
        """Turns before ``turn`` do not happen."""
        if self._over < turn:
            # Later copies wait for the latest unit under them, and trust that it came after all earlier ones. One that
            # is skipped did not.
            self._over = turn
            self._copied = max(self._copied, turn)
            self._backend.fence_copies()

    def end_forward(self) -> None:
        """The forward is over, or an exception ended it: nothing stays bound, and the next one's units are copied."""
        self._release_current()
        bound = [unit for unit in self._residents if unit.residence is Residence.BOUND]
        for unit in bound:
            unit.binding.unbind()
            unit.residence = Residence.READY
        for unit in bound:
            self._write_back(unit)
        self._skip_to(self._end)
        self.issue_copies()

    def _renew(self, residents: list[Unit]) -> None:
        """Their host tensors were written to: the copies on the device are stale. They are not bound."""
        stale = [unit for unit in residents if unit.residence is not Residence.ABSENT]
        for unit in stale:
            self._count_write(unit)
            unit.residence, self._absent = Residence.ABSENT, True
        if stale:
            self._backend.fence_copies()

    def _invalidate(self, unit: Unit) -> None:
        """What was copied of the unit cannot be relied on. It is not bound."""
        if unit.resident:
            self._renew([unit])
        else:
            first = self._over + (self._current is not None)
            self._copied = min(self._copied, first + (self._place[id(unit)] - first) % len(self._ring))

    def invalidate_all(self) -> None:
        """Nothing on the device is valid, or its memory is new. Between forwards."""
        self._backend.fence_copies()
        self._copied = self._over
        self._absent = bool(self._residents)
        for unit in [*self._ring, *self._residents]:
            self._count_write(unit)
            unit.residence = Residence.ABSENT
            unit.binding.readdress()
