"""The simulation: small pipelines by hand, and against a slow reference that asks every slot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_async_mover.plan import Plan, PlannedUnit, make_plan
from lib_async_mover.simulate import run, simulate, track_of
from lib_async_mover.workload import LeafCost, Workload
from tests.workloads import workloads

KB = 1024  # the bus of these tests moves one of these per ms


def pipeline(
    *units: tuple[int, float, int | None], overhead: float = 0.0, gap: float = 0.0, loose: tuple[int, ...] = ()
) -> tuple[Plan, Workload]:
    """One leaf per unit: (KB, ms, offset in the arena in KB or None for a resident)."""
    leaves = tuple(LeafCost(f"leaf.{i}", size * KB, ms) for i, (size, ms, _) in enumerate(units))
    workload = Workload(leaves, gbps=KB / 1e6, unit_overhead_ms=overhead, gap_ms=gap)
    planned = tuple(
        PlannedUnit(i, i + 1, size * KB, (1000 + 50 * i if offset is None else offset) * KB, offset is None)
        for i, (size, _, offset) in enumerate(units)
        if i not in loose
    )
    plan = Plan(planned, 0, 2000 * KB, 0, 0, 0.0, 0.0, 0.0, frozenset(loose))
    return plan, workload


def test_all_resident_takes_compute_alone():
    result = simulate(*pipeline((5, 2.0, None), (7, 3.0, None)))
    assert (result.step_ms, result.stall_ms, result.bytes_per_step) == (5.0, 0.0, 0)


def test_one_slot_for_all_means_copy_and_compute_take_turns():
    plan, workload = pipeline((4, 1.0, 0), (2, 3.0, 0), overhead=0.5)
    result = simulate(plan, workload)
    assert result.step_ms == pytest.approx(4 + 1.5 + 2 + 3.5)
    assert result.unit_stall_ms == pytest.approx((4, 2))
    assert result.bytes_per_step == 6 * KB


def test_two_slots_hide_the_copies_that_compute_outlasts():
    # A's next copy may begin when B is entered, B's when A is.
    assert simulate(*pipeline((2, 3.0, 0), (2, 3.0, 2))).step_ms == pytest.approx(6)
    assert simulate(*pipeline((5, 3.0, 0), (2, 3.0, 5))).step_ms == pytest.approx(5 + 3)  # A arrives 2 ms late


def test_bus_bound_step_is_all_bytes_over_the_bus():
    result = simulate(*pipeline((5, 1.0, 0), (5, 1.0, 5), (5, 1.0, 10)))
    assert result.step_ms == pytest.approx(15)
    assert result.stall_ms == pytest.approx(12)


def test_slot_is_free_when_the_next_streamed_unit_is_entered_not_before():
    # C shares A's slot. With a resident between A and C, C's copy waits for the resident's end, which is C's entry.
    apart = simulate(*pipeline((1, 1.0, 0), (1, 9.0, None), (4, 1.0, 0)))
    assert apart.step_ms == pytest.approx(1 + 10 + 4 + 1)
    # With a streamed unit there instead, A's slot is free at its entry, and its 9 ms hide C's copy.
    assert simulate(*pipeline((1, 1.0, 0), (1, 9.0, 5), (4, 1.0, 0))).step_ms == pytest.approx(1 + 10 + 1)


def test_last_unit_is_left_at_the_end_of_the_forward_and_the_gap_serves_copies():
    plan, workload = pipeline((4, 1.0, 0), (1, 5.0, None), gap=3.0)
    assert simulate(plan, workload).step_ms == pytest.approx(1 + 1 + 5)  # 3 of 4 ms of copy in the gap
    plan, workload = pipeline((1, 5.0, None), (4, 1.0, 0), gap=3.0)
    assert simulate(plan, workload).step_ms == pytest.approx(6)  # and the lead hides the rest


def test_a_forward_takes_at_least_what_its_launches_take():
    plan, workload = pipeline((4, 1.0, 0), (1, 5.0, None))
    launched = replace(workload, launch_ms=10.5, unit_launch_ms=0.25)
    assert simulate(plan, launched).step_ms == pytest.approx(10.75)


def test_nothing_is_copied_ahead_across_a_loose_leaf():
    result = simulate(*pipeline((1, 5.0, 0), (8, 2.0, 1), (1, 5.0, 1), loose=(1,)))
    # C's copy waits for the loose leaf's end, which is C's entry; A's next copy may begin then.
    assert result.step_ms == pytest.approx(5 + 8 + 2 + 1 + 5)
    assert result.bytes_per_step == 10 * KB
    assert result.unit_stall_ms == pytest.approx((0, 1))


def test_units_that_take_turns_in_waiting_count_by_their_mean():
    plan, workload = pipeline((3, 1.0, 0), (3, 1.0, 3), (3, 2.0, 0), (1, 2.0, 3))
    track, _ = track_of(plan, workload)
    assert run(track).step_ms == pytest.approx(_reference(plan, workload, forwards=400))


def _reference(plan: Plan, workload: Workload, forwards: int = 120) -> float:
    """Mean step in ms of the later half, by asking, before every copy, every earlier use of an overlapping slot."""
    streamed = sorted(
        [(u.first, u.stop, u.bytes, (u.offset, u.end)) for u in plan.units if not u.resident]
        + [(i, i + 1, workload.leaves[i].bytes, None) for i in plan.loose]
    )
    each_ms = workload.launch_ms / len(workload.leaves)
    firsts = {first for first, *_ in streamed}
    enters: dict[tuple[int, int], float] = {}  # (forward, unit) → when it was entered
    leaves_at: dict[tuple[int, int], float] = {}
    ends = []
    now = copied = launched = 0.0
    for forward in range(forwards):
        unit = -1
        for index, leaf in enumerate(workload.leaves):
            if index in firsts:
                if unit >= 0:
                    leaves_at[forward, unit] = now
                unit += 1
                enters[forward, unit] = now
                _, _, size, slot = streamed[unit]
                begin = copied if slot else max(copied, now)
                for (other_forward, other), left in leaves_at.items():
                    if other_forward >= forward - 1:
                        beside = streamed[other][3]
                        if other == unit or not slot or not beside or (beside[0] < slot[1] and slot[0] < beside[1]):
                            begin = max(begin, left)
                copied = begin + size / workload.bytes_per_ms
                now = max(now, copied) + workload.unit_overhead_ms
                launched += workload.unit_launch_ms
            launched += each_ms
            now = max(now, launched) + leaf.ms
        if unit >= 0:
            leaves_at[forward, unit] = now
        ends.append(now)
        now += workload.gap_ms
        launched += workload.gap_ms
    half = forwards // 2
    return (ends[-1] - ends[half - 1]) / half - workload.gap_ms


@settings(max_examples=150, deadline=None)
@given(workloads(), st.integers(0, 80), st.randoms(use_true_random=False))
def test_against_the_reference(workload: Workload, room: int, dice) -> None:
    plan = make_plan(workload, workload.fixed_bytes + room * 512)
    if dice.random() < 0.5:  # also slots that no planner would choose
        units = tuple(
            PlannedUnit(u.first, u.stop, u.bytes, 512 * dice.randrange(12), u.resident and dice.random() < 0.5)
            for u in plan.units
        )
        plan = Plan(units, plan.budget_bytes, plan.arena_bytes, 0, 0, 0.0, 0.0, 0.0, plan.loose)
    assert simulate(plan, workload).step_ms == pytest.approx(_reference(plan, workload), rel=2e-2, abs=1e-9)
    track, _ = track_of(plan, workload)
    schedule = run(track)
    period = schedule.step_ms + workload.gap_ms
    for j, wait in enumerate(track.wait):  # nothing is copied over a slot in use
        free = schedule.enter[wait] - (period if wait > j else 0.0)
        assert schedule.begin[j] >= free - 1e-6 * max(1.0, period)
