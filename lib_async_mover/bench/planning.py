"""`plan`: what each budget would buy, in time and in copies. Needs no GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_async_mover.bench.budget import AUTO, budget_mb
from lib_async_mover.bench.profiles import load_workload
from lib_async_mover.bench.table import table
from lib_async_mover.plan.budget import auto_budget, sizes_mb
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.planner import make_plan
from lib_async_mover.plan.workload import MIB, Workload


def write_plans(
    profile: Path, budgets: tuple[str, ...], bus_gbps: float | None, bus_ratio: float | None, json_path: Path | None
) -> int:
    """Print the table of the budgets, or without any that of the whole curve.

    The table's rows go to `json_path`. Returns the exit status. Raises BenchError for a file that is no profile.
    """
    workload = load_workload(profile)
    if bus_ratio is not None:
        bus_gbps = workload.weight_bytes / (bus_ratio * workload.compute_ms * 1e6)
    workload = workload.scaled(gbps=bus_gbps)
    plans = [(budget, plan_for(budget, workload)) for budget in budgets or map(str, sizes_mb(workload))]
    if json_path is not None:
        json_path.write_text(json.dumps([plan_row(plan) for _, plan in plans], indent=1) + "\n", encoding="utf-8")
    print(format_plans(plans, workload))
    return 0


def plan_for(budget: str, workload: Workload) -> Plan:
    """The plan for a budget. Auto takes what the planner would with nothing in its way."""
    whole_bytes = workload.weight_bytes + workload.fixed_bytes
    asked_bytes = round(budget_mb(budget, whole_bytes) * MIB)
    return make_plan(workload, auto_budget(workload, whole_bytes) if budget == AUTO else asked_bytes)


def plan_row(plan: Plan) -> dict[str, Any]:
    """What a plan comes to, for `--json`: the budget, ms a step, the least possible, MiB copied a step, all units."""
    return {
        "budget_mb": plan.budget_bytes / MIB,
        "predicted_ms": plan.predicted_ms,
        "limit_ms": plan.limit_ms,
        "streamed_mib": plan.streamed_bytes / MIB,
        "units": len(plan.units),
    }


def format_plans(plans: Sequence[tuple[str, Plan]], workload: Workload) -> str:
    """One line per plan under a line about the workload."""
    lines = [
        [budget, *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in plan_row(plan).values())]
        for budget, plan in plans
    ]
    return (
        f"{len(workload.leaves)} leaves, {workload.weight_bytes / MIB:.0f} MiB, {workload.compute_ms:.1f} ms a step "
        f"with everything resident; bus {workload.gbps:.1f} GB/s, {workload.weight_bytes / workload.bytes_per_ms:.1f} "
        f"ms to copy everything\n\n{table(('budget', *plan_row(plans[0][1])), lines)}"
    )
