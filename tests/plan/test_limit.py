"""The limit against its definition, run by run."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_async_mover.plan.limit import limit_ms
from lib_async_mover.plan.workload import MIB, LeafCost, Workload
from tests.workloads import laptop, profile, workloads


def by_definition(workload: Workload, budget_bytes: int) -> float:
    """Max over cyclic runs up to one whole step of C − c + max(c, (b − V)/B)."""
    count, compute_ms = len(workload.leaves), workload.compute_ms
    room = max(0, budget_bytes - workload.fixed_bytes)
    worst = max(compute_ms, workload.launch_ms)
    for first in range(count):
        size, ms = 0, 0.0
        for step in range(count):
            leaf = workload.leaves[(first + step) % count]
            size += leaf.bytes
            ms += leaf.ms
            gap_ms = workload.gap_ms if first + step >= count else 0.0
            step_ms = compute_ms - ms + max(ms + gap_ms, (size - room) / workload.bytes_per_ms)
            worst = max(worst, step_ms - gap_ms)
    return worst


@settings(max_examples=200, deadline=None)
@given(workloads(), st.integers(0, 60_000))
def test_against_the_definition(workload: Workload, budget_bytes: int) -> None:
    assert limit_ms(workload, budget_bytes) == pytest.approx(by_definition(workload, budget_bytes))


@settings(max_examples=100, deadline=None)
@given(workloads(), st.integers(0, 60_000), st.integers(0, 60_000))
def test_it_falls_with_the_budget(workload: Workload, budget: int, more: int) -> None:
    assert limit_ms(workload, budget + more) <= limit_ms(workload, budget)


def test_a_heavy_run_over_the_end_of_a_step() -> None:
    leaves = (LeafCost("a", 4000, 1.0), LeafCost("b", 0, 10.0), LeafCost("c", 4000, 1.0))
    workload = Workload(leaves, gbps=1e-3)  # 1000 bytes per ms
    # c and a: 8 ms of copies in 2 ms of compute; 3 ms of them are there; the whole step alone would say 12.
    assert limit_ms(workload, 3000) == pytest.approx(12 - 2 + 5)
    assert limit_ms(Workload(leaves, gbps=1e-3, gap_ms=2.0), 3000) == pytest.approx(12 - 2 + 5 - 2)


def test_a_laptop() -> None:
    workload = laptop(profile("sd15_b2_512"))
    for budget_mb, expected in ((128, 214), (256, 203), (512, 180), (768, 172)):
        # Taken where a step took 172 ms; the recorded profile sums to 168.6.
        assert limit_ms(workload, budget_mb * MIB) == pytest.approx(expected, rel=0.035)


def test_fast_enough_to_draw_a_curve() -> None:
    workload = profile("sdxl_b2_1024").scaled(compute=1.01)  # not asked about before
    begin = time.process_time()
    limit_ms(workload, 128 * MIB)
    assert time.process_time() - begin < 0.05
