"""The scheduler: what is timed, for which input shapes, and when a new plan is due. Never waits for the device."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import torch

from .backend import Backend
from .bracket import Tally
from .curve import auto_budget
from .pack import Pack
from .pipeline import Pipeline
from .plan import Plan
from .profile import Profiler, Sample, guessed_workload, launches_of, workload_of
from .workload import Workload

logger = logging.getLogger("async_lowvram")

MIB = 1 << 20
AUTO_START_BYTES = 256 * MIB  # the automatic budget before anything was measured
RESERVE_BYTES = 256 * MIB  # left to other programs by the automatic budget
WARM_FORWARDS = 2  # not timed after a plan: cold residents, lazy kernels
GUESSED_GBPS = 10.0  # PCIe 3 ×16, and 4 ×8
GUESSED_ENTER_MS = 0.03  # CPU time of a streamed unit, until it is measured
LEAST_COPIED_BYTES = 64 * MIB  # a timed forward that copies less says little of the bus
REPLAN_AFTER = 8  # forwards that a plan is kept at least, when input shapes alternate
TOLERANCE = 0.05  # how far a forward may be from its prediction before the profile is doubted
REVISIONS = 3  # of a profile, for one budget
STARTS_KEPT = 16
ENTERS_KEPT = 16
SAMPLE_EVERY = 16  # forwards between two that are timed for the statistics

Signature = tuple


def signature_of(args: tuple, kwargs: dict) -> Signature:
    """Shapes and dtypes of the tensors a forward was called with: equal ones take equal time."""
    values = [*args, *kwargs.values()]
    return tuple((value.shape, value.dtype) for value in values if isinstance(value, torch.Tensor))


def _first_gbps(backend: Backend, pack: Pack) -> float:
    try:
        return backend.measure_gbps(pack.largest_source())
    except RuntimeError as error:  # a device too full for it gets its plan all the same
        logger.debug("the bus could not be measured yet: %s", error)
        return GUESSED_GBPS


@dataclass
class Knowledge:
    """What was measured for one signature."""

    workload: Workload | None = None
    launch_bound: bool = False  # its leaf times may rather be launch times
    least_launch_ms: float = float("inf")  # CPU time of the quickest forward
    least_leaf_ms: dict[int, float] = field(default_factory=dict)  # by execution index: the CPU only makes it more
    revisions: int = 0


class Scheduler:
    """One for each pack. Profiles are kept by signature.

    A profile is a forward timed as a whole and one with every leaf timed. The plan that is made of it is verified by
    one more; if that one is off, the profile is revised: a machine that waits for its bus shows other times than one
    that waits for its CPU.
    """

    def __init__(self, backend: Backend, pack: Pack, learns: bool = True) -> None:
        """
        Args:
            learns: whether to measure bus and forwards. A plan with everything resident needs neither.
        """
        self._learns = learns
        self._backend = backend
        self._pack = pack
        self._profiler = Profiler(backend)
        self._known: defaultdict[Signature, Knowledge] = defaultdict(Knowledge)
        self._signature: Signature = ()
        self._planned: Signature | None = None  # whose workload the plan was made from; None for sizes alone
        self._due = False  # the profile is newer than the plan
        self._verified = False  # the plan does what it predicts, or does not and nothing helps
        self._doubt: Sample | None = None  # a forward that was faster than predicted
        self._predicted_ms = 0.0
        self._plain: Sample | None = None  # to go with a forward whose leaves are timed
        self._detailed = False  # the forward in flight has its leaves timed
        self._forwards = 0  # with this plan
        self._gbps = _first_gbps(backend, pack) if learns else GUESSED_GBPS
        self._enters_ms: deque[float] = deque(maxlen=ENTERS_KEPT)  # CPU time of a streamed unit, in one forward each
        self._gap: tuple[Any, Any] | None = None  # marks: the end of a timed forward, the start of the next
        self._gap_ms = float("inf")
        self._starts: deque[Any] = deque(maxlen=STARTS_KEPT)  # mark of every forward's start
        self.sample: Sample | None = None  # the last forward that was timed as a whole

    def workload(self) -> Workload | None:
        """Measured, for the last signature; None while there is none."""
        return self._known[self._signature].workload

    @property
    def settled(self) -> bool:
        """Whether the plan in force was made from a profile of the last signature, and was seen to hold."""
        return self._planned is not None and self._planned == self._signature and self._verified and not self._due

    def begin(self, signature: Signature, first: bool = False) -> bool:
        """A forward is about to begin. Returns whether a new plan is due.

        Args:
            first: of a run of forwards, before which nothing is on the device.
        """
        if signature != self._signature:
            self._signature = signature
            self._profiler.abandon()
            self._plain = self._doubt = None
            self._due = False
        self._harvest()
        if first and self._doubt is not None:
            self._verify(self._known[signature], self._doubt)
        if self._due or (self._planned is None and self.workload() is not None):
            return True
        return self._planned != signature and self.workload() is not None and self._forwards >= REPLAN_AFTER

    def workload_to_plan(self) -> Workload:
        """What a plan for the coming forward is to be made from: measured, or else guessed from sizes."""
        return self.workload() or guessed_workload(self._pack, self._gbps, self._enter_ms())

    def planned(self, plan: Plan, another_budget: bool) -> None:
        """``plan`` was made from `workload_to_plan`, and is in force from the coming forward on."""
        known = self._known[self._signature]
        self._planned = self._signature if known.workload is not None else None
        self._predicted_ms = plan.predicted_ms
        if another_budget:
            known.revisions = 0
        self._due = self._verified = False
        self._doubt = None
        self._forwards = 0
        self._profiler.abandon()
        self._plain = self._gap = None  # planning took its time between two forwards
        self._starts.clear()

    def start(self, pipeline: Pipeline, tally: Tally) -> None:
        """The forward begins, after any planning."""
        self._starts.append(self._backend.mark_compute())
        if self._gap is not None and self._gap[1] is None:
            self._gap = (self._gap[0], self._starts[-1])
        warm = self._forwards - WARM_FORWARDS
        if self._learns and warm >= 0 and (not self.settled or warm % SAMPLE_EVERY == 0) and not self._profiler.busy:
            self._detailed = self._plain is not None
            self._profiler.start(self._pack.order, self._detailed, tally)
            pipeline.watch = self._profiler

    def stop(self, pipeline: Pipeline, plan: Plan, tally: Tally, completed: bool) -> None:
        """The forward is over; by an exception, if not ``completed``."""
        regular = completed and tally.regular
        if pipeline.watch is not None:
            pipeline.watch = None
            if regular:
                end = self._profiler.stop(tally, plan.streamed_units)
                self._gap = (end, None)
            else:
                self._profiler.abandon()
        elif regular and tally.entered and not self._backend.waits_block:
            self._enters_ms.append(tally.enter_s / tally.entered * 1e3)
        self._forwards += 1

    def step_ms(self) -> float | None:
        """From the start of a forward to the start of the next, the mean over the last ones that the device passed."""
        passed = [mark for mark in list(self._starts) if self._backend.passed(mark)]
        if len(passed) < 2:
            return None
        return self._backend.elapsed_ms(passed[0], passed[-1]) / (len(passed) - 1)

    def _harvest(self) -> None:
        if self._gap is not None and self._gap[1] is not None and self._backend.passed(self._gap[1]):
            # The shortest seen: a pause between two forwards now and then (a preview, a picture saved) is no rhythm.
            self._gap_ms = min(self._gap_ms, max(0.0, self._backend.elapsed_ms(*self._gap)))
            self._gap = None
        sample = self._profiler.result()
        if sample is None:
            return
        if sample.copied_bytes >= LEAST_COPIED_BYTES:
            self._gbps = sample.gbps
        known = self._known[self._signature]
        if self._detailed:
            self._learn(known, sample)
            return
        if not sample.steady:
            return  # the next forward is timed again
        self.sample = sample
        if sample.most_launch_ms < known.least_launch_ms:
            known.least_launch_ms = float("inf")  # it was from a busy minute
        known.least_launch_ms = min(known.least_launch_ms, sample.launch_ms)
        if self._planned != self._signature:
            self._plain = sample
        elif not self._verified:
            self._verify(known, sample)
        elif sample.span_ms < (1 - TOLERANCE) * self._predicted_ms:
            # The profile is from a busy minute, the plan maybe too. Another one takes time, which is not taken now.
            self._doubt = sample

    def _learn(self, known: Knowledge, detailed: Sample) -> None:
        """A forward with all its leaves timed has been read."""
        plain, self._plain = self._plain, None
        if plain is None:
            return
        least = known.least_leaf_ms
        for index, ms in detailed.leaf_ms.items():
            least[index] = min(ms, least.get(index, ms))
        learnt = workload_of(self._pack, plain, least, self._gbps, self._known_gap_ms(), self._enter_ms())
        known.workload = launches_of(learnt, known.least_launch_ms, self._enter_ms())
        known.launch_bound = plain.launch_bound
        self._due = True

    def _enter_ms(self) -> float:
        """The least seen lately: a CPU that waits for room in the device's queue may do so in here."""
        return min(self._enters_ms, default=GUESSED_ENTER_MS)

    def _known_gap_ms(self) -> float:
        return self._gap_ms if self._gap_ms < float("inf") else 0.0

    def _verify(self, known: Knowledge, sample: Sample) -> None:
        """A warm forward: does it last as long as the plan says?"""
        self._doubt = None
        off = abs(sample.span_ms - self._predicted_ms) / self._predicted_ms if self._predicted_ms else 0.0
        # Where the device waits for weights the CPU gets ahead, and leaf times can be told from launch times at last.
        telling = known.launch_bound and sample.stall_share > TOLERANCE and not known.revisions
        if known.workload is None or known.revisions >= REVISIONS or not (off > TOLERANCE or telling):
            self._verified = True
            return
        self._verified = False
        known.revisions += 1
        if sample.launch_bound and not known.launch_bound:
            # Leaf times from a GPU that was behind are true; what is to be learnt here is the CPU's part.
            known.workload = launches_of(known.workload, known.least_launch_ms, self._enter_ms())
            self._due = True
        else:
            self._plain = sample

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
