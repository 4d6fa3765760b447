"""The scheduler: what is timed, for which input shapes, and when a new plan is due. Never waits for the device."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import torch

from .backend import Backend
from .curve import auto_budget
from .pack import Pack
from .pipeline import Pipeline
from .plan import Plan
from .profile import WARM_FORWARDS, Profiler, Sample, workload_of
from .workload import LeafCost, Workload

MIB = 1 << 20
AUTO_START_BYTES = 256 * MIB  # the automatic budget before anything was measured
RESERVE_BYTES = 256 * MIB  # left to other programs by the automatic budget
GUESSED_ENTER_MS = 0.03  # CPU time of a streamed unit, until it is measured
LEAST_COPIED_BYTES = 64 * MIB  # a timed forward that copies less says little of the bus
REPLAN_AFTER = 8  # forwards that a plan is kept at least, when input shapes alternate
STARTS_KEPT = 16
SAMPLE_EVERY = 16  # forwards between two that are timed for the statistics

Signature = tuple


def signature_of(args: tuple, kwargs: dict) -> Signature:
    """Shapes and dtypes of the tensors a forward was called with: equal ones take equal time."""
    values = [*args, *kwargs.values()]
    return tuple((value.shape, value.dtype) for value in values if isinstance(value, torch.Tensor))


class Scheduler:
    """One for each pack. Profiles are kept by signature."""

    def __init__(self, backend: Backend, pack: Pack) -> None:
        self._backend = backend
        self._pack = pack
        self._profiler = Profiler(backend)
        self._plain: Sample | None = None
        self._workloads: dict[Signature, Workload] = {}
        self._planned: Signature | None = None  # whose workload the plan was made from; None for sizes alone
        self._signature: Signature = ()
        self._forwards = 0  # with this plan and this signature
        self._detailed = False  # the forward in flight has its leaves timed
        self._gbps = backend.measure_gbps(pack.largest_source())
        self._enter_ms = GUESSED_ENTER_MS
        self._gap: tuple[Any, Any] | None = None  # marks: the end of a timed forward, the start of the next
        self._gap_ms = 0.0
        self._starts: deque[Any] = deque(maxlen=STARTS_KEPT)  # mark of every forward's start
        self.sample: Sample | None = None  # the last forward that was timed as a whole

    def workload(self) -> Workload | None:
        """Measured, for the last signature; None while there is none."""
        known = self._workloads.get(self._signature)
        return None if known is None else replace(known, gbps=self._gbps)

    @property
    def settled(self) -> bool:
        """Whether the plan in force was made from a profile of the last signature."""
        return self._planned is not None and self._planned == self._signature

    def begin(self, signature: Signature) -> bool:
        """A forward is about to begin. Returns whether a new plan is due."""
        if signature != self._signature:
            self._signature = signature
            self._profiler.abandon()
            self._plain = None
            self._forwards = min(self._forwards, WARM_FORWARDS)
        self._harvest()
        if self._planned == signature or signature not in self._workloads:
            return False
        return self._planned is None or self._forwards >= REPLAN_AFTER

    def workload_to_plan(self) -> Workload:
        """What a plan for the coming forward is to be made from: measured, or else guessed from sizes."""
        return self.workload() or self._guess()

    def planned(self) -> None:
        """A plan was made from `workload_to_plan`, and is in force from the coming forward on."""
        self._planned = self._signature if self._signature in self._workloads else None
        self._forwards = 0
        self._profiler.abandon()
        self._plain = None
        self._starts.clear()

    def _guess(self) -> Workload:
        """Before anything was measured: every leaf takes as long, and the bus is the bottleneck."""
        pack = self._pack
        each_ms = sum(pack.leaf_bytes) / self._gbps / 1e6 / len(pack.order)
        sizes = zip(pack.order, pack.leaf_bytes, strict=True)
        costs = tuple(LeafCost(leaf.name, size, each_ms) for leaf, size in sizes)
        return Workload(costs, self._gbps, pack.fixed_bytes, pack.barriers, self._enter_ms)

    def start(self, pipeline: Pipeline, plan: Plan) -> None:
        """The forward begins, after any planning."""
        self._starts.append(self._backend.mark_compute())
        if self._gap is not None and self._gap[1] is None:
            self._gap = (self._gap[0], self._starts[-1])
        profiled = self._signature in self._workloads
        every = SAMPLE_EVERY if profiled and self.sample is not None else 1
        due = self._forwards >= WARM_FORWARDS and (self._forwards - WARM_FORWARDS) % every == 0
        if due and not self._profiler.busy:
            self._detailed = not profiled and self._plain is not None
            self._profiler.start(self._pack.order if self._detailed else None, plan.streamed_units)
            pipeline.watch = self._profiler

    def stop(self, pipeline: Pipeline, regular: bool, enter_s: float, entered: int) -> None:
        """The forward is over.

        Args:
            regular: no exception ended it and no leaf was loaded on the spot.
            enter_s: CPU time that was spent on entering ``entered`` units.
        """
        if pipeline.watch is None and regular and entered:
            self._enter_ms += (enter_s / entered * 1e3 - self._enter_ms) / 4
        if pipeline.watch is not None:
            pipeline.watch = None
            if regular:
                self._gap = (self._profiler.stop(), None)
            else:
                self._profiler.abandon()
        self._forwards += 1

    def step_ms(self) -> float | None:
        """From the start of a forward to the start of the next, the mean over the last ones that the device passed."""
        passed = [mark for mark in list(self._starts) if self._backend.passed(mark)]
        if len(passed) < 2:
            return None
        return self._backend.elapsed_ms(passed[0], passed[-1]) / (len(passed) - 1)

    def _harvest(self) -> None:
        if self._gap is not None and self._gap[1] is not None and self._backend.passed(self._gap[1]):
            self._gap_ms = self._backend.elapsed_ms(*self._gap)
            self._gap = None
        sample = self._profiler.result()
        if sample is None:
            return
        if sample.copied_bytes >= LEAST_COPIED_BYTES:
            self._gbps = sample.gbps
        if not self._detailed:
            self._plain = self.sample = sample
        elif self._plain is not None:
            self._workloads[self._signature] = workload_of(
                self._pack, self._plain, sample, self._gbps, self._gap_ms, self._enter_ms
            )

    def budget_bytes(self, wanted_mb: float, held_bytes: int) -> int:
        """The budget in bytes. 0 MB is automatic: the smallest that is as good as any that fits.

        Args:
            held_bytes: what the present arena takes, and would give back.
        """
        if wanted_mb > 0:
            return int(wanted_mb * MIB)
        known = self.workload()
        if known is None:
            return AUTO_START_BYTES
        # Torch keeps what activations needed in the last forwards, so what the device has free now is truly free.
        free = self._backend.free_bytes() + held_bytes - RESERVE_BYTES
        return auto_budget(known, max(free, 0))
