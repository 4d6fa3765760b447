"""What another megabyte buys: speed against budget, the automatic budget, and the sentence about a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lib_async_mover.errors import PlanError
from lib_async_mover.plan.limit import limit_ms
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.planner import least_budget_bytes, make_plan
from lib_async_mover.plan.workload import MIB, Workload

POINTS = 20  # of the curve
STEPS = 96  # that the automatic budget is chosen from: each 5 % above the one before, for SDXL
NOTICED = 0.02  # share of a step spent waiting that is worth a word
AS_FAST = 0.01


@dataclass(frozen=True)
class CurvePoint:
    """Predicted speed at a budget: MiB of VRAM for weights, ms per step, steps per second."""

    budget_mb: float
    step_ms: float
    its_per_s: float


def curve(workload: Workload) -> Iterator[CurvePoint]:
    """Predicted speed at up to 20 budgets, each some per cent above the one before; more is never slower.

    Lazily: every point is a plan, so whoever has better to do may pause in between.
    """
    best_ms = math.inf
    for budget_bytes in _budgets(workload, POINTS):
        best_ms = min(best_ms, make_plan(workload, budget_bytes).predicted_ms)
        yield CurvePoint(budget_bytes / MIB, best_ms, 1e3 / best_ms if best_ms else math.inf)


def auto_budget(workload: Workload, free_bytes: int, tolerance: float = 0.02) -> int:
    """The smallest budget (bytes) found whose step is within `tolerance` of the best that `free_bytes` allow.

    Never less than `least_budget_bytes`, even if that is more than `free_bytes`.
    Raises PlanError if `tolerance` is negative or not a number.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise PlanError(f"The tolerance must be a share of the step, zero or more; found {tolerance!r}.")
    everything = workload.fixed_bytes + workload.weight_bytes
    most = max(least_budget_bytes(workload), min(int(free_bytes), everything))
    target_ms = make_plan(workload, most).predicted_ms * (1 + tolerance)
    grid = [budget for budget in _budgets(workload, STEPS) if budget < most and limit_ms(workload, budget) <= target_ms]
    low, high = 0, len(grid)
    while low < high:
        middle = (low + high) // 2
        if make_plan(workload, grid[middle]).predicted_ms <= target_ms:
            high = middle
        else:
            low = middle + 1
    return grid[low] if low < len(grid) else most


def verdict(plan: Plan, workload: Workload) -> str:
    """One sentence that the user can act on: which resource binds, and which way to move the budget."""
    if not workload.compute_ms or not plan.predicted_ms:
        return "nothing to compute: any buffer will do"
    waiting = plan.stall_ms / plan.predicted_ms
    if waiting >= NOTICED:
        return f"bus-bound, waiting {waiting:.0%} of the step: a larger buffer helps".replace("%", " %")
    enough = auto_budget(workload, plan.budget_bytes, AS_FAST)
    if enough <= plan.budget_bytes * 0.95:
        return f"compute-bound: a buffer of {math.ceil(enough / MIB)} MB would be as fast"
    return "compute-bound: a larger buffer would not help"


def _budgets(workload: Workload, count: int) -> list[int]:
    """From the least budget to everything, in up to `count` equal ratios, in bytes."""
    least, most = least_budget_bytes(workload), workload.fixed_bytes + workload.weight_bytes
    ratio = most / least if least else 1.0
    return sorted({*(int(least * ratio ** (step / (count - 1))) for step in range(count - 1)), most})
