"""Workloads: what is refused, and what another machine makes of one."""

from __future__ import annotations

import math

import pytest

from lib_async_mover.errors import PlanError
from lib_async_mover.plan.workload import LeafCost, Workload

LEAF = LeafCost("a", 1, 1.0)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), 1.0),
        ((LEAF,), 0.0),
        ((LEAF,), math.nan),
        ((LeafCost("a", -1, 1.0),), 1.0),
        ((LeafCost("a", 1, math.inf),), 1.0),
        ((LEAF,), 1.0, -5),
        ((LEAF,), 1.0, 0, frozenset({7})),
        ((LEAF,), 1.0, 0, frozenset(), -0.1),
    ],
)
def test_nonsense_is_refused(arguments: tuple) -> None:
    with pytest.raises(PlanError):
        Workload(*arguments)


def test_another_machine() -> None:
    workload = Workload((LeafCost("a", 4, 1.0), LeafCost("b", 6, 2.0)), gbps=2.0, launch_ms=4.0)
    assert (workload.weight_bytes, workload.bytes_per_ms) == (10, 2e6)
    assert (workload.compute_ms, workload.resident_ms) == (3.0, 4.0)
    slower = workload.scaled(compute=2, gbps=1.0)
    assert (slower.compute_ms, slower.resident_ms, slower.gbps) == (6.0, 6.0, 1.0)
    assert workload.scaled(compute=2).gbps == 2.0
