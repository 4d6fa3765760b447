"""Curve, automatic budget and advice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib_async_mover.errors import PlanError
from lib_async_mover.plan import planner
from lib_async_mover.plan.budget import CurvePoint, advise, auto_budget, curve, sizes_mb
from lib_async_mover.plan.planner import least_budget_bytes, make_plan
from lib_async_mover.plan.workload import MIB, Workload
from tests.plan.test_planner import machine_factor
from tests.workloads import at_ratio, laptop, profile, workloads

SD15 = "sd15_b2_512"


def test_curve_goes_from_the_least_budget_to_everything() -> None:
    workload = laptop(profile(SD15))
    points = list(curve(workload))
    sizes = [point.budget_mb for point in points]
    assert sizes == sizes_mb(workload) and len(sizes) < 25
    assert sizes[0] == math.ceil(least_budget_bytes(workload) / MIB) and {256, 320, 384, 512, 640, 768} < set(sizes)
    assert points[-1].step_ms == pytest.approx(workload.compute_ms)
    for before, after in pairwise(points):
        assert after.budget_mb > before.budget_mb
        assert after.step_ms <= before.step_ms
        planned_ms = make_plan(workload, int(after.budget_mb) * MIB).predicted_ms
        assert planned_ms * 0.99 <= after.step_ms <= planned_ms
    assert points[3].its_per_s == pytest.approx(1e3 / points[3].step_ms)


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_curve_of_any_model(workload: Workload) -> None:
    points = list(curve(workload))
    assert 0 <= points[-1].budget_mb * MIB - workload.fixed_bytes - workload.weight_bytes < MIB
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


RISING = [CurvePoint(mb, 1e3 / its, its) for mb, its in ((32, 4.0), (64, 4.4), (128, 5.0), (256, 5.9), (512, 6.0))]


@pytest.mark.parametrize(
    ("used_mb", "most_mb", "kind", "budget_mb", "gain"),
    [
        (64, math.inf, "larger", 256, 5.9 / 4.4 - 1),
        (96, math.inf, "larger", 256, 5.9 / 4.7 - 1),
        (64, 200, "larger", 128, 5.0 / 4.4 - 1),
        (64, 64, "copies", 64, 0.0),
        (64, 10, "copies", 64, 0.0),
        (256, math.inf, "best", 256, 0.0),
        (250, math.inf, "best", 256, 5.9 / (5 + 0.9 * 122 / 128) - 1),
        (512, math.inf, "smaller", 256, 5.9 / 6.0 - 1),
        (9000, math.inf, "smaller", 256, 5.9 / 6.0 - 1),
        (1, math.inf, "larger", 256, 5.9 / 4.0 - 1),
    ],
)
def test_advice(used_mb: float, most_mb: float, kind: str, budget_mb: float, gain: float) -> None:
    found = advise(RISING, used_mb, most_mb)
    assert (found.kind, found.budget_mb) == (kind, budget_mb)
    assert found.gain == pytest.approx(gain)


@settings(max_examples=60, deadline=None)
@given(workloads(), st.floats(0, 5000), st.floats(0, 5000))
def test_advice_is_worth_its_press_and_once_taken_is_kept(workload: Workload, used_mb: float, most_mb: float) -> None:
    points = list(curve(workload))
    assume(workload.weight_bytes > 0 and points[-1].step_ms > 1e-6)
    found = advise(points, used_mb, most_mb)
    assert {"larger": found.gain >= 0.03, "smaller": found.budget_mb <= 0.8 * used_mb}.get(found.kind, True)
    if found.kind in ("larger", "smaller"):
        assert found.budget_mb <= max(used_mb, most_mb, points[0].budget_mb)
        assert advise(points, found.budget_mb, max(used_mb, most_mb)).kind in ("best", "copies")
