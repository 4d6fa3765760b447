"""The holdings: what a module's weights have become, in RAM (the pack) and on the device (the loadout)."""

from __future__ import annotations

import logging

from torch import nn

from .arena import Arena
from .backend import Backend
from .curve import verdict
from .errors import ArenaAllocationError
from .leaf import Leaf
from .loadout import Loadout
from .pack import Pack
from .plan import Plan, make_plan, whole_plan
from .scheduler import MIB, Scheduler

logger = logging.getLogger("async_lowvram")

LEAST_BUDGET_BYTES = 32 * MIB


class Holdings:
    """Made and dropped as a forward needs them. Not thread-safe: the mover locks."""

    def __init__(self, name: str, root: nn.Module, backend: Backend, whole: bool) -> None:
        self._name = name
        self._root = root
        self._backend = backend
        self._whole = whole
        self.pack: Pack | None = None
        self.scheduler: Scheduler | None = None
        self.loadout: Loadout | None = None
        self.planned_mb: float | None = None  # what was asked for when the plan was made
        self.verdict: str | None = None  # of a plan made from measurements: what limits it, and what to do
        self._cap_bytes: int | None = None  # what the device refused is not asked for again

    def ensure_pack(self, order: list[Leaf], leaves: list[Leaf], standing: Leaf) -> tuple[Pack, Scheduler]:
        """The pack, and the scheduler of its plans. Packing moves every tensor of the module to page-locked RAM."""
        if self.pack is None or self.scheduler is None:
            self.pack = Pack(self._name, self._root, order, leaves, standing, self._backend)
            self.scheduler = Scheduler(self._backend, self.pack, learns=not self._whole)
        return self.pack, self.scheduler

    def take(self, vram_mb: float, due: bool) -> Loadout:
        """The loadout with its memory taken; made anew if a plan is due, smaller and smaller while the device refuses.

        Raises:
            ArenaAllocationError: not even the least buffer fits.
        """
        assert self.pack is not None and self.scheduler is not None
        another = self.planned_mb != vram_mb
        if another:
            self._cap_bytes = None
        due = due or another or self.loadout is None
        wanted = 0
        while True:
            try:
                if self.loadout is not None and not due:
                    wanted = self.loadout.arena.bytes
                    self.loadout.ensure()
                    return self.loadout
                wanted = wanted or self._wanted_bytes(vram_mb)
                plan = self._plan(wanted)
                self.loadout = self._lay_out(plan, wanted, self.pack)
                self.scheduler.planned(plan, another)
                self.planned_mb = vram_mb
                told = self.verdict is not None and not another
                # Now, between two forwards: whoever reads statistics wants them at once, and this may take a search.
                measured = self.scheduler.workload()
                self.verdict = verdict(plan, measured) if measured is not None else None
                self._log(plan, logging.DEBUG if told else logging.INFO)
                return self.loadout
            except ArenaAllocationError:
                self.drop_loadout()
                # More than all weights was never asked of the device, whatever the budget.
                wanted = min(wanted, self.pack.bytes) // 2
                if wanted < LEAST_BUDGET_BYTES:
                    raise
                self._cap_bytes, due = wanted, True
                logger.warning(
                    "%s: no room in VRAM for the weight buffer; trying %d MiB. A smaller buffer size avoids this",
                    self._name, wanted >> 20,
                )  # fmt: skip

    def _lay_out(self, plan: Plan, wanted: int, pack: Pack) -> Loadout:
        """The plan's loadout. Raises ArenaAllocationError: the device has no room for the arena; nothing is held."""
        # All of the budget is taken, so that the next plan for it finds its residents in the same memory.
        count = max(pack.fixed_bytes + plan.arena_bytes, min(wanted, pack.bytes))
        before = self.loadout
        if before is not None and before.arena.allocated and before.arena.bytes == count:
            if before.plan.units == plan.units:
                before.plan = plan
                return before
            try:
                return Loadout(plan, pack, self._backend, before.arena, before)
            except BaseException:
                self.drop_loadout()  # its residents may have been moved
                raise
        del before
        self.drop_loadout()
        arena = Arena(count, self._backend.device)
        self._backend.take(arena)
        return Loadout(plan, pack, self._backend, arena)

    def _wanted_bytes(self, vram_mb: float) -> int:
        assert self.pack is not None and self.scheduler is not None
        held = self.loadout.arena.bytes if self.loadout is not None and self.loadout.arena.allocated else 0
        wanted = self.pack.bytes if self._whole else self.scheduler.budget_bytes(vram_mb, held)
        return min(wanted, self._cap_bytes or wanted)

    def _plan(self, budget_bytes: int) -> Plan:
        assert self.scheduler is not None
        workload = self.scheduler.workload_to_plan()
        return whole_plan(workload) if self._whole and self._cap_bytes is None else make_plan(workload, budget_bytes)

    def _log(self, plan: Plan, level: int) -> None:
        """A plan is told for a new budget, and again once it rests on measurements; revisions are for the curious."""
        logger.log(
            level, "%s: %d MiB on the device, %d of them resident, %d MiB streamed in %d units%s",
            self._name, plan.arena_bytes >> 20, plan.resident_bytes >> 20, plan.streamed_bytes >> 20,
            plan.streamed_units, f", {plan.predicted_ms:.0f} ms a forward predicted" if self.verdict else "",
        )  # fmt: skip

    def drop_loadout(self) -> None:
        """Gives the arena back for good."""
        loadout, self.loadout = self.loadout, None
        if loadout is not None:
            loadout.free()

    def drop(self) -> None:
        """The packed tensors are no longer the module's: all is to be made anew."""
        self.drop_loadout()
        self.pack = self.scheduler = None

    @property
    def wanted_bytes(self) -> int:
        """VRAM that the next forward will take for weights, in bytes; 0 while that is not known."""
        if self.loadout is not None:
            return self.loadout.arena.bytes
        return self.pack.bytes if self._whole and self.pack is not None else 0
