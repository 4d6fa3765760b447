"""The mover: ties a module's hooks to the pack, the plan and the pipeline. Made by `attach`.

Its life: the first forward *traces*, every leaf is loaded on the spot and the order recorded. Before the second, the
weights are *packed* into the host store in that order, and a first plan is made from sizes alone. Later forwards are
timed, and the plan is made again from what was measured. A change of the tensors sends it back to packing, a change
of the modules to tracing. A *whole* module is neither traced nor planned: all of it is on the device while it runs.
With *hold*, what is resident stays bound from one forward to the next once the plan has settled.
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
from .bracket import Bracket, Tally
from .curve import CurvePoint, curve
from .errors import ArenaAllocationError, AsyncMoverError, ConcurrentForwardError
from .holdings import Holdings
from .hooks import RootEnter, RootLeave, RootPark, Trap
from .leaf import Leaf
from .loadout import Loadout
from .order import Order
from .scheduler import signature_of
from .stats import stats_of
from .visits import StrayLeave, Visits
from .workload import Workload

logger = logging.getLogger("async_lowvram")


class Mover:
    """Streams one module's weights; see `attach`."""

    def __init__(
        self, root: nn.Module, backend: Backend, vram_mb: float, name: str, whole: bool = False, hold: bool = False
    ) -> None:
        self.root = root
        self.whole = whole
        self.hold = hold
        self.name = name
        self.backend = backend
        self.vram_mb = vram_mb
        self.holdings = Holdings(name, root, backend, whole)
        self.visits = Visits(backend.device, self._changed)
        self.forwards = 0
        self._lock = threading.RLock()  # verbs against each other and against the two ends of a forward
        self._bracket = Bracket()
        self._tally = Tally()
        self._intact = True  # False: some tensor is no longer the packed one
        self._stream_changed = False  # since the last forward: residents are to be waited for again
        self._release_due = False
        self._stray_handles: list[Any] = []
        self._order = Order(name, root, whole, lambda leaf: Trap(self, leaf))
        self._handles = [
            root.register_forward_pre_hook(RootEnter(self), prepend=True, with_kwargs=True),
            root.register_forward_hook(RootLeave(self), always_call=True),
            root._register_load_state_dict_pre_hook(RootPark(self)),
            root.register_state_dict_pre_hook(RootPark(self)),
        ]

    # A forward, from its first hook to its last

    def begin(self, args: tuple, kwargs: dict, frame: FrameType | None) -> None:
        """A forward of the root begins, in ``frame``. Weights are on the device as they are needed, until `finish`.

        Raises:
            ConcurrentForwardError: another thread is in a forward.
            ArenaAllocationError: the device has no room even for the least buffer. Nothing is bound then.
        """
        if self._bracket.running:
            if not self._bracket.mine:
                raise ConcurrentForwardError(
                    f"{self.name}: a second thread began a forward while one was running; its weights serve one at a "
                    "time, so run them one after the other"
                )
            self._bracket.enter(frame)
            return
        begun_s = time.perf_counter()
        with self._lock:
            self._recover()
            self._bracket.enter(frame)
            try:
                self._prepare(signature_of(args, kwargs), begun_s)
            except BaseException:
                self._unwind(completed=False)
                raise

    def _recover(self) -> None:
        """Cleans up after a forward that never came to `finish`, and removes hooks that could not remove themselves."""
        if self._bracket.open:
            logger.info("%s: the last forward was cut off; nothing to do, its weights are back in RAM", self.name)
            self._unwind(completed=False)
        if self._stray_handles:
            self.visits.end()
            for handle in self._stray_handles:
                handle.remove()
            self._stray_handles = []

    def _prepare(self, signature: tuple, begun_s: float) -> None:
        stream_changed = self.backend.enter() or self._stream_changed
        self._stream_changed = False
        holdings = self.holdings
        first = holdings.loadout is not None and not holdings.loadout.arena.allocated
        asked = holdings.scheduler
        due = asked is not None and asked.begin(signature, first)
        held = not (due or stream_changed) and self._held_still()
        if not held:
            self._let_go()
        if holdings.pack is not None and not (self._intact and (held or holdings.pack.masters.in_place())):
            self._unpack()
        order = self._order
        if order.known is None:
            self._tally = Tally()
            order.begin_trace()
            self.visits.stand(order.standing)
            return
        pack, scheduler = holdings.ensure_pack(order.known, order.leaves, order.standing)
        if scheduler is not asked:
            due = scheduler.begin(signature)
        loadout = holdings.take(self.vram_mb, due=due and not self.whole)
        for leaf in () if held else pack.masters.edited():
            loadout.refresh(leaf)
        self._tally = Tally(begun_s=begun_s)
        scheduler.start(loadout.pipeline, self._tally)
        loadout.pipeline.begin(stream_changed, self.whole)

    def _held_still(self) -> bool:
        """Whether residents have stayed bound since the last forward, and may stay for the next."""
        loadout = self.holdings.loadout
        return loadout is not None and self.holdings.planned_mb == self.vram_mb and loadout.held_still()

    def _let_go(self, all_of_it: bool = False) -> None:
        """Nothing stays bound, and what was done to it meanwhile is brought home."""
        loadout = self.holdings.loadout
        if loadout is not None:
            loadout.let_go(all_of_it)
            self._intact &= loadout.pipeline.intact

    def _unpack(self) -> None:
        """The module's tensors are no longer the packed ones: all but the order is made anew."""
        self._let_go()
        self.holdings.drop()
        self._intact = True
        self._order.find()

    def trapped(self, leaf: Leaf, args: tuple) -> None:
        """A leaf that is not bound is about to run."""
        if not self._bracket.open:
            if not self._belongs_on_cpu(args):
                self._stray(leaf)
            return
        tally, started_s = self._tally, time.perf_counter()
        if torch.autograd._profiler_enabled():
            with record_function("async_lowvram::enter"):
                self._serve(leaf)
        else:
            self._serve(leaf)
        tally.enter_s += time.perf_counter() - started_s
        tally.entered += 1

    def _serve(self, leaf: Leaf) -> None:
        self.visits.end()
        loadout = self.holdings.loadout
        if loadout is not None and loadout.enter(leaf):
            return
        self._tally.regular = False
        self._tally.strange |= self._order.trace(leaf)
        self.visits.begin(leaf)

    def _belongs_on_cpu(self, args: tuple) -> bool:
        """Outside a forward the weights are CPU tensors; who has seen that, and brings CPU tensors, computes there."""
        devices = {value.device.type for value in args if isinstance(value, torch.Tensor)}
        return devices == {"cpu"} and self.backend.device.type != "cpu"

    def _stray(self, leaf: Leaf) -> None:
        """A leaf runs outside a forward of the root: it is loaded for this one call."""
        self._recover()
        self._stream_changed |= self.backend.enter()
        self.visits.begin(leaf)
        # The hook cannot remove itself: after an exception torch iterates over the very dictionary.
        self._stray_handles.append(leaf.module.register_forward_hook(StrayLeave(self), always_call=True))

    def end_stray(self) -> None:
        """A leaf that ran outside a forward of the root is done."""
        if not self._bracket.open:
            self.visits.end()

    def _changed(self, leaf: Leaf, intact: bool) -> None:
        self._intact &= intact
        if self.holdings.loadout is not None:
            self.holdings.loadout.refresh(leaf)

    def finish(self, completed: bool) -> None:
        """The root's forward is over; by an exception, if not ``completed``."""
        if not self._bracket.leave():
            return
        with self._lock:
            if completed:
                self._order.end_trace()
            self._unwind(completed)
            self.forwards += 1
            if completed and self._tally.strange and self._order.outlived():
                self._unpack()
            if self._release_due:
                self.release()

    def _unwind(self, completed: bool) -> None:
        """Nothing stays bound to the device."""
        self._bracket.close()
        self.visits.end()
        self.visits.sit()
        loadout, scheduler = self.holdings.loadout, self.holdings.scheduler
        if loadout is not None and scheduler is not None:
            loadout.pipeline.finish(hold=self.hold and completed and scheduler.settled)
            self._intact &= loadout.pipeline.intact
            scheduler.stop(loadout.pipeline, loadout.plan, self._tally, completed)

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

    # Verbs, from any thread

    def release(self) -> None:
        """Gives back all VRAM; the next forward takes it again. Does nothing inside a forward of the same thread;
        if another thread is in one, happens at its end."""
        with self._lock:
            if self._bracket.running:
                self._release_due = not self._bracket.mine
                return
            self._release_due = False
            self._recover()
            self._let_go()
            if self.holdings.loadout is not None:
                self.holdings.loadout.free()

    def prepare(self) -> None:
        """Packs a whole module now, not in its first forward. Nothing moves to the device."""
        with self._lock:
            order = self._order
            if self.whole and order.known is not None and not self.busy:
                self._recover()
                self.holdings.ensure_pack(order.known, order.leaves, order.standing)

    def prefetch(self) -> None:
        """Starts uploading the first units now, if a plan is there. Takes the arena's memory, if there is room."""
        holdings = self.holdings
        with self._lock:
            if self._bracket.open or holdings.pack is None or not (self._intact and holdings.pack.masters.in_place()):
                return
            try:
                self._stream_changed |= self.backend.enter()
                loadout = self._known_loadout()
            except ArenaAllocationError:
                return
            if loadout is not None:
                loadout.pipeline.pump()

    def _known_loadout(self) -> Loadout | None:
        if self.holdings.loadout is None and not self.whole:
            return None
        return self.holdings.take(self.vram_mb, due=False)

    def refresh(self) -> None:
        """All weights were written to behind torch's back (through ``.data``): what is on the device is stale."""
        with self._lock:
            if self.holdings.loadout is not None and not self.busy:
                self._let_go(all_of_it=True)
                self.holdings.loadout.pipeline.forget()

    def synchronize(self) -> None:
        """Blocks until all copies in flight are over."""
        self.backend.synchronize()

    def park(self) -> None:
        """Outside a forward: all weights are in RAM, and no copy of them is in flight. They may be written to then."""
        with self._lock:
            if not self.busy:
                self._let_go()
        self.synchronize()

    def close(self) -> None:
        """Undoes everything; see `detach`. Raises ConcurrentForwardError inside a forward."""
        with self._lock:
            if self.busy:
                raise ConcurrentForwardError(f"{self.name}: detach was called inside a forward; call it afterwards")
            self._recover()
            self._let_go()
            self.holdings.drop_loadout()
            self.backend.close()
            self._order.remove_traps()
            for handle in self._handles:
                handle.remove()
            if self.holdings.pack is not None:
                self.holdings.pack.store.unpin()
            self.holdings.drop()

    @property
    def busy(self) -> bool:
        """In a forward, of whichever thread."""
        return self._bracket.running

    @property
    def settled(self) -> bool:
        """Whether the plan in force was made from a profile of the last inputs' shapes, and was seen to hold."""
        scheduler = self.holdings.scheduler
        return scheduler is not None and scheduler.settled and self.holdings.planned_mb == self.vram_mb

    @property
    def wanted_bytes(self) -> int:
        """VRAM that the next forward will take for weights, in bytes; 0 while that is not known."""
        return self.holdings.wanted_bytes

    def workload(self) -> Workload | None:
        """What was measured for the last inputs' shapes; None while nothing was."""
        return self.holdings.scheduler.workload() if self.holdings.scheduler is not None else None

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
