"""The mover: ties a module's hooks to the pack, the plan and the pipeline. Made by `attach`.

Its life: the first forward *traces*, every leaf is loaded on the spot and the order recorded. Before the second, the
weights are *packed* into the host store in that order, and a first plan is made from sizes alone. Later forwards are
timed, and the plan is made again from what was measured. A change of the tensors sends it back to packing, a change
of the modules to tracing. A *whole* module is neither traced nor planned: all of it is on the device while it runs.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from .backend import Backend
from .curve import CurvePoint, curve
from .errors import ArenaAllocationError, AsyncMoverError, ConcurrentForwardError
from .hooks import RootEnter, RootLeave, RootLoad, Trap
from .leaf import Leaf, find_leaves
from .loadout import Loadout
from .pack import Pack
from .plan import Plan, make_plan, whole_plan
from .scheduler import MIB, Scheduler, signature_of
from .stats import stats_of
from .visits import StrayLeave, Visits
from .workload import Workload

logger = logging.getLogger("async_lowvram")

LEAST_BUDGET_BYTES = 32 * MIB
RETRACE_AFTER = 2  # forwards with a leaf outside the recorded order, before it is recorded anew; then ever more


class Mover:
    """Streams one module's weights; see `attach`."""

    def __init__(self, root: nn.Module, backend: Backend, vram_mb: float, name: str, whole: bool = False) -> None:
        self.root = root
        self.whole = whole
        self.name = name
        self.backend = backend
        self.vram_mb = vram_mb
        self._lock = threading.RLock()  # verbs against each other and against the two ends of a forward
        self.order: list[Leaf] | None = None  # of execution; None until traced
        self._traced: dict[int, Leaf] = {}
        self.pack: Pack | None = None
        self.scheduler: Scheduler | None = None
        self.loadout: Loadout | None = None
        self._intact = True  # False: some tensor is no longer the packed one
        self._planned_mb: float | None = None  # `vram_mb` when the plan was made
        self._cap_bytes: int | None = None  # what the device refused is not asked for again
        self._depth = 0
        self._frame: FrameType | None = None  # of the outermost forward
        self._thread = 0
        self.visits = Visits(backend.device, self._changed)
        self._regular = True  # no leaf of this forward was loaded on the spot
        self._strange = False  # nor was one outside the recorded order
        self._started = 0.0  # on the CPU's clock
        self._enter_s = 0.0  # CPU time of this forward that went into its traps
        self._entered = 0  # how many those were
        self._strange_forwards = 0
        self._retrace_after = RETRACE_AFTER
        self._release_due = False
        self._handles: list[Any] = []
        self._stray_handles: list[Any] = []
        self.forwards = 0
        self._leaves: list[Leaf] = []
        self._find_leaves()
        self._handles += [
            root.register_forward_pre_hook(RootEnter(self), prepend=True, with_kwargs=True),
            root.register_forward_hook(RootLeave(self), always_call=True),
            root._register_load_state_dict_pre_hook(RootLoad(self)),
        ]

    def _find_leaves(self) -> None:
        """Looks at the modules anew. The order is kept if the leaves are still the same modules."""
        known = {id(leaf.module) for leaf in self._leaves}
        leaves, self._standing = find_leaves(self.root)
        for leaf in self._leaves:
            leaf.module._forward_pre_hooks.pop(leaf.key, None)
        self._leaves = leaves
        for leaf in leaves:
            leaf.trap = Trap(self, leaf)
            leaf.key = leaf.module.register_forward_pre_hook(leaf.trap, prepend=True).id
        if self.whole:
            self.order = list(leaves)
        elif self.order is not None:
            now = {id(leaf.module): leaf for leaf in leaves}
            self.order = [now[id(leaf.module)] for leaf in self.order] if known == set(now) else None

    # A forward, from its first hook to its last

    def begin(self, args: tuple, kwargs: dict, frame: FrameType | None) -> None:
        """A forward of the root begins, in ``frame``. Weights are on the device as they are needed, until `finish`.

        Raises:
            ConcurrentForwardError: another thread is in a forward.
            ArenaAllocationError: the device has no room even for the least buffer. Nothing is bound then.
        """
        if self._depth and self._running():
            if self._thread != threading.get_ident():
                raise ConcurrentForwardError(
                    f"{self.name}: a second thread began a forward while one was running; its weights serve one at a "
                    "time, so run them one after the other"
                )
            self._depth += 1
            return
        with self._lock:
            self._recover()
            self._depth, self._thread, self._frame = 1, threading.get_ident(), frame
            try:
                self._prepare(signature_of(args, kwargs))
            except BaseException:
                self._unwind(completed=False)
                raise

    @property
    def busy(self) -> bool:
        """In a forward, of whichever thread."""
        return bool(self._depth) and self._running()

    @property
    def wanted_bytes(self) -> int:
        """VRAM that the next forward will take for weights, in bytes; 0 while that is not known."""
        if self.loadout is not None:
            return self.loadout.arena.bytes
        return self.pack.bytes if self.whole and self.pack is not None else 0

    def _running(self) -> bool:
        """Whether the frame of the forward that began last still runs: one cut off by a BaseException never says so."""
        try:
            if self._frame is not None:
                self._frame.clear()
        except RuntimeError:
            return True
        return False

    def _recover(self) -> None:
        """Cleans up after a forward that never came to `finish`, and removes hooks that could not remove themselves."""
        if self._depth:
            logger.info("%s: the last forward was cut off; nothing to do, its weights are back in RAM", self.name)
            self._unwind(completed=False)
        if self._stray_handles:
            self.visits.end()
            for handle in self._stray_handles:
                handle.remove()
            self._stray_handles = []

    def _prepare(self, signature: tuple) -> None:
        stream_changed = self.backend.enter()
        self._regular, self._strange = True, False
        self._enter_s, self._entered = 0.0, 0
        if self.pack is not None and not (self._intact and self.pack.masters.in_place()):
            self._unpack()
        if self.order is None:
            self._traced = {}
            self.visits.stand(self._standing)
            return
        self._ensure_pack()
        assert self.pack is not None and self.scheduler is not None
        due = self.scheduler.begin(signature) and not self.whole
        loadout = self._take_loadout(due or self.loadout is None or self._planned_mb != self.vram_mb)
        for leaf in self.pack.masters.edited():
            loadout.refresh(leaf)
        self.scheduler.start(loadout.pipeline, loadout.plan)
        self._started = time.perf_counter()
        loadout.pipeline.begin(stream_changed, self.whole)

    def _ensure_pack(self) -> None:
        if self.pack is None and self.order is not None:
            self.pack = Pack(self.name, self.root, self.order, self._leaves, self._standing, self.backend)
            self.scheduler = Scheduler(self.backend, self.pack)

    def trapped(self, leaf: Leaf, args: tuple) -> None:
        """A leaf that is not bound is about to run."""
        if self._depth == 0:
            if not self._belongs_on_cpu(args):
                self._stray(leaf)
            return
        started = time.perf_counter()
        if torch.autograd._profiler_enabled():
            with record_function("async_lowvram::enter"):
                self._serve(leaf)
        else:
            self._serve(leaf)
        self._enter_s += time.perf_counter() - started
        self._entered += 1

    def _serve(self, leaf: Leaf) -> None:
        self.visits.end()
        if self.loadout is not None and self.loadout.enter(leaf):
            return
        self._regular = False
        if self.order is None:
            self._traced.setdefault(id(leaf), leaf)
        elif leaf.index < 0:
            self._strange = True
        self.visits.begin(leaf)

    def _belongs_on_cpu(self, args: tuple) -> bool:
        """Outside a forward the weights are CPU tensors; who has seen that, and brings CPU tensors, computes there."""
        devices = {value.device.type for value in args if isinstance(value, torch.Tensor)}
        return devices == {"cpu"} and self.backend.device.type != "cpu"

    def _stray(self, leaf: Leaf) -> None:
        """A leaf runs outside a forward of the root: it is loaded for this one call."""
        self._recover()
        self.backend.enter()
        self.visits.begin(leaf)
        # The hook cannot remove itself: after an exception torch iterates over the very dictionary.
        self._stray_handles.append(leaf.module.register_forward_hook(StrayLeave(self), always_call=True))

    def end_stray(self) -> None:
        """A leaf that ran outside a forward of the root is done."""
        if self._depth == 0:
            self.visits.end()

    def _changed(self, leaf: Leaf, intact: bool) -> None:
        self._intact &= intact
        if self.loadout is not None:
            self.loadout.refresh(leaf)

    def finish(self, completed: bool) -> None:
        """The root's forward is over; by an exception, if not ``completed``."""
        if self._depth != 1:
            self._depth = max(0, self._depth - 1)
            return
        with self._lock:
            if completed and self.order is None and self._traced:
                self.order = list(self._traced.values())
            self._unwind(completed)
            self.forwards += 1
            if completed and self._strange:
                self._count_strange()
            if self._release_due:
                self.release()

    def _count_strange(self) -> None:
        self._strange_forwards += 1
        if self._strange_forwards >= self._retrace_after:
            logger.info("%s: forwards run other layers than the first did; recording the order anew", self.name)
            self._strange_forwards = 0
            self._retrace_after *= 4
            self._unpack()
            self.order = None

    def _unwind(self, completed: bool) -> None:
        """Nothing stays bound to the device."""
        self._depth, self._frame = 0, None
        self.visits.end()
        self.visits.sit()
        if self.loadout is not None and self.scheduler is not None:
            self.loadout.pipeline.finish()
            self._intact &= self.loadout.pipeline.intact
            host_s = time.perf_counter() - self._started
            regular = completed and self._regular
            self.scheduler.stop(
                self.loadout.pipeline, self.loadout.plan, regular, host_s, self._enter_s, self._entered
            )

    @contextmanager
    def running(self, *shapes: torch.Tensor) -> Iterator[None]:
        """A forward of a module that is not entered by calling it. Nests.

        Args:
            shapes: what the forward is called with, to tell forwards of different sizes apart.
        """
        self.begin(shapes, {}, sys._getframe(2))  # the caller's; one more is contextlib's
        completed = False
        try:
            yield
            completed = True
        finally:
            self.finish(completed)

    # Planning

    def _unpack(self) -> None:
        """The module's tensors are no longer the packed ones: all but the order is made anew."""
        self._drop_loadout()
        self.pack = self.scheduler = None
        self._intact = True
        self._find_leaves()

    def _take_loadout(self, due: bool) -> Loadout:
        """The plan in force with its arena taken; a new plan if one is due, smaller ones while the device refuses."""
        assert self.pack is not None and self.scheduler is not None
        if self._planned_mb != self.vram_mb:
            self._cap_bytes = None
        wanted = 0
        while True:
            try:
                if self.loadout is not None and not due:
                    self.loadout.ensure()
                    return self.loadout
                if not wanted:
                    held = self._drop_loadout()
                    wanted = self.pack.bytes if self.whole else self.scheduler.budget_bytes(self.vram_mb, held)
                    wanted = min(wanted, self._cap_bytes or wanted)
                workload = self.scheduler.workload_to_plan()
                as_one = self.whole and self._cap_bytes is None
                plan = whole_plan(workload) if as_one else make_plan(workload, wanted)
                self.loadout = Loadout(plan, self.pack, self.backend)
                self.scheduler.planned(plan, another_budget=self._planned_mb != self.vram_mb)
                self._planned_mb = self.vram_mb
                self._log_plan(plan)
                return self.loadout
            except ArenaAllocationError:
                wanted = (wanted or self._drop_loadout()) // 2
                if wanted < LEAST_BUDGET_BYTES:
                    raise
                self._cap_bytes, due = wanted, True
                logger.warning(
                    "%s: no room in VRAM for the weight buffer; trying %d MiB. A smaller buffer size avoids this",
                    self.name, wanted >> 20,
                )  # fmt: skip

    def _log_plan(self, plan: Plan) -> None:
        measured = self.scheduler is not None and self.scheduler.workload() is not None
        logger.info(
            "%s: %d MiB on the device, %d of them resident, %d MiB streamed in %d units%s",
            self.name, plan.arena_bytes >> 20, plan.resident_bytes >> 20, plan.streamed_bytes >> 20,
            plan.streamed_units, f", {plan.predicted_ms:.0f} ms a forward predicted" if measured else "",
        )  # fmt: skip

    def _drop_loadout(self) -> int:
        """Gives the arena back for good. Returns the bytes of VRAM that were held."""
        loadout, self.loadout = self.loadout, None
        if loadout is None:
            return 0
        held = loadout.arena.bytes if loadout.arena.allocated else 0
        loadout.free()
        return held

    # Verbs, from any thread

    def release(self) -> None:
        """Gives back all VRAM; the next forward takes it again. Does nothing inside a forward of the same thread;
        if another thread is in one, happens at its end."""
        with self._lock:
            if self._depth and self._running():
                self._release_due = self._thread != threading.get_ident()
                return
            self._release_due = False
            self._recover()
            if self.loadout is not None:
                self.loadout.free()

    def prepare(self) -> None:
        """Packs a whole module now, not in its first forward. Nothing moves to the device."""
        with self._lock:
            if self.whole and not self.busy:
                self._recover()
                self._ensure_pack()

    def prefetch(self) -> None:
        """Starts uploading the first units now, if a plan is there. Takes the arena's memory, if there is room."""
        with self._lock:
            if self._depth or self.pack is None or not (self._intact and self.pack.masters.in_place()):
                return
            try:
                self.backend.enter()
                if self.whole and self.loadout is None:
                    self._take_loadout(due=True)
                if self.loadout is None:
                    return
                self.loadout.ensure()
            except ArenaAllocationError:
                return
            self.loadout.pipeline.pump()

    def refresh(self) -> None:
        """All weights were written to behind torch's back (through ``.data``): what is on the device is stale."""
        with self._lock:
            if self.loadout is not None and not (self._depth and self._running()):
                self.loadout.pipeline.forget()

    def synchronize(self) -> None:
        """Blocks until all copies in flight are over. To be called before weights in RAM are written to."""
        self.backend.synchronize()

    def close(self) -> None:
        """Undoes everything; see `detach`. Raises ConcurrentForwardError inside a forward."""
        with self._lock:
            if self._depth and self._running():
                raise ConcurrentForwardError(f"{self.name}: detach was called inside a forward; call it afterwards")
            self._recover()
            self._drop_loadout()
            self.backend.close()
            for leaf in self._leaves:
                leaf.module._forward_pre_hooks.pop(leaf.key, None)
            for handle in self._handles:
                handle.remove()
            if self.pack is not None:
                self.pack.store.unpin()
            self.pack = self.scheduler = None

    @property
    def settled(self) -> bool:
        """Whether the plan in force was made from a profile of the last inputs' shapes."""
        return self.scheduler is not None and self.scheduler.settled and self._planned_mb == self.vram_mb

    def workload(self) -> Workload | None:
        """What was measured for the last inputs' shapes; None while nothing was."""
        return self.scheduler.workload() if self.scheduler is not None else None

    def curve(self) -> tuple[CurvePoint, ...]:
        """Predicted speed against budget; empty while nothing was measured."""
        workload = self.workload()
        return curve(workload) if workload is not None else ()

    def stats(self) -> dict[str, Any]:
        """See `stats.stats_of`. Never blocks on the device."""
        return stats_of(self)


def mover_of(module: nn.Module) -> Mover | None:
    """The mover attached to exactly this module, if there is one."""
    hooks = module._forward_pre_hooks.values()
    return next((hook.mover for hook in hooks if isinstance(hook, RootEnter)), None)


def refuse_nested(module: nn.Module) -> None:
    """Raises AsyncMoverError if a module below this one has a mover of its own."""
    for name, child in module.named_modules():
        if child is not module and mover_of(child) is not None:
            raise AsyncMoverError(f"{name} streams already; detach it before a module that contains it is attached")
