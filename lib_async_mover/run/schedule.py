"""The schedule: what is timed, for which input shapes, and when a new plan is due. Never waits for the device.

For each signature of inputs: the first plan is *guessed* from sizes; two *timed* forwards, as a whole and leaf by leaf,
make the next; *planned*, one more tells whether it lasts as predicted, and it is *settled*, or, once, timed anew.
Whatever disturbs a CPU makes a timing longer, never shorter: so of two timings the shorter one holds, and a settled
plan whose forwards turn out faster is timed anew.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from enum import Enum, auto

from lib_async_mover.device.backend import Backend
from lib_async_mover.memory.joint_store import JointStore
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.workload import LeafCost, Workload
from lib_async_mover.run.forward_scope import ForwardTimes, Signature
from lib_async_mover.run.pipeline import Pipeline
from lib_async_mover.run.profile import UNIT_MS, ForwardTimer, Kind, Sample
from lib_async_mover.run.step_clock import StepClock

GUESSED_GBPS = 10.0  # PCIe 3 ×16, and 4 ×8
GUESSED_FETCH_MS = 0.03  # CPU time of a streamed unit, until it is measured
CALL_MS = 0.01  # of CPU time that torch takes to call a module with a hook, beyond what we do in it
MARGIN = 1.2  # on a unit's CPU time: a plan with fewer units bears a busy CPU better
REPLAN_AFTER = 8  # forwards that a plan is kept at least, when input shapes alternate
WARM_FORWARDS = 2  # with a plan: residents are on their way, and then a CPU that is a forward ahead waits for those
TOLERANCE = 0.05  # how far a forward may be from its prediction
SAMPLE_EVERY = 16  # forwards between two that are timed once the plan is settled


class Stage(Enum):
    GUESSED = auto()  # not timed yet, or found to be off
    TIMED = auto()  # the times are newer than the plan
    PLANNED = auto()  # the plan was made of them
    SETTLED = auto()  # and takes as long as predicted, or timing it anew did not help


@dataclass
class Profile:
    """What is known of one signature."""

    stage: Stage = Stage.GUESSED
    workload: Workload | None = None
    launch_ms: float = float("inf")  # CPU time of a forward's launches, the least seen
    compute_ms: float = float("inf")  # and of those that were timed as a whole, to go with one whose leaves are timed
    whole: Sample | None = None
    timed_anew: bool = False  # since the buffer's size was chosen


class Schedule:
    """One for each joint store."""

    def __init__(
        self, backend: Backend, store: JointStore, measures: bool = True, gbps: float = GUESSED_GBPS
    ) -> None:
        """``measures``: bus and forwards are timed. A plan with everything resident needs neither.

        ``gbps`` is what is known of the bus.
        """
        self._measures = measures
        self._backend = backend
        self._store = store
        self._profiles: defaultdict[Signature, Profile] = defaultdict(Profile)
        self._profile = Profile()  # of the last signature
        self._signature: Signature | None = None
        self._planned_for: Profile | None = None
        self._predicted_ms = 0.0
        self._forwards = 0  # with this plan
        self._timer: ForwardTimer | None = None  # of the forward in flight
        self._unread: list[ForwardTimer] = []  # forwards that the device may not have passed
        self.gbps = gbps  # of the bus, in 1e9 bytes per second
        self._fetch_ms: float | None = None  # the least seen
        self.clock = StepClock(backend)
        self.sample: Sample | None = None  # the last forward that was timed as a whole

    @property
    def workload(self) -> Workload | None:
        """Measured, for the last signature; None while there is none."""
        return self._profile.workload

    @property
    def settled(self) -> bool:
        """Whether the plan in force was made from a profile of the last signature, and was seen to hold."""
        return self._planned_for is self._profile and self._profile.stage is Stage.SETTLED

    def plan_due(self, signature: Signature) -> bool:
        """A forward is about to run: whether it needs a new plan."""
        if signature != self._signature:
            self._signature, self._profile = signature, self._profiles[signature]
            self._unread.clear()
            self._profile.whole = None
        self.read_timings()
        if self._planned_for is self._profile:
            return self._profile.stage is Stage.TIMED
        return self.workload is not None and (self._planned_for is None or self._forwards >= REPLAN_AFTER)

    def use(self, workload: Workload) -> None:
        """Plans for the last signature are made from this, as if it had been timed."""
        self._profile.workload, self._profile.stage = workload, Stage.TIMED

    def workload_to_plan(self) -> Workload:
        """Measured; or else every leaf takes as long, and the bus is the bottleneck."""
        count = len(self._store.order)
        each_ms = sum(self._store.leaf_bytes) / self.gbps / 1e6 / count
        return self.workload or self._workload([each_ms] * count, 0.0)

    def _workload(self, leaf_ms: list[float], launch_ms: float) -> Workload:
        store, fetch_ms = self._store, (self._fetch_ms or GUESSED_FETCH_MS) + CALL_MS
        rows = zip(store.order, store.leaf_bytes, leaf_ms, strict=True)
        leaves = tuple(LeafCost(leaf.name, count, ms) for leaf, count, ms in rows)
        return Workload(
            leaves, self.gbps, store.standing_bytes, store.barriers, UNIT_MS, self.clock.gap_ms(), launch_ms,
            fetch_ms * MARGIN,
        )  # fmt: skip

    def planned(self, plan: Plan, another_size: bool) -> None:
        """``plan`` was made from `workload_to_plan`, and is in force from now on, for ``another_size``."""
        profile = self._profile
        self._planned_for = profile if profile.workload is not None else None
        profile.timed_anew &= not another_size
        if profile.workload is not None:
            profile.stage = Stage.SETTLED if profile.timed_anew else Stage.PLANNED
        profile.whole = None
        self._predicted_ms = plan.predicted_ms
        self._forwards = 0
        self._unread.clear()
        self.clock.end_run()  # planning took its time between two forwards

    def start_forward(self, pipeline: Pipeline, times: ForwardTimes) -> None:
        """The forward runs, after any planning."""
        self.clock.forward_started()
        kind = self._to_time()
        if kind is not None and not any(timer.kind is Kind.LEAVES for timer in self._unread):
            self._timer = pipeline.timer = ForwardTimer(self._backend, self._store, kind, times)

    def _to_time(self) -> Kind | None:
        profile = self._profile
        if not self._measures:
            return None
        if self._forwards == 0 or self.clock.first:
            return Kind.FIRST
        if self._forwards < WARM_FORWARDS:
            return None
        if profile.stage is Stage.GUESSED:
            known = profile.whole is not None or any(timer.kind is Kind.WHOLE for timer in self._unread)
            return Kind.LEAVES if known else Kind.WHOLE
        due = self._planned_for is profile and (not self.settled or self._forwards % SAMPLE_EVERY == 0)
        return Kind.WHOLE if due else None

    def end_forward(self, pipeline: Pipeline, plan: Plan, times: ForwardTimes, completed: bool) -> None:
        """The forward is over; by an exception, if not ``completed``."""
        regular = completed and not times.on_demand
        timer, self._timer, pipeline.timer = self._timer, None, None
        self._backend.time_copies(None)
        if timer is not None and regular:
            self.clock.forward_ended(timer.stop(plan.streamed_units))
            self._unread.append(timer)
        elif timer is not None:
            timer.cancel()
        elif regular and plan.streamed_units and not self._backend.waits_block:
            fetch_ms = times.fetch_s / times.fetches * 1e3
            self._fetch_ms = min(fetch_ms, self._fetch_ms or fetch_ms)
        self._forwards += 1

    def read_timings(self) -> None:
        """Learns from the forwards that the device has passed."""
        while self._unread and (sample := self._unread[0].read()) is not None:
            kind, profile = self._unread.pop(0).kind, self._profile
            self.gbps = sample.gbps or self.gbps
            profile.launch_ms = min(profile.launch_ms, sample.launch_ms)
            if profile.launch_ms < float("inf"):
                profile.launch_ms = min(profile.launch_ms, sample.cpu_ms)
            load = profile.workload
            if load is not None and profile.launch_ms < (1 - TOLERANCE) * load.launch_ms:
                self.use(replace(load, launch_ms=profile.launch_ms))
            if kind is Kind.LEAVES:
                self._learn(profile, sample)
            elif kind is Kind.WHOLE and sample.steady:  # if not, the next forward is timed again
                self.sample = sample
                self._judge(profile, sample)

    def _judge(self, profile: Profile, sample: Sample) -> None:
        """A forward was timed as a whole: does it last as long as the plan says?"""
        if profile.stage is Stage.GUESSED or self._planned_for is not profile:
            profile.whole = sample
            return
        off = profile.stage is Stage.PLANNED and abs(sample.span_ms / self._predicted_ms - 1) > TOLERANCE
        if off or sample.compute_ms < (1 - TOLERANCE) * profile.compute_ms:
            profile.stage, profile.whole, profile.timed_anew = Stage.GUESSED, sample, True
        else:
            profile.stage = Stage.SETTLED

    def _learn(self, profile: Profile, sample: Sample) -> None:
        """A forward with all its leaves timed has been read."""
        whole, profile.whole = profile.whole, None
        if whole is None:  # it was not steady: both are timed again
            return
        # Marks cost time themselves, so leaf times are made to sum to what unmarked forwards computed.
        marked_ms = sum(sample.leaf_ms.values()) or 1.0
        profile.compute_ms = min(profile.compute_ms, whole.compute_ms, marked_ms)
        scale = profile.compute_ms / marked_ms
        leaf_ms = [sample.leaf_ms.get(index, 0.0) * scale for index in range(len(self._store.order))]
        profile.workload = self._workload(leaf_ms, profile.launch_ms if profile.launch_ms < float("inf") else 0.0)
        profile.stage = Stage.TIMED
