"""The pipeline: which unit may be copied when, which one is bound, and how a forward that strays is caught.

Streamed units run in a cycle that never ends; a unit's *turn* is its running number over all forwards. A turn is
copied once every earlier turn whose slot overlaps is over, so the copies run ahead of the compute by what the ring
holds, and from the end of one forward into the next. See [Note: the overlap] in backend.py for the waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .backend import Backend
from .unit import Unit


class Watch(Protocol):
    """Sees waits as they are issued; a profiler."""

    def before_wait(self) -> None: ...
    def after_wait(self) -> None: ...


class Pipeline:
    """Serves one arena's units to one forward at a time."""

    def __init__(self, backend: Backend, units: Sequence[Unit]) -> None:
        """
        Args:
            units: in execution order; residents' slots overlap nobody's. What `Unit.loaded` says is believed.
        """
        self._backend = backend
        self._ring = [unit for unit in units if not unit.resident]
        self._residents = [unit for unit in units if unit.resident]
        self._place = {unit.index: place for place, unit in enumerate(self._ring)}
        self._reach = [self._reach_of(place) for place in range(len(self._ring))]
        self._cold = [unit for unit in self._residents if not unit.loaded]  # copy not issued, in execution order
        self._settled: list[Unit] = []  # residents whose copy the compute has waited for
        self._over = 0  # turns before this one are over
        self._copied = 0  # turns before this one have had their copy issued
        self._end = 0  # first turn of the next forward
        self._current: Unit | None = None  # bound; its turn is `_over`
        self._bound: list[Unit] = []  # residents that are bound, in this forward or since the last
        # A forward that touches nothing is looked at once, at the next one's start, with whatever was done in between.
        self._calm = False
        self.watch: Watch | None = None
        self.intact = True  # False: a forward changed what tensors there are, the module must be packed anew
        backend.install(units)

    def _reach_of(self, place: int) -> int:
        """How many turns back the latest unit lies whose slot overlaps: 1 … len(ring), itself one cycle ago at most."""
        count = len(self._ring)
        return next(
            back for back in range(1, count + 1) if self._ring[(place - back) % count].overlaps(self._ring[place])
        )

    def begin(self, stream_changed: bool = False, whole: bool = False) -> None:
        """A forward begins: binds the residents that are there, and issues what copies may be issued.

        Args:
            stream_changed: the compute runs on another stream than before; nothing is held.
            whole: all residents are waited for and bound now.
        """
        self._end = self._over + len(self._ring)
        if stream_changed:
            self._settled = []
        if not self._bound:
            self._bound = list(self._settled)
            for unit in self._bound:
                unit.binding.bind()
        self.pump()
        for unit in self._residents:
            if (whole or unit.index < 0) and unit not in self._settled:
                self.enter(unit)

    def pump(self) -> None:
        """Issues every copy whose slot is free. Residents that are not there are copied in their place of the order."""
        ring, reach, count = self._ring, self._reach, len(self._ring)
        while count:
            place = self._copied % count
            back = self._copied - reach[place]
            if back >= self._over:
                return
            if self._cold:
                self._warm(ring[place].index)
            self._backend.copy(ring[place], ring[back % count] if back >= 0 else None)
            self._copied += 1
            if self._cold and place == count - 1:
                self._warm(None)
        self._warm(None)

    def _warm(self, before: int | None) -> None:
        while self._cold and (before is None or self._cold[0].index < before):
            unit = self._cold.pop(0)
            self._backend.copy(unit, None)
            unit.loaded = True

    def enter(self, unit: Unit) -> bool:
        """
        A leaf of ``unit`` is about to run, and the unit is not bound: waits for its copy and binds it.

        Returns:
            False if the unit's turn in this forward is over: the leaf must be served otherwise.
        """
        if unit.resident:
            self._enter_resident(unit)
            return True
        count = len(self._ring)
        expected = self._over + (self._current is not None)
        turn = expected + (self._place[unit.index] - expected) % count
        if turn >= self._end:
            return False
        self._leave()
        self._skip_to(turn)
        self.pump()
        self._wait(unit)
        unit.binding.bind()
        self._current = unit
        return True

    def _enter_resident(self, unit: Unit) -> None:
        if not unit.loaded:
            self._cold.remove(unit)
            self._backend.copy(unit, None)
            unit.loaded = True
        self._wait(unit)
        unit.binding.bind()
        self._settled.append(unit)
        self._bound.append(unit)

    def _wait(self, unit: Unit) -> None:
        if self.watch is None:
            self._backend.acquire(unit)
        else:
            self.watch.before_wait()
            self._backend.acquire(unit)
            self.watch.after_wait()

    def _leave(self) -> None:
        unit, self._current = self._current, None
        if unit is None:
            return
        unit.binding.unbind()
        self._bring_home(unit)
        self._backend.leave(unit)
        self._over += 1

    def _bring_home(self, unit: Unit) -> bool:
        """Whether there was anything to bring."""
        if unit.binding.untouched():
            return False
        self.intact &= unit.binding.collect()
        return True

    def _skip_to(self, turn: int) -> None:
        """Turns before ``turn`` do not happen."""
        if self._over < turn:
            # Later copies wait for the latest unit under them, and trust that it came after all earlier ones. One that
            # is skipped did not.
            self._over = turn
            self._copied = max(self._copied, turn)
            self._backend.fence_copies()

    def finish(self, hold: bool = False) -> None:
        """The forward is over, or an exception ended it: the next one's units are on their way.

        Args:
            hold: what is resident stays bound until the next forward, or until `let_go`; nothing stays otherwise.
        """
        self._leave()
        if not hold:
            self._unbind()
        if not (hold and self._calm):
            self._calm = not sum(map(self._bring_home, self._bound))
        for unit in self._bound:
            unit.binding.drop_casts()
        self._backend.rest(self._bound)
        if not hold:
            self._bound = []
        elif not self.intact:
            self.let_go()
        self._skip_to(self._end)
        self.pump()

    def _unbind(self) -> None:
        for unit in self._bound:
            unit.binding.unbind()

    @property
    def held(self) -> list[Unit]:
        """Between forwards: residents that stayed bound."""
        return self._bound

    def let_go(self, all_of_it: bool = False) -> None:
        """Nothing stays bound, and what was done to what was held is brought home. Between forwards.

        Args:
            all_of_it: what is held was changed without a trace.
        """
        self._unbind()
        bound, self._bound = self._bound, []
        for unit in bound:
            unit.binding.collect_grads()
            if all_of_it or not unit.binding.untouched():
                self._calm = False
                self.intact &= unit.binding.collect(between=True, all_of_it=all_of_it)

    def refresh(self, unit: Unit) -> None:
        """The unit's host bytes changed: what was copied of it is stale. It is not bound."""
        if unit.resident:
            if unit.loaded:
                unit.loaded = False
                self._settled = [other for other in self._settled if other is not unit]
                self._cold = sorted([*self._cold, unit], key=lambda other: other.index)
                self._backend.fence_copies()
            return
        first = self._over + (self._current is not None)
        turn = first + (self._place[unit.index] - first) % len(self._ring)
        self._copied = min(self._copied, turn)

    def forget(self) -> None:
        """The arena's memory is new: nothing is there. Between forwards; nothing is held."""
        self._backend.fence_copies()
        self._copied = self._over
        self._settled = []
        self._cold = list(self._residents)
        for unit in self._residents:
            unit.loaded = False
        for unit in [*self._ring, *self._residents]:
            unit.binding.readdress()
