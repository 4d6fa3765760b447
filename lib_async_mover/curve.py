"""What another megabyte buys: speed against budget, the automatic budget, and the sentence about a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence

from lib_async_mover.errors import PlanError
from lib_async_mover.limit import limit_ms
from lib_async_mover.plan import Plan
from lib_async_mover.search import search_of
from lib_async_mover.workload import MIB, Workload

_POINTS = 24
_NOTICED = 0.02  # share of a step spent waiting that is worth a word
_AS_FAST = 0.01


@dataclass(frozen=True)
class CurvePoint:
    """Predicted speed at a budget: MiB of VRAM for weights, ms per step, steps per second."""

    budget_mb: float
    step_ms: float
    its_per_s: float


def curve(workload: Workload, budgets: Sequence[int] | None = None) -> tuple[CurvePoint, ...]:
    """
    Predicted speed at `budgets` (bytes, any order), by default at up to 24 from the least useful one to everything.

    The same numbers as `make_plan` predicts. A step over nothing (0 ms) counts as infinitely fast.
    """
    search = search_of(workload)
    if budgets is None:
        grid = [budget for budget in search.grid if budget >= workload.fixed_bytes + search.outline.largest]
        stride = max(1.0, (len(grid) - 1) / (_POINTS - 1))
        budgets = [grid[min(round(number * stride), len(grid) - 1)] for number in range(min(_POINTS, len(grid)))]
    points = []
    for budget in budgets:
        step_ms = search.best(budget).step_ms
        points.append(CurvePoint(budget / MIB, step_ms, 1e3 / step_ms if step_ms > 0 else math.inf))
    return tuple(points)


def auto_budget(workload: Workload, free_bytes: int, tolerance: float = 0.02) -> int:
    """
    The smallest budget (bytes) whose step is within `tolerance` of the best one that `free_bytes` allow.

    Counted as budgets are: with the workload's `fixed_bytes`. `free_bytes` itself if nothing smaller is known.
    Raises PlanError if `tolerance` is negative or not a number.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise PlanError(f"The tolerance must be a share of the step, zero or more; found {tolerance!r}.")
    free_bytes = max(0, int(free_bytes))
    target_ms = search_of(workload).best(free_bytes).step_ms * (1 + tolerance)
    return _smallest(workload, free_bytes, target_ms)


def verdict(plan: Plan, workload: Workload) -> str:
    """One sentence that the user can act on: which resource binds, and which way to move the budget."""
    if not workload.compute_ms or not plan.predicted_ms:
        return "nothing to compute: any buffer will do"
    waiting = plan.stall_ms / plan.predicted_ms
    if waiting >= _NOTICED:
        return f"bus-bound, waiting {waiting:.0%} of the step: a larger buffer helps".replace("%", " %")
    enough = _enough(workload, plan.budget_bytes, plan.predicted_ms * (1 + _AS_FAST))
    if enough <= plan.budget_bytes * 0.95:
        return f"compute-bound: a buffer of {math.ceil(enough / MIB)} MB would be as fast"
    return "compute-bound: a larger buffer would not help"


def _smallest(workload: Workload, most_bytes: int, target_ms: float) -> int:
    """The smallest grid budget up to `most_bytes` that reaches `target_ms`, by bisection; `most_bytes` if none does."""
    search = search_of(workload)
    grid = [
        budget
        for budget in search.grid
        if budget <= most_bytes
        and budget >= min(most_bytes, workload.fixed_bytes + search.outline.largest)
        and limit_ms(workload, budget) <= target_ms
    ]
    low, high = 0, len(grid)
    while low < high:
        middle = (low + high) // 2
        if search.best(grid[middle]).step_ms <= target_ms:
            high = middle
        else:
            low = middle + 1
    return grid[low] if low < len(grid) else most_bytes


_enough = lru_cache(maxsize=64)(_smallest)
