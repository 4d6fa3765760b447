"""How fast a step could be at a budget, whatever the schedule: the yardstick for every plan."""

from __future__ import annotations

from functools import lru_cache

from lib_async_mover.plan.workload import Workload


def limit_ms(workload: Workload, budget_bytes: int) -> float:
    """No schedule within `budget_bytes` of weights can take less than this many ms a step.

    For a run of leaves with bytes b and compute time c, at most V bytes are there when it starts, so

        limit(V) = max over cyclic runs up to one whole step of  C − c + max(c, (b − V)/B)
                 = C + max(0, max over runs of Σ(b_i/B − c_i) − V/B)

    which makes it a maximum-sum cyclic run (Kadane 1984): O(n). A run over the end of a step also has the gap between
    forwards for its copies. V is what the budget leaves beside `fixed_bytes`. Nor is a step shorter than its launches.
    """
    room = max(0, budget_bytes - workload.fixed_bytes)
    waiting_ms = max(0.0, _heaviest_run_ms(workload) - room / workload.bytes_per_ms)
    return max(workload.launch_ms, workload.compute_ms + waiting_ms)


@lru_cache(maxsize=16)
def _heaviest_run_ms(workload: Workload) -> float:
    """The most by which the bus needs longer than compute, over all cyclic runs up to one whole step."""
    rate = workload.bytes_per_ms
    total = 0.0
    best = best_here = 0.0  # runs inside one step; the empty run counts 0
    least = least_here = 0.0  # what a run over the end leaves out
    for leaf in workload.leaves:
        excess = leaf.bytes / rate - leaf.ms
        total += excess
        best_here = max(0.0, best_here) + excess
        least_here = min(0.0, least_here) + excess
        best = max(best, best_here)
        least = min(least, least_here)
    return max(best, total - least - workload.gap_ms)
