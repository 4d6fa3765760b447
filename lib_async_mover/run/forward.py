"""A forward: what happens when it begins, when a leaf is about to run, and when it is over.

The first one *traces*: every leaf is loaded on demand, and the order recorded. Before the second, the weights are
*packed* into the host store in that order, and a first plan is made from sizes alone. Later forwards are timed, and the
plan is made again from what was measured. A change of the tensors sends it back to packing, a change of the leaves to
tracing. A *whole* module is neither traced nor timed: all of it is on the device while it runs, for as long as it fits
there.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
from torch import nn

from lib_async_mover.device.backend import Backend
from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.run.forward_scope import ForwardScope, ForwardTimes, Signature, call_frame, signature_of
from lib_async_mover.run.hooks import GuestHook, Hook
from lib_async_mover.run.on_demand import OnDemand
from lib_async_mover.run.part import Part
from lib_async_mover.run.parts import Parts
from lib_async_mover.run.reads import ReadRecorder
from lib_async_mover.run.refusals import refuse_gradients, refuse_recording, refuse_thread

logger = logging.getLogger("async_lowvram")


class ForwardHooks:
    """What a mover does at the hooks of its modules; the verbs are `Mover`'s."""

    def __init__(self, root: nn.Module, backend: Backend, vram_mb: float, name: str, whole: bool) -> None:
        self.root = root
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

    def _load_hook_for(self, part: Part, leaf: Leaf) -> Hook:
        return (GuestHook if part.is_guest else Hook)(self._load, part, leaf)

    def _guest_gone(self) -> None:
        """Called by the garbage collector, wherever it runs: at once if nothing else is going on, else later."""
        if not self._lock._is_owned() and self._lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if not self._scope.running:
                    self._parts.drop_gone()
            finally:
                self._lock.release()

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
        if parts.whole and not parts.fits():
            parts.stream()
        if parts.order.of(parts.set) is None:
            parts.order.start_trace()
            self._reads = ReadRecorder(parts.leaves, [part.standing for part in parts.all], self.on_demand.keep)
            parts.keep_standing(self.on_demand)
            self._reads.start()
        elif parts.whole or parts.placement.held_bytes:  # else perhaps no leaf runs: others compute in the root's place
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
        order, placement = self._parts.order.of(self._parts.set), self._parts.placement
        assert order is not None
        placement.pack(order)
        placement.lay_out(self.vram_mb, self._signature)
        self._begun, self._times = True, ForwardTimes(by_leaf)
        placement.start_forward(self._times, stream_changed)

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
        layout = parts.placement.layout
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
            plan = self._parts.placement.plan
            streams = plan is not None and plan.streamed_units > 0
            self._unwind(completed)
            self.forwards += 1
            if completed and reads is not None:
                reads.note_held(result)
                self._parts.end_trace(reads.found.values())
            elif completed:
                self._parts.end_forward(times.unexpected)
            if completed and begun and not times.fetches and streams:
                self._parts.placement.release()  # no leaf ran
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
            self._parts.placement.end_forward(self._times, completed)
        self._alive = []

    def release(self) -> None:
        """Gives back all VRAM until the next forward; at the end of one that another thread is in, never within one."""
        with self._lock:
            if self._scope.running:
                self._release_due = not self._scope.mine
                return
            self._release_due = False
            self._recover()
            self._parts.placement.release()
