"""The placement: where a module's weights are now, packed in RAM and laid out on the device, and by which plan."""

from __future__ import annotations

import logging
from math import inf

from torch import nn

from lib_async_mover.device.backend import Backend
from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.plan.budget import verdict
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.planner import make_plan, whole_plan
from lib_async_mover.plan.workload import Workload
from lib_async_mover.run.buffer import Buffer
from lib_async_mover.run.forward_scope import ForwardTimes, Signature
from lib_async_mover.run.layout import Layout
from lib_async_mover.run.order import Order
from lib_async_mover.run.schedule import Schedule

logger = logging.getLogger("async_lowvram")


class Placement:
    """Made and dropped as a forward needs it. Not thread-safe: the mover locks."""

    def __init__(self, name: str, root: nn.Module, backend: Backend, whole: bool) -> None:
        self._name = name
        self._root = root
        self._backend = backend
        self.whole = whole
        self.buffer = Buffer(name, backend)
        self.store: HostStore | None = None  # the weights in RAM, once they are packed
        self.schedule: Schedule | None = None  # of that store
        self.layout: Layout | None = None  # what of it is on the device
        self._plan_due: bool | None = None  # for the coming forward; None while that is not decided
        self.verdict: str | None = None  # of a plan made from measurements: what limits it, and what to do

    def pack(self, order: Order) -> None:
        """The weights are in page-locked RAM afterwards, in the known order."""
        if self.store is None or self.schedule is None:
            assert order.known is not None
            leaves = order.known, order.others(), order.standing
            self.store = HostStore(self._root, *leaves, self._backend.page_lock)
            self.schedule = Schedule(self._backend, self.store, measures=not self.whole)
            self._plan_due = None
            logger.info(
                "%s: %d MiB of weights packed in %.1f s, %d MiB of page-locked RAM",
                self._name, self.store.bytes >> 20, self.store.seconds, self.store.pinned_bytes >> 20,
            )  # fmt: skip

    def still_packed(self, vram_mb: float, signature: Signature) -> bool:
        """Whether the module's tensors are the packed ones, as far as the pipeline does not look for itself."""
        store, schedule = self.store, self.schedule
        if store is None or schedule is None:
            return True
        # Decided once: timings that arrive later must not make a layout of tensors that were not looked at.
        self._plan_due = self._is_plan_due(schedule, vram_mb, signature)
        new_layout = self._plan_due or self.layout is None
        ahead = self.whole or bool(store.standing.members)  # bound before a leaf is called
        return store.still_packed() and (store.in_place() if new_layout or ahead else True)

    def _is_plan_due(self, schedule: Schedule, vram_mb: float, signature: Signature) -> bool:
        buffer, held_bytes = self.buffer, self.held_bytes
        buffer.begin(signature, held_bytes)
        due = schedule.plan_due(signature) or buffer.asked_mb != vram_mb or buffer.cap_changed
        if self.layout is not None and held_bytes and not (vram_mb or self.whole):
            due |= buffer.shrink_due(self.layout.plan.budget_bytes, held_bytes, schedule.workload_to_plan)
        return due

    def lay_out(self, vram_mb: float, signature: Signature) -> None:
        """There is a layout with its memory taken afterwards; made anew if a plan is due for inputs of that signature,
        smaller and smaller while the device refuses. Raises ArenaAllocationError if not even the least buffer fits.
        """
        store, schedule = self.store, self.schedule
        assert store is not None and schedule is not None
        another_size = self.buffer.asked_mb != vram_mb
        due = self._is_plan_due(schedule, vram_mb, signature) if self._plan_due is None else self._plan_due
        while True:
            kept = None if due else self.layout
            plan = kept.plan if kept is not None else self._plan(vram_mb, schedule)
            try:
                if self.layout is None or self.layout.plan.units != plan.units:
                    self.free()
                    self.layout = Layout(plan, store, self._backend, self.tensors_replaced)
                self.layout.allocate()
                break
            except ArenaAllocationError:
                self.free()
                if not self.buffer.refused(plan.budget_bytes, schedule.workload_to_plan()):
                    raise
        if kept is None:
            self.layout.plan = plan
            self._tell(plan, schedule, another_size)

    def _plan(self, vram_mb: float, schedule: Schedule) -> Plan:
        load = schedule.workload_to_plan()
        budget_bytes = self.buffer.bytes(vram_mb, load, schedule.workload is not None, self.held_bytes)
        return whole_plan(load) if self.whole and self.buffer.cap == inf else make_plan(load, budget_bytes)

    def _tell(self, plan: Plan, schedule: Schedule, another_size: bool) -> None:
        """A plan is told for a new size, and again once it rests on measurements; corrections are for the curious."""
        schedule.planned(plan, another_size)
        told = self.verdict is not None and not another_size
        # Now, between two forwards: whoever reads statistics wants it at once, and this may take a search.
        self.verdict = verdict(plan, schedule.workload) if schedule.workload is not None else None
        logger.log(
            logging.DEBUG if told else logging.INFO,
            "%s: %d MiB on the device, %d of them resident, %d MiB streamed in %d units%s",
            self._name, plan.arena_bytes >> 20, plan.resident_bytes >> 20, plan.streamed_bytes >> 20,
            plan.streamed_units, f", {plan.predicted_ms:.0f} ms a forward predicted" if self.verdict else "",
        )  # fmt: skip

    def tensors_replaced(self) -> None:
        """Some tensor is no longer the packed one."""
        if self.store is not None:
            self.store.intact = False

    def start_forward(self, times: ForwardTimes, stream_changed: bool) -> None:
        """The forward runs, on another stream than the last if ``stream_changed``."""
        assert self.layout is not None and self.schedule is not None
        self.schedule.start_forward(self.layout.pipeline, times)
        self.layout.pipeline.start_forward(stream_changed, self.whole)

    def end_forward(self, times: ForwardTimes, completed: bool) -> None:
        """The forward is over; by an exception, if not ``completed``. Nothing stays bound."""
        if self.layout is not None and self.schedule is not None:
            self.layout.pipeline.end_forward()
            self.schedule.end_forward(self.layout.pipeline, self.layout.plan, times, completed)

    @property
    def plan(self) -> Plan | None:
        """The one in force."""
        return self.layout.plan if self.layout is not None else None

    @property
    def workload(self) -> Workload | None:
        """Measured, for inputs of the last shapes."""
        return self.schedule.workload if self.schedule is not None else None

    def settled(self, vram_mb: float) -> bool:
        """Whether the plan in force is for that size, and lasts as its profile says."""
        return self.schedule is not None and self.schedule.settled and self.buffer.asked_mb == vram_mb

    def use(self, workload: Workload) -> None:
        """Plans for inputs of the last shapes are made from this."""
        if self.schedule is not None:
            self.schedule.use(workload)

    def invalidate_all(self) -> None:
        """What is on the device is stale."""
        if self.layout is not None:
            self.layout.pipeline.invalidate_all()

    @property
    def held_bytes(self) -> int:
        """VRAM that is taken between forwards."""
        return self.layout.held_bytes if self.layout is not None else 0

    def release(self) -> None:
        """Gives the arena's memory back until the next forward."""
        if self.layout is not None and self.schedule is not None:
            self.schedule.read_timings()
            self.schedule.clock.end_run()
            if not self.layout.free():
                self.layout = None

    def give_way(self) -> bool:
        """Memory ran out in the last forward: the arena is given back, and half the buffer serves inputs of that size
        from now on. False, and nothing is done, if it is the least already, or there is none.
        """
        layout, schedule = self.layout, self.schedule
        if layout is None or schedule is None:
            return False
        if not self.buffer.halve(layout.plan.budget_bytes, schedule.workload_to_plan()):
            return False
        self.release()
        self._backend.empty_cache()  # so that the smaller one and activations get memory in one piece
        return True

    def free(self) -> None:
        """Gives the layout back for good."""
        layout, self.layout = self.layout, None
        if layout is not None:
            layout.free()

    def unpack(self, unpin: bool = False) -> None:
        """The packed tensors are no longer the module's: all is to be made anew. Unlocks their pages if ``unpin``."""
        self.free()
        self._backend.synchronize()  # a copy in flight reads from RAM that goes with the store
        if unpin and self.store is not None:
            self.store.unpin()
        self.store = self.schedule = None
