"""Plans: promises that hold for any model, how close they come to the limit, and what making one costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_async_mover.errors import PlanError
from lib_async_mover.plan import planner
from lib_async_mover.plan.limit import limit_ms
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.planner import least_budget_bytes, make_plan, whole_plan
from lib_async_mover.plan.simulation import PrefixSums, simulate
from lib_async_mover.plan.workload import MIB, LeafCost, Workload
from tests.workloads import PROFILES, at_ratio, laptop, launch_bound, profile, workloads

RATIOS = (0.3, 0.5, 1.0, 2.0, 4.0)
SHARES = st.floats(0, 1.1)  # of the way from the least budget to all weights


def check(plan: Plan, workload: Workload) -> None:
    """What the engine relies on."""
    assert plan.arena_bytes == plan.resident_bytes + plan.ring_bytes <= plan.budget_bytes - workload.fixed_bytes
    leaves = [leaf for unit in plan.units for leaf in range(unit.first, unit.stop)]
    assert leaves == list(range(len(workload.leaves)))
    position = 0
    for before, unit in zip((None, *plan.units), plan.units, strict=False):
        assert unit.bytes == sum(leaf.bytes for leaf in workload.leaves[unit.first : unit.stop])
        assert not any(unit.first < barrier < unit.stop for barrier in workload.barriers)
        if unit.resident:
            assert unit.offset == position
            position = unit.end
            assert not (before and before.resident) or unit.first in workload.barriers  # as few as can be
        else:
            assert plan.resident_bytes <= unit.offset and unit.end <= plan.arena_bytes
    assert position == plan.resident_bytes == workload.weight_bytes - plan.streamed_bytes
    assert plan.streamed_units == sum(not unit.resident for unit in plan.units)
    schedule = simulate(plan, workload)
    assert schedule.step_ms == pytest.approx(plan.predicted_ms, rel=1e-9)
    assert sum(schedule.stalls_ms) == pytest.approx(plan.stall_ms)
    assert plan.limit_ms == limit_ms(workload, plan.budget_bytes)
    assert plan.predicted_ms >= plan.limit_ms * (1 - 1e-6) - 1e-9


def budget_at(workload: Workload, share: float) -> int:
    least = least_budget_bytes(workload)
    return int(least + share * (workload.fixed_bytes + workload.weight_bytes - least))


@settings(max_examples=250, deadline=None)
@given(workloads(), SHARES)
def test_promises_on_any_model(workload: Workload, share: float) -> None:
    plan = make_plan(workload, budget_at(workload, share))
    check(plan, workload)
    if share >= 1:
        assert plan.streamed_units == 0
        assert plan.predicted_ms == pytest.approx(workload.resident_ms)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(PROFILES), st.sampled_from(RATIOS), st.floats(0, 0.6), st.floats(0.1, 0.4), st.data())
def test_promises_on_recorded_models(name: str, ratio: float, share: float, more: float, data: st.DataObject) -> None:
    recorded = at_ratio(profile(name), ratio)
    workload = replace(
        recorded,
        fixed_bytes=data.draw(st.sampled_from((0, 13 * MIB))),
        barriers=data.draw(st.frozensets(st.integers(1, len(recorded.leaves) - 1), max_size=8)),
        unit_overhead_ms=data.draw(st.sampled_from((0.0, 0.02, 0.08))),
        gap_ms=data.draw(st.sampled_from((0.0, 3.0))),
        launch_ms=recorded.compute_ms * data.draw(st.sampled_from((0.0, 0.5, 0.98, 1.6))),
        unit_launch_ms=data.draw(st.sampled_from((0.0, 0.08))),
    )
    smaller = make_plan(workload, budget_at(workload, share))
    larger = make_plan(workload, budget_at(workload, share + more))
    check(smaller, workload)
    check(larger, workload)
    assert larger.predicted_ms <= smaller.predicted_ms * 1.01


def test_equal_workloads_have_equal_plans() -> None:
    workload = laptop(profile("sd15_b2_512"))
    plan = make_plan(workload, 300 * MIB)
    planner._make_plan.cache_clear()
    assert make_plan(workload.scaled(), 300 * MIB) == plan


@pytest.mark.parametrize(("machine", "most"), [(lambda w: w, 1.045), (laptop, 1.03)], ids=["h200", "laptop"])
@pytest.mark.parametrize("name", PROFILES)
def test_near_the_limit(name: str, machine: Callable[[Workload], Workload], most: float) -> None:
    """What is left on a fast machine is 0.02 ms for each of some dozens of units, in a step of 20 to 40 ms."""
    workload = machine(profile(name))
    for budget in (128 * MIB, 256 * MIB, 512 * MIB, 1024 * MIB, workload.weight_bytes // 2):
        plan = make_plan(workload, budget)
        assert plan.predicted_ms <= most * plan.limit_ms, f"{budget / MIB:.0f} MB"


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", ["sd15_b2_768", "sdxl_b2_768"])
def test_near_the_limit_whatever_the_bus(name: str, ratio: float) -> None:
    workload = at_ratio(profile(name), ratio)
    for share in (0.05, 0.2, 0.5, 0.9):
        plan = make_plan(workload, max(int(share * workload.weight_bytes), 128 * MIB))
        assert plan.predicted_ms <= (1.045 if ratio >= 1 else 1.06) * plan.limit_ms, f"{share:.0%}"


def test_residents_win_over_a_ring_where_the_bus_binds() -> None:
    workload = profile("sdxl_b2_1024")  # a ring alone moves all weights every step: 92.7 ms
    plan = make_plan(workload, workload.weight_bytes // 2)
    assert plan.predicted_ms < 75
    assert plan.resident_bytes > 500 * MIB


def test_overhead_is_traded_for_fewer_units() -> None:
    def copies(overhead_ms: float) -> int:
        return make_plan(replace(profile("sd15_b2_512"), unit_overhead_ms=overhead_ms), 512 * MIB).streamed_units

    assert copies(0.2) < 0.75 * copies(0.02)


@pytest.mark.parametrize("name", ["sd15_b2_512", "sdxl_b2_1024"])
def test_few_units_where_launches_bind(name: str) -> None:
    """A unit takes the CPU's time, so what counts is how few there are."""
    workload = launch_bound(profile(name))
    for share, most in ((0.5, 1.12), (0.6, 1.07), (0.7, 1.05), (0.8, 1.05), (0.9, 1.04)):
        plan = make_plan(workload, int(share * workload.weight_bytes))
        assert plan.predicted_ms <= most * plan.limit_ms, f"{share:.0%}"
        assert share < 0.7 or plan.streamed_units <= 20, f"{share:.0%}"


def test_a_device_that_waited_for_weights_catches_up_with_its_cpu() -> None:
    """Launches take 20 ms, kernels 10. Nearly all weights are one leaf's, so they come while nothing computes: 6 ms."""
    leaves = tuple(LeafCost(f"l.{i}", 6 * MIB if i == 4 else 512, 1.0) for i in range(10))
    workload = Workload(leaves, gbps=MIB / 1e6, launch_ms=20.0)
    assert make_plan(workload, 6 * MIB).predicted_ms == pytest.approx(20.0, rel=1e-3)


@pytest.mark.parametrize("name", PROFILES)
def test_of_equal_plans_the_one_that_moves_the_fewest_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute outlasts the bus eight times: everything could be streamed unseen, but need not be."""
    workload = profile(name).scaled(compute=8)
    budget = workload.weight_bytes // 2
    planner._make_plan.cache_clear()
    plan = make_plan(workload, budget)
    assert plan.streamed_bytes < 0.6 * workload.weight_bytes
    monkeypatch.setattr(planner, "EQUAL", 1.0)
    fastest = planner._make_plan.__wrapped__(workload, budget)
    assert plan.streamed_bytes <= fastest.streamed_bytes
    assert fastest.predicted_ms <= plan.predicted_ms <= fastest.predicted_ms * 1.006


def test_the_least_budget_is_what_stands_and_the_largest_leaf() -> None:
    leaves = tuple(LeafCost(f"l.{i}", size * 512, 1.0) for i, size in enumerate((1, 2, 9, 1, 1, 12)))
    workload = Workload(leaves, gbps=1e-3, fixed_bytes=1000)
    least = least_budget_bytes(workload)
    assert least == 1000 + 12 * 512
    check(make_plan(workload, least), workload)
    with pytest.raises(PlanError, match=f"at least {least} bytes.*found {least - 1}"):
        make_plan(workload, least - 1)


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf"), True])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: float) -> None:
    with pytest.raises(PlanError, match="budget"):
        make_plan(Workload((LeafCost("a", 0, 1.0),), gbps=1.0), budget)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(workloads())
def test_whole_plans_are_cut_at_barriers_alone(workload: Workload) -> None:
    plan = whole_plan(workload)
    check(plan, workload)
    assert all(unit.resident for unit in plan.units)
    assert {unit.first for unit in plan.units} == {0, *workload.barriers}
    assert plan.budget_bytes == workload.fixed_bytes + workload.weight_bytes


def machine_factor() -> float:
    """How much slower than a quiet machine (0.075 s for this loop) this one is right now; at least 1."""
    begin = time.process_time()
    total = 0
    for number in range(1_000_000):
        total += number & 7
    return max(1.0, (time.process_time() - begin) / 0.075)


def planning_s(workload: Workload, budget_bytes: int) -> float:
    """CPU time of a plan, the least of three."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        planner._make_plan.__wrapped__(workload, budget_bytes)
        times.append(time.process_time() - begin)
    return min(times)


@pytest.mark.parametrize("budget_mb", [128, 1024, 2400])
@pytest.mark.parametrize("machine", [lambda w: w, launch_bound, lambda w: w.scaled(compute=8, gbps=8)])
def test_planned_in_a_fifth_of_a_second(budget_mb: int, machine: Callable[[Workload], Workload]) -> None:
    assert planning_s(machine(profile("sdxl_b2_1024")), budget_mb * MIB) <= 0.2 * machine_factor()


def test_thousands_of_equal_leaves_in_a_second() -> None:
    leaves = tuple(LeafCost(f"l.{i}", MIB, 0.1) for i in range(3000))
    for gbps in (5.0, 10.0, 20.0):
        assert planning_s(Workload(leaves, gbps), 1000 * MIB) <= 1.0 * machine_factor()


def test_prefix_sums() -> None:
    sums = PrefixSums(Workload((LeafCost("a", 3, 1.0), LeafCost("b", 4, 0.5)), gbps=1.0, launch_ms=4.0))
    assert sums.size((0, 2)) == 7
    assert sums.late_ms(0, 2) == 4.5  # the last kernel is launched after 4 ms
    assert sums.late_ms(1, 1) == 0.0
