"""Curve, automatic budget and verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_async_mover.errors import PlanError
from lib_async_mover.plan import planner
from lib_async_mover.plan.budget import auto_budget, curve, verdict
from lib_async_mover.plan.planner import least_budget_bytes, make_plan
from lib_async_mover.plan.workload import MIB, LeafCost, Workload
from tests.plan.test_planner import machine_factor
from tests.workloads import at_ratio, laptop, profile, workloads

SD15 = "sd15_b2_512"


def test_curve_goes_from_the_least_budget_to_everything() -> None:
    workload = laptop(profile(SD15))
    points = list(curve(workload))
    assert len(points) == 20
    assert points[0].budget_mb == least_budget_bytes(workload) / MIB
    assert points[-1].step_ms == pytest.approx(workload.compute_ms)
    for before, after in pairwise(points):
        assert after.budget_mb > before.budget_mb
        assert after.step_ms <= before.step_ms
        planned_ms = make_plan(workload, round(after.budget_mb * MIB)).predicted_ms
        assert planned_ms * 0.99 <= after.step_ms <= planned_ms
    assert points[3].its_per_s == pytest.approx(1e3 / points[3].step_ms)


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_curve_of_any_model(workload: Workload) -> None:
    points = list(curve(workload))
    assert points[-1].budget_mb * MIB == workload.fixed_bytes + workload.weight_bytes
    assert points[-1].step_ms == pytest.approx(workload.resident_ms)
    assert all(after.step_ms <= before.step_ms for before, after in pairwise(points))


def test_a_curve_in_two_seconds() -> None:
    workload = profile("sdxl_b2_1024")
    planner._make_plan.cache_clear()
    begin = time.process_time()
    list(curve(workload))
    assert time.process_time() - begin <= 2.0 * machine_factor()


@pytest.mark.parametrize("name", [SD15, "sdxl_b2_1024"])
@pytest.mark.parametrize("machine", [lambda w: w, laptop, lambda w: at_ratio(w, 0.4)], ids=["h200", "laptop", "slow"])
def test_auto_is_small_and_as_fast_as_any(name: str, machine: Callable[[Workload], Workload]) -> None:
    workload = machine(profile(name))
    budget = auto_budget(workload, 24 << 30)
    assert make_plan(workload, budget).predicted_ms <= workload.compute_ms * 1.02
    assert make_plan(workload, int(budget / 1.15)).predicted_ms > workload.compute_ms * 1.02


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(0, 60_000), st.sampled_from((0.0, 0.02, 0.5)))
def test_auto_keeps_its_promise(workload: Workload, free: int, tolerance: float) -> None:
    least = least_budget_bytes(workload)
    budget = auto_budget(workload, free, tolerance)
    assert least <= budget <= max(free, least)
    best_ms = make_plan(workload, max(free, least)).predicted_ms
    assert make_plan(workload, budget).predicted_ms <= best_ms * (1 + tolerance) + 1e-9


def test_auto_refuses_nonsense() -> None:
    with pytest.raises(PlanError, match="tolerance"):
        auto_budget(profile(SD15), 1 << 30, float("nan"))


def test_verdict_on_a_bus_bound_plan() -> None:
    workload = profile(SD15)
    plan = make_plan(workload, 128 * MIB)
    waiting = round(100 * plan.stall_ms / plan.predicted_ms)
    assert verdict(plan, workload) == f"bus-bound, waiting {waiting} % of the step: a larger buffer helps"


def test_verdict_on_a_compute_bound_plan_names_a_smaller_buffer_that_does_as_well() -> None:
    workload = laptop(profile(SD15))
    plan = make_plan(workload, 1500 * MIB)
    text = verdict(plan, workload)
    assert text.startswith("compute-bound: a buffer of ") and text.endswith(" MB would be as fast")
    smaller_mb = int(text.split()[4])
    assert smaller_mb < 1000
    assert make_plan(workload, smaller_mb * MIB).predicted_ms <= plan.predicted_ms * 1.015


def test_verdict_where_nothing_is_to_be_gained() -> None:
    workload = laptop(profile("sdxl_b2_1024"))
    plan = make_plan(workload, auto_budget(workload, 24 << 30))
    assert verdict(plan, workload) == "compute-bound: a larger buffer would not help"
    idle = Workload((LeafCost("a", 512, 0.0),), gbps=1.0)
    assert verdict(make_plan(idle, 1 << 20), idle) == "nothing to compute: any buffer will do"
