"""The mover: what others ask of a module that streams. Made by `attach`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.workload import Workload
from lib_async_mover.run.forward import ForwardHooks
from lib_async_mover.run.placement import Placement
from lib_async_mover.run.stats import stats_of


class Mover(ForwardHooks):
    """Streams one module's weights; see `attach`. Its verbs may be called from any thread, but not within a forward."""

    def give_way(self) -> bool:
        """Memory ran out in the last forward, which will be done again: half the buffer serves inputs of that size from
        now on, and a whole module streams. False if there is nothing to give, or within a forward.
        """
        with self._lock:
            gave = not self.busy and self.placement.give_way()
            if gave and self.whole:
                self._parts.stream()
            return gave

    @property
    def order(self) -> list[str]:
        """Names of the root's leaves in the order in which forwards run them, once it is recorded."""
        return [leaf.name for leaf in self._parts.order.of((self._parts.root,)) or ()]

    def pack(self, order: Sequence[str] = ()) -> None:
        """Packs the root's weights now, not in its first forwards. Nothing moves to the device.

        ``order``: names of leaves, as `Mover.order` gave them for a module like this. With another one everything is
        right too, but packed again once the order of a forward is known.
        """
        with self._lock:
            if not self.busy:
                self._recover()
                self._parts.pack(order)

    def invalidate_all(self) -> None:
        """All weights were written to behind torch's back (through ``.data``): what is on the device is stale."""
        with self._lock:
            if not self.busy:
                self._recover()
                self.placement.invalidate_all()

    def close(self) -> None:
        """Undoes everything; see `detach`. Raises ConcurrentForwardError inside a forward."""
        with self._lock:
            if self.busy:
                raise ConcurrentForwardError(f"{self.name}: detach was called inside a forward; call it afterwards")
            self._recover()
            self._parts.close()
            self.backend.close()
            for handle in self._handles:
                handle.remove()

    @property
    def guests(self) -> list[nn.Module]:
        """Modules that other code runs inside the root's forward, in any order, some of them in some forwards only.

        They stream as the root does, from the next forward on, within the same budget. Guests are held weakly: one that
        nobody else has is none any more. One that is taken off the list is left as by `detach`.

        Raises (when set):
            ConcurrentForwardError: in a forward.
            AsyncMoverError: one streams elsewhere, or shares weights with the root. Nothing was changed.
            UnsupportedModuleError: one holds tensors that cannot be packed. Nothing was changed.
        """
        return self._parts.guests

    @guests.setter
    def guests(self, modules: Sequence[nn.Module]) -> None:
        with self._lock:
            if self.busy:
                raise ConcurrentForwardError(f"{self.name}: guests were set inside a forward; set them between two")
            self._recover()
            self._parts.set_guests(modules)

    def use(self, workload: Workload) -> None:
        """From the next forward on, plans for inputs of the last shapes are made from this, as if it had been timed."""
        with self._lock:
            self.placement.use(workload)

    @property
    def busy(self) -> bool:
        """In a forward, of whichever thread."""
        return self._scope.running

    @property
    def whole(self) -> bool:
        """All of it is on the device while it runs: it was attached so, and fitted up to now."""
        return self._parts.whole

    @property
    def placement(self) -> Placement:
        """Of the root, and of the guests that are expected to run."""
        return self._parts.placement

    @property
    def plan(self) -> Plan | None:
        """The one in force."""
        return self.placement.plan

    @property
    def settled(self) -> bool:
        """Whether the plan in force was made from a profile of the last inputs' shapes, and was seen to hold."""
        return self.placement.settled(self.vram_mb)

    def workload(self) -> Workload | None:
        """What was measured for the last inputs' shapes; None while nothing was."""
        return self.placement.workload

    def stats(self) -> dict[str, Any]:
        """See `stats_of`. Never blocks on the device."""
        known = {"name": self.name, "vram_mb": self.vram_mb, "forwards": self.forwards}
        return known | stats_of(self._parts, self.on_demand, self.backend, self.settled)
