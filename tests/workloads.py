"""Workloads for planner tests: the recorded profiles on other machines, and random ones."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from hypothesis import strategies as st

from lib_async_mover.bench.profiles import workload_of_profile
from lib_async_mover.plan.workload import LeafCost, Workload

FOLDER = Path(__file__).parent / "profiles"
PROFILES = tuple(path.stem.removeprefix("profile_") for path in sorted(FOLDER.glob("profile_*.json")))


@lru_cache
def profile(name: str) -> Workload:
    """A recorded forward, on the machine that it was recorded on."""
    return workload_of_profile(json.loads((FOLDER / f"profile_{name}.json").read_text()))


def laptop(workload: Workload) -> Workload:
    """DESIGN.md 4's RTX 3060 Laptop: six times the compute time, 12 GB/s."""
    return workload.scaled(compute=6, gbps=12)


def at_ratio(workload: Workload, ratio: float) -> Workload:
    """Compute : copy as given: by a slower bus, or, above what was recorded, by more compute (a larger batch)."""
    recorded = workload.compute_ms * workload.bytes_per_ms / workload.weight_bytes
    if ratio > recorded:
        return workload.scaled(compute=ratio / recorded)
    return workload.scaled(gbps=workload.gbps * ratio / recorded)


def launch_bound(workload: Workload) -> Workload:
    """A fast GPU behind a CPU that takes half as long again to launch what it computes."""
    copy_ms = workload.weight_bytes / workload.bytes_per_ms
    faster = workload.scaled(compute=0.42 * copy_ms / workload.compute_ms)
    return replace(faster, unit_overhead_ms=0.01, launch_ms=0.66 * copy_ms, unit_launch_ms=0.08)


@st.composite
def workloads(draw: st.DrawFn, least: int = 1, most: int = 14) -> Workload:
    """A few leaves of a few sizes, with and without overhead, gap, fixed bytes and barriers."""
    unit = draw(st.sampled_from((1, 512, 700, 4096)))
    sizes = draw(st.lists(st.integers(0, 9), min_size=least, max_size=most))
    times = draw(st.lists(st.sampled_from((0.0, 0.01, 0.1, 0.5, 3.0)), min_size=len(sizes), max_size=len(sizes)))
    leaves = tuple(
        LeafCost(f"blocks.{index // 3}.{index}", size * unit, ms)
        for index, (size, ms) in enumerate(zip(sizes, times, strict=True))
    )
    kilobytes_per_ms = draw(st.sampled_from((0.5, 2.0, 10.0, 100.0)))
    return Workload(
        leaves,
        gbps=kilobytes_per_ms / 1e3,
        fixed_bytes=draw(st.sampled_from((0, 512, 10_000))),
        barriers=draw(st.frozensets(st.integers(0, len(leaves) - 1), max_size=3)),
        unit_overhead_ms=draw(st.sampled_from((0.0, 0.02, 0.2))),
        gap_ms=draw(st.sampled_from((0.0, 0.05, 2.0))),
        launch_ms=draw(st.sampled_from((0.0, 0.0, 5.0))),
        unit_launch_ms=draw(st.sampled_from((0.0, 0.1))),
    )
