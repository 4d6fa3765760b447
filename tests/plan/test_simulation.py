"""The simulation: small pipelines by hand, and against a slow reference that asks every slot."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_async_mover.plan.plan import Plan, PlannedUnit
from lib_async_mover.plan.simulation import simulate, waits
from lib_async_mover.plan.workload import LeafCost, Workload
from tests.workloads import workloads

KB = 1024  # the bus of these tests moves one of these per ms


def pipeline(*units: tuple[int, float, int | None], overhead: float = 0.0, gap: float = 0.0) -> tuple[Plan, Workload]:
    """One leaf per unit: (KB, ms, offset in the arena in KB or None for a resident)."""
    leaves = tuple(LeafCost(f"leaf.{i}", size * KB, ms) for i, (size, ms, _) in enumerate(units))
    workload = Workload(leaves, gbps=KB / 1e6, unit_overhead_ms=overhead, gap_ms=gap)
    planned = tuple(
        PlannedUnit(i, i + 1, size * KB, (1000 + 50 * i if offset is None else offset) * KB, offset is None)
        for i, (size, _, offset) in enumerate(units)
    )
    return Plan(planned, 0, 0, 0, 0.0, 0.0, 0.0), workload


def test_all_resident_takes_compute_alone() -> None:
    schedule = simulate(*pipeline((5, 2.0, None), (7, 3.0, None)))
    assert (schedule.step_ms, schedule.stalls_ms, schedule.enter) == (5.0, [], [5.0])


def test_one_slot_for_all_means_copy_and_compute_take_turns() -> None:
    schedule = simulate(*pipeline((4, 1.0, 0), (2, 3.0, 0), overhead=0.5))
    assert schedule.step_ms == pytest.approx(4 + 1.5 + 2 + 3.5)
    assert schedule.stalls_ms == pytest.approx([4, 2])
    assert schedule.begin == pytest.approx([0, 5.5])
    assert schedule.end == pytest.approx([4, 7.5])
    assert schedule.enter == pytest.approx([0, 5.5, 11])


def test_two_slots_hide_the_copies_that_compute_outlasts() -> None:
    # A's next copy may begin when B is entered, B's when A is.
    schedule = simulate(*pipeline((2, 3.0, 0), (2, 3.0, 2)))
    assert schedule.step_ms == pytest.approx(6)
    assert schedule.begin == pytest.approx([-3, 0])
    assert simulate(*pipeline((5, 3.0, 0), (2, 3.0, 5))).step_ms == pytest.approx(5 + 3)  # A arrives 2 ms late


def test_bus_bound_step_is_all_bytes_over_the_bus() -> None:
    schedule = simulate(*pipeline((5, 1.0, 0), (5, 1.0, 5), (5, 1.0, 10)))
    assert schedule.step_ms == pytest.approx(15)
    assert sum(schedule.stalls_ms) == pytest.approx(12)


def test_slot_is_free_when_the_next_streamed_unit_is_entered_not_before() -> None:
    # C shares A's slot. With a resident between A and C, C's copy waits for the resident's end, which is C's entry.
    apart = simulate(*pipeline((1, 1.0, 0), (1, 9.0, None), (4, 1.0, 0)))
    assert apart.step_ms == pytest.approx(1 + 10 + 4 + 1)
    # With a streamed unit there instead, A's slot is free at its entry, and its 9 ms hide C's copy.
    assert simulate(*pipeline((1, 1.0, 0), (1, 9.0, 5), (4, 1.0, 0))).step_ms == pytest.approx(1 + 10 + 1)


def test_last_unit_is_left_at_the_end_of_the_forward_and_the_gap_serves_copies() -> None:
    plan, workload = pipeline((4, 1.0, 0), (1, 5.0, None), gap=3.0)
    assert simulate(plan, workload).step_ms == pytest.approx(1 + 1 + 5)  # 3 of 4 ms of copy in the gap
    plan, workload = pipeline((1, 5.0, None), (4, 1.0, 0), gap=3.0)
    assert simulate(plan, workload).step_ms == pytest.approx(6)  # and the lead hides the rest


def test_a_forward_takes_at_least_what_its_launches_take() -> None:
    plan, workload = pipeline((4, 1.0, 0), (1, 5.0, None))
    launched = replace(workload, launch_ms=10.5, unit_launch_ms=0.25)
    assert simulate(plan, launched).step_ms == pytest.approx(10.75)


def test_a_device_that_waited_catches_up_with_its_cpu_but_not_for_ever() -> None:
    # 9.9 ms on the device, 10 of launches: the first forwards are shorter than the steady one.
    plan, workload = pipeline((1, 4.9, 0), (1, 5.0, 1))
    schedule = simulate(plan, replace(workload, launch_ms=10.0))
    assert schedule.step_ms == pytest.approx(10.0)
    assert schedule.stalls_ms == [0.0, 0.0]


def test_units_that_take_turns_in_waiting_count_by_their_mean() -> None:
    plan, workload = pipeline((3, 1.0, 0), (3, 1.0, 3), (3, 2.0, 0), (1, 2.0, 3))
    assert simulate(plan, workload).step_ms == pytest.approx(reference_ms(plan, workload, forwards=400))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=12))
def test_waits_are_for_the_latest_overlapping_slot(drawn: list[tuple[int, int]]) -> None:
    slots = [(start, start + size) for start, size in drawn]
    count = len(slots)
    for unit, wait in enumerate(waits(slots)):
        start, stop = slots[unit]
        before = [*range(unit + 1, count), *range(unit)]  # from the one after it, a forward ago, to the one before it
        over = [other for other in before if max(slots[other][0], start) < min(slots[other][1], stop)]
        assert wait == (over[-1] if over else unit) + 1


def reference_ms(plan: Plan, workload: Workload, forwards: int = 120) -> float:
    """Mean step in ms of the later half, by asking, before every copy, every earlier use of an overlapping slot."""
    streamed = [unit for unit in plan.units if not unit.resident]
    firsts = {unit.first for unit in streamed}
    each_ms = workload.launch_ms / len(workload.leaves)
    left_at: dict[tuple[int, int], float] = {}  # (forward, unit) → when its slot was free again
    ends = []
    now = copied = launched = 0.0
    for forward in range(forwards):
        index = -1
        for leaf_index, leaf in enumerate(workload.leaves):
            if leaf_index in firsts:
                if index >= 0:
                    left_at[forward, index] = now
                index += 1
                unit = streamed[index]
                begin = copied
                for (other_forward, other), left in left_at.items():
                    beside = streamed[other]
                    overlaps = max(beside.offset, unit.offset) < min(beside.end, unit.end)
                    if other_forward >= forward - 1 and (other == index or overlaps):
                        begin = max(begin, left)
                copied = begin + unit.bytes / workload.bytes_per_ms
                now = max(now, copied) + workload.unit_overhead_ms
                launched += workload.unit_launch_ms
            launched += each_ms
            now = max(now, launched) + leaf.ms
        if index >= 0:
            left_at[forward, index] = now
        ends.append(now)
        now += workload.gap_ms
        launched += workload.gap_ms
    half = forwards // 2
    return (ends[-1] - ends[half - 1]) / half - workload.gap_ms


@settings(max_examples=200, deadline=None)
@given(workloads(), st.randoms(use_true_random=False))
def test_against_the_reference(workload: Workload, dice: Random) -> None:
    """Any units over any slots, whether or not a planner would choose them."""
    count = len(workload.leaves)
    borders = sorted({0, count, *(dice.randrange(count) for _ in range(dice.randrange(count + 1)))})
    units = tuple(
        PlannedUnit(
            first,
            stop,
            bytes=sum(leaf.bytes for leaf in workload.leaves[first:stop]),
            offset=512 * dice.randrange(12),
            resident=dice.random() < 0.3,
        )
        for first, stop in zip(borders, borders[1:], strict=False)
    )
    plan = Plan(units, 0, 0, 0, 0.0, 0.0, 0.0)
    schedule = simulate(plan, workload)
    assert schedule.step_ms == pytest.approx(reference_ms(plan, workload), rel=2e-2, abs=1e-9)
    streamed = [unit for unit in units if not unit.resident]
    period = schedule.step_ms + workload.gap_ms
    for j, wait in enumerate(waits([(unit.offset, unit.end) for unit in streamed])):  # none is copied over what is used
        free = schedule.enter[wait] - (period if wait > j else 0.0)
        assert schedule.begin[j] >= free - 1e-6 * max(1.0, period)
