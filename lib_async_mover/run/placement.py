"""The placement: where weights that run together are now, packed in RAM and laid out on the device, by which plan."""

from __future__ import annotations

import logging

from lib_async_mover.device.backend import Backend
from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.memory.joint_store import JointStore
from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.planner import make_plan, whole_plan
from lib_async_mover.plan.workload import Workload
from lib_async_mover.run.buffer import Buffer
from lib_async_mover.run.forward_scope import ForwardTimes, Signature
from lib_async_mover.run.layout import Layout
from lib_async_mover.run.order import PartSet
from lib_async_mover.run.part import Part
from lib_async_mover.run.schedule import GUESSED_GBPS, Schedule

logger = logging.getLogger("async_lowvram")


class Placement:
    """Made and dropped as a forward needs it. Not thread-safe: the mover locks."""

    def __init__(
        self, name: str, parts: PartSet, backend: Backend, whole: bool, before: Placement | None = None
    ) -> None:
        """Of the parts together, the root first. What ``before`` knows of the bus is not measured again."""
        self._name = name
        self._parts = parts
        self._gbps = GUESSED_GBPS if before is None or before.schedule is None else before.schedule.gbps
        self._backend = backend
        self._whole = whole
        self.buffer = Buffer(name, backend)
        self.store: JointStore | None = None  # the weights in RAM, once they are packed
        self.schedule: Schedule | None = None  # of that store
        self.layout: Layout | None = None  # what of it is on the device
        self._plan_due: bool | None = None  # for the coming forward; None while that is not decided
        self._told = False  # of a plan that rests on measurements

    def pack(self, order: list[Leaf]) -> None:
        """The weights are in page-locked RAM afterwards. ``order`` is that of a forward."""
        if self.store is None or self.schedule is None:
            self.store = JointStore(order, [part.pack(order, self._backend.page_lock) for part in self._parts])
            self.schedule = Schedule(self._backend, self.store, not self._whole, self._gbps)
            self._plan_due = None

    def changed(self, vram_mb: float, signature: Signature) -> list[Part]:
        """Parts whose tensors are no longer the packed ones, as far as the pipeline does not look for itself."""
        new_layout = True
        if self.schedule is not None:
            # Decided once: timings that arrive later must not make a layout of tensors that were not looked at.
            self._plan_due = self.schedule.plan_due(signature) or self.buffer.asked_mb != vram_mb
            new_layout = self._plan_due or self.layout is None
        return [part for part in self._parts if not part.still_packed(new_layout or self._whole)]

    def lay_out(self, vram_mb: float, signature: Signature) -> None:
        """There is a layout with its memory taken afterwards; made anew if a plan is due for inputs of that signature,
        smaller and smaller while the device refuses. Raises ArenaAllocationError if not even the least buffer fits.
        """
        store, schedule = self.store, self.schedule
        assert store is not None and schedule is not None
        another_size = self.buffer.asked_mb != vram_mb
        due = self._plan_due if self._plan_due is not None else schedule.plan_due(signature) or another_size
        while True:
            kept = None if due else self.layout
            plan = kept.plan if kept is not None else self._plan(vram_mb, schedule)
            try:
                if self.layout is None or self.layout.plan.units != plan.units:
                    self.free()
                    self.layout = Layout(plan, store, self._backend)
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
        return whole_plan(load) if self._whole and self.buffer.cap_bytes is None else make_plan(load, budget_bytes)

    def _tell(self, plan: Plan, schedule: Schedule, another_size: bool) -> None:
        """A plan is told for a new size, and again once it rests on measurements; corrections are for the curious."""
        schedule.planned(plan, another_size)
        told, self._told = self._told and not another_size, schedule.workload is not None
        logger.log(
            logging.DEBUG if told else logging.INFO,
            "%s: %d MiB on the device, %d of them resident, %d MiB streamed in %d units%s",
            self._name, plan.arena_bytes >> 20, plan.resident_bytes >> 20, plan.streamed_bytes >> 20,
            plan.streamed_units, f", {plan.predicted_ms:.0f} ms a forward predicted" if self._told else "",
        )  # fmt: skip

    def start_forward(self, times: ForwardTimes, stream_changed: bool) -> None:
        """The forward runs, on another stream than the last if ``stream_changed``."""
        assert self.layout is not None and self.schedule is not None
        self.schedule.start_forward(self.layout.pipeline, times)
        self.layout.pipeline.start_forward(stream_changed, self._whole)

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

    def free(self) -> None:
        """Gives the layout back for good."""
        layout, self.layout = self.layout, None
        if layout is not None:
            layout.free()

    def unpack(self) -> None:
        """The packed tensors of a part are no longer its own: all is to be made anew."""
        self.free()
        self.store = self.schedule = None
