"""What another megabyte buys: speed against budget, the automatic budget, and advice."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lib_async_mover.errors import PlanError
from lib_async_mover.plan.limit import limit_ms
from lib_async_mover.plan.planner import least_budget_bytes, make_plan
from lib_async_mover.plan.workload import MIB, Workload

STEPS = 96  # that the automatic budget is chosen from: each 5 % above the one before, for SDXL
KNEE = 0.02  # share of the speed that is not worth more VRAM
GAIN = 0.03  # that is worth a word
SMALLER = 0.8  # of the size in use, to be worth a word


@dataclass(frozen=True)
class CurvePoint:
    """Predicted speed at a budget: MiB of VRAM for weights, ms per step, steps per second."""

    budget_mb: float
    step_ms: float
    its_per_s: float


@dataclass(frozen=True)
class Advice:
    """The next best step, by the curve: "larger", "smaller", "best" (stay), or "copies" (stay: copies are what limits
    the speed, and no larger size fits). `budget_mb` is as good as any that fits, `gain` its speed by the present one.
    """

    kind: str
    budget_mb: float
    gain: float


def sizes_mb(workload: Workload) -> list[int]:
    """Sizes to choose from, in whole MiB: from the least budget to everything, three to each doubling."""
    least, most = (math.ceil(count / MIB) for count in (least_budget_bytes(workload), _everything(workload)))
    steps = [quarters << power for power in range(most.bit_length()) for quarters in (4, 5, 6)]
    return [least, *(size for size in steps if least < size < most), *([most] if most > least else [])]


def curve(workload: Workload) -> Iterator[CurvePoint]:
    """Predicted speed at each of `sizes_mb`; more is never slower.

    Lazily: every point is a plan, so whoever has better to do may pause in between.
    """
    best_ms = math.inf
    for size_mb in sizes_mb(workload):
        best_ms = min(best_ms, make_plan(workload, size_mb * MIB).predicted_ms)
        yield CurvePoint(size_mb, best_ms, 1e3 / best_ms if best_ms else math.inf)


def advise(points: Sequence[CurvePoint], used_mb: float, most_mb: float = math.inf) -> Advice:
    """What to do with a budget of `used_mb`, where `most_mb` fit. Gains below 3 % are not worth a word."""
    now = speed_at(points, used_mb)
    fitting = [point for point in points if point.budget_mb <= max(used_mb, most_mb)] or points[:1]
    knee = next(point for point in fitting if point.its_per_s >= (1 - KNEE) * fitting[-1].its_per_s)
    gain = knee.its_per_s / now - 1
    if gain >= GAIN:
        return Advice("larger", knee.budget_mb, gain)
    if knee.budget_mb <= SMALLER * used_mb:
        return Advice("smaller", knee.budget_mb, gain)
    return Advice("copies" if points[-1].its_per_s >= (1 + GAIN) * now else "best", knee.budget_mb, gain)


def auto_budget(workload: Workload, free_bytes: int, tolerance: float = 0.02) -> int:
    """The smallest budget (bytes) found whose step is within `tolerance` of the best that `free_bytes` allow.

    Never less than `least_budget_bytes`, even if that is more than `free_bytes`.
    Raises PlanError if `tolerance` is negative or not a number.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise PlanError(f"The tolerance must be a share of the step, zero or more; found {tolerance!r}.")
    most = max(least_budget_bytes(workload), min(int(free_bytes), _everything(workload)))
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


def speed_at(points: Sequence[CurvePoint], budget_mb: float) -> float:
    """Steps per second at a budget; between two points, on the line."""
    after = bisect_right([point.budget_mb for point in points], budget_mb)
    if after in (0, len(points)):
        return points[min(after, len(points) - 1)].its_per_s
    low, high = points[after - 1], points[after]
    part = (budget_mb - low.budget_mb) / (high.budget_mb - low.budget_mb)
    return low.its_per_s + part * (high.its_per_s - low.its_per_s)


def _everything(workload: Workload) -> int:
    return workload.fixed_bytes + workload.weight_bytes


def _budgets(workload: Workload, count: int) -> list[int]:
    """From the least budget to everything, in up to `count` equal ratios, in bytes."""
    least, most = least_budget_bytes(workload), _everything(workload)
    ratio = most / least if least else 1.0
    return sorted({*(int(least * ratio ** (step / (count - 1))) for step in range(count - 1)), most})
