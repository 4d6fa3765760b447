"""The mover: ties a module's hooks to the host store, the schedule and the layout. Made by `attach`.

Its life: the first forward *traces*, every leaf is loaded on demand and the order recorded. Before the second, the
weights are *packed* into the host store in that order, and a first plan is made from sizes alone. Later forwards are
timed, and the plan is made again from what was measured. A change of the tensors sends it back to packing, a change
of the leaves to tracing. A *whole* module is neither traced nor timed: all of it is on the device while it runs.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from lib_async_mover.device.backend import Backend
from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.workload import Workload
from lib_async_mover.run.forward_scope import ForwardScope, ForwardTimes, Signature, call_frame, signature_of
from lib_async_mover.run.hooks import GuestHook, Hook
from lib_async_mover.run.on_demand import OnDemand
from lib_async_mover.run.part import Part
from lib_async_mover.run.parts import Parts
from lib_async_mover.run.placement import Placement
from lib_async_mover.run.reads import ReadRecorder
from lib_async_mover.run.refusals import refuse_gradients, refuse_recording, refuse_thread
from lib_async_mover.run.stats import stats_of

logger = logging.getLogger("async_lowvram")


class Mover:
    """Streams one module's weights; see `attach`."""

    def __init__(self, root: nn.Module, backend: Backend, vram_mb: float, name: str, whole: bool = False) -> None:
        self.root = root
        self.whole = whole
        self.name = name
        self.backend = backend
        self.vram_mb = vram_mb  # as asked for; 0 is automatic
        self.forwards = 0
        self._parts = Parts(name, root, backend, whole, self._load_hook_for, self._guest_gone)
        self.on_demand = OnDemand(backend.device, self._parts.tensors_replaced)
        self._lock = threading.RLock()  # verbs against each other and against the two ends of a forward
        self._scope = ForwardScope()
        self._times = ForwardTimes()
        self._signature: Signature = ()
        self._stream_changed = False  # since the last forward: residents are to be waited for again
        self._release_due = self._begun = False  # begun: weights are on the device in this forward
        self._reads: ReadRecorder | None = None  # of a forward that is traced
        self._alive: list[nn.Module] = []  # guests are kept while a forward is running
        self._handles = [
            root.register_forward_pre_hook(Hook(self._enter_root), prepend=True, with_kwargs=True),
            root.register_forward_hook(Hook(self._leave_root), always_call=True),
        ]

    def _enter_root(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        self.enter_forward(args, kwargs, call_frame())

    def enter_forward(self, args: tuple, kwargs: dict, frame: FrameType) -> None:
        """A forward of the root begins, in ``frame``. Weights are on the device as needed, until `leave_forward`.

        Raises:
            ConcurrentForwardError: another thread is in a forward.
            RecordingError: it is being recorded, not run.
            ArenaAllocationError: the device has no room even for the least buffer. Nothing is bound then.
        """
        if self._scope.running:
            if not self._scope.mine:
                refuse_thread(self.name)
            self._scope.push(frame)
            return
        refuse_recording(self.name)
        with self._lock:
            self._recover()
            self._scope.push(frame)
            self._signature, self._times = signature_of(args, kwargs), ForwardTimes()
            self.on_demand.forward_bytes = 0
            try:
                self._start()
            except BaseException:
                self._unwind(completed=False)
                raise

    def _start(self) -> None:
        parts = self._parts
        self._alive = parts.guests
        parts.drop_gone()
        parts.choose()
        parts.unpack_changed(self.vram_mb, self._signature)
        if parts.order.of(parts.set) is None:
            parts.order.start_trace()
            self._reads = ReadRecorder(parts.leaves, [part.standing for part in parts.all], self.on_demand.keep)
            parts.keep_standing(self.on_demand)
            self._reads.start()
        elif self.whole or self.placement.held_bytes:  # else perhaps no leaf runs: others compute in the root's place
            self._bring_weights()
        else:
            parts.keep_standing(self.on_demand)

    def _recover(self) -> None:
        """Cleans up after a forward that never came to its end, and removes hooks that could not remove themselves."""
        if self._scope.open:
            logger.info("%s: the last forward was cut off; nothing to do, its weights are back in RAM", self.name)
            self._unwind(completed=False)
        self.on_demand.end_calls()

    def _bring_weights(self, by_leaf: bool = False) -> None:
        stream_changed = self.backend.use_current_stream() or self._stream_changed
        self._stream_changed = False
        order = self._parts.order.of(self._parts.set)
        assert order is not None
        self.placement.pack(order)
        self.placement.lay_out(self.vram_mb, self._signature)
        self._begun, self._times = True, ForwardTimes(by_leaf)
        self.placement.start_forward(self._times, stream_changed)

    def _load_hook_for(self, part: Part, leaf: Leaf) -> Hook:
        return (GuestHook if part.is_guest else Hook)(self._load, part, leaf)

    def _load(self, part: Part, leaf: Leaf, module: nn.Module, args: tuple) -> None:
        """A leaf that is not bound is about to run."""
        if not self._scope.open:
            devices = {value.device.type for value in args if isinstance(value, torch.Tensor)}
            if devices == {"cpu"} and self.backend.device.type != "cpu":
                return  # who has seen that its weights are CPU tensors there, and brings such, computes there
            if not self.on_demand.part_running:
                self._recover()
            self._stream_changed |= self.backend.use_current_stream()
            self.on_demand.load_for_call(leaf, module, leaf is part.standing)
            return
        if self._reads is None and not self._begun:
            self.on_demand.unload_all()
            self._bring_weights(by_leaf=True)
        times, started_s, parts = self._times, time.perf_counter(), self._parts
        layout = self.placement.layout
        self.on_demand.unload()
        if parts.note_run(part) and self._reads is None:
            if part in parts.set and layout is not None:
                layout.bind_residents(part.standing)
            else:
                self.on_demand.keep(part.standing)
        if leaf is part.standing:  # of a guest, which tells by it that it runs
            return
        if self._reads is not None:
            parts.order.trace(leaf)
            self._reads.load(leaf, self.on_demand.load)
        elif layout is None or not layout.fetch(leaf):
            times.on_demand = True
            times.unexpected |= part in parts.set and parts.order.lacks(parts.set, leaf)
            self.on_demand.load(leaf)
        times.fetch_s += time.perf_counter() - started_s
        times.fetches += 1

    def _leave_root(self, module: nn.Module, args: tuple, result: Any) -> None:  # after exceptions too
        self.leave_forward(call_frame(), result is not None or sys.exc_info()[0] is None, result)

    def leave_forward(self, frame: FrameType, completed: bool, result: Any = None) -> None:
        """The forward that began in ``frame`` is over; by an exception, if not ``completed``."""
        if not self._scope.pop(frame):
            return
        with self._lock:
            reads, times, begun = self._reads, self._times, self._begun
            streams = self.plan is not None and self.plan.streamed_units > 0
            self._unwind(completed)
            self.forwards += 1
            if completed and reads is not None:
                reads.note_held(result)
                self._parts.end_trace(reads.found.values())
            elif completed:
                self._parts.end_forward(times.unexpected)
            if completed and begun and not times.fetches and streams:
                self.placement.release()  # no leaf ran
            if streams:
                refuse_gradients(self.name, result)
            if self._release_due:
                self.release()

    def _unwind(self, completed: bool) -> None:
        """Nothing stays bound to the device."""
        self._scope.close()
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.stop()
        self.on_demand.unload_all()
        if self._begun:
            self._begun = False
            self.placement.end_forward(self._times, completed)
        self._alive = []

    def release(self) -> None:
        """Gives back all VRAM until the next forward; at the end of one that another thread is in, never within one."""
        with self._lock:
            if self._scope.running:
                self._release_due = not self._scope.mine
                return
            self._release_due = False
            self._recover()
            self.placement.release()

    def pack(self) -> None:
        """Packs a whole module now, not in its first forward. Nothing moves to the device."""
        with self._lock:
            order = self._parts.order.of(self._parts.set)
            if self.whole and order is not None and not self.busy:
                self._recover()
                self.placement.pack(order)

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

    def _guest_gone(self) -> None:
        """Called by the garbage collector, wherever it runs: at once if nothing else is going on, else later."""
        if not self._lock._is_owned() and self._lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if not self.busy:
                    self._parts.drop_gone()
            finally:
                self._lock.release()

    def use(self, workload: Workload) -> None:
        """From the next forward on, plans for inputs of the last shapes are made from this, as if it had been timed."""
        with self._lock:
            self.placement.use(workload)

    @property
    def placement(self) -> Placement:
        """Of the root, and of the guests that are expected to run."""
        return self._parts.placement

    @property
    def busy(self) -> bool:
        """In a forward, of whichever thread."""
        return self._scope.running

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
        """See `stats.stats_of`. Never blocks on the device."""
        known = {"name": self.name, "vram_mb": self.vram_mb, "forwards": self.forwards}
        return known | stats_of(self.placement, self._parts.guest_parts, self.on_demand, self.backend, self.settled)
