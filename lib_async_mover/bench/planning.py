"""`plan`: what each budget would buy, and which weights it would keep on the device.

From a saved profile it needs no GPU; from a model it measures here first.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

import lib_async_mover as engine

from ..curve import auto_budget, curve, verdict
from ..errors import PlanError
from ..picture import picture
from ..plan import Plan, make_plan
from ..workload import Workload
from .budget import AUTO, Budget
from .device import MIB, Device
from .errors import BenchError
from .inputs import make_inputs
from .shapes import SHAPES
from .table import format_grid
from .weights import random_unet, weight_bytes

logger = logging.getLogger("async_lowvram")

MAX_FORWARDS = 40
MEASURING_MB = 256.0


@dataclass(frozen=True)
class PlanOptions:
    """Where the workload comes from (a file, or a model to measure on `device`), and the budgets to plan for.

    No budgets mean the whole curve.
    """

    budgets: tuple[Budget, ...]
    profile_path: Path | None = None
    model: str | None = None
    device: str = "cpu"
    batch: int = 2
    size_px: int | None = None
    seed: int = 0
    bus_gbps: float | None = None
    bus_ratio: float | None = None
    save_path: Path | None = None


def load_workload(path: Path) -> Workload:
    """Read a profile: one that `--save` wrote, or a recorded one with `h2d_gbps` and `eager_ms`.

    Raises BenchError for a file that is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if isinstance(data, dict) and "eager_ms" in data:
            return Workload.from_profile_json(data)
        return Workload.from_json(text)
    except (OSError, ValueError, PlanError) as error:
        raise BenchError(f"{path} is not a profile: {error}") from error


@torch.no_grad()
def measure_workload(options: PlanOptions) -> Workload:
    """Run the model here until the mover has measured it. Raises BenchError if it never does."""
    if options.model not in SHAPES:
        raise BenchError("say what to plan for: --profile FILE, or --model to measure one here")
    shape, device = SHAPES[options.model], Device(options.device)
    device.leave_room_for_copies()
    dtype = torch.float32 if device.is_cpu else torch.float16
    inputs = make_inputs(
        shape, options.batch, options.size_px or shape.default_size_px, device.torch_device, dtype, options.seed
    )
    unet = random_unet(shape, device.torch_device, dtype, options.seed)
    device.release()
    budget_mb = min(MEASURING_MB, weight_bytes(unet) / MIB / 2)
    mover = engine.attach(unet, device.torch_device, vram_mb=budget_mb, bus_gbps=options.bus_gbps)
    try:
        for forward in range(MAX_FORWARDS):
            inputs.run(unet)
            if mover.settled:
                break
            if forward > MAX_FORWARDS // 2:
                device.synchronize()
        workload = mover.workload()
    finally:
        engine.detach(unet)
    if workload is None:
        raise BenchError(f"{options.model} was not measured within {MAX_FORWARDS} forwards: try again")
    return workload


def on_bus(workload: Workload, options: PlanOptions) -> Workload:
    """The workload on the bus that `options` ask for, or as it is."""
    gbps = options.bus_gbps
    if options.bus_ratio is not None:
        gbps = workload.weight_bytes / (options.bus_ratio * workload.compute_ms * 1e6)
    return workload if gbps is None else workload.scaled(gbps=gbps)


def format_plans(plans: list[tuple[str, Plan]], workload: Workload) -> str:
    """One line per budget under a line about the workload."""
    top = max(1e3 / plan.predicted_ms for _, plan in plans)
    lines = []
    for label, plan in plans:
        its = 1e3 / plan.predicted_ms
        lines.append(
            [
                label,
                f"{plan.budget_bytes / MIB:.0f}",
                f"{plan.predicted_ms:.1f}",
                f"{its:.2f}",
                f"{plan.limit_ms:.1f}",
                f"{plan.stall_ms / plan.predicted_ms:.0%}",
                f"{plan.resident_bytes / MIB:.0f}",
                f"{plan.ring_bytes / MIB:.0f}",
                f"{plan.streamed_units}",
                "#" * round(30 * its / top),
            ]
        )
    about = (
        f"{len(workload.leaves)} leaves, {workload.weight_bytes / MIB:.0f} MiB, {workload.compute_ms:.1f} ms a step "
        f"with everything resident; bus {workload.gbps:.1f} GB/s, {workload.weight_bytes / workload.bytes_per_ms:.1f} "
        "ms to copy everything"
    )
    headings = ["budget", "MB", "ms/step", "it/s", "limit ms", "waiting", "resident", "ring", "copies", "it/s"]
    return f"{about}\n\n{format_grid(headings, lines, bar=True)}"


def plans_for(workload: Workload, budgets: tuple[Budget, ...]) -> list[tuple[str, Plan]]:
    """A labelled plan for each budget, smallest first. Auto takes what the planner would with nothing in its way."""
    plans = []
    for budget in budgets:
        if budget.is_auto:
            budget_bytes = auto_budget(workload, workload.weight_bytes + workload.fixed_bytes)
        else:
            budget_bytes = int(budget.to_mb(workload.weight_bytes + workload.fixed_bytes) * MIB)
        plans.append((budget.label, make_plan(workload, budget_bytes)))
    return sorted(plans, key=lambda labelled: labelled[1].budget_bytes)


def curve_plans(workload: Workload) -> list[tuple[str, Plan]]:
    """A plan for each point of the curve that the user sees, labelled by its share of the weights."""
    whole_mb = (workload.weight_bytes + workload.fixed_bytes) / MIB
    return [
        (f"{point.budget_mb / whole_mb:.0%}", make_plan(workload, round(point.budget_mb * MIB)))
        for point in curve(workload)
    ]


def show_plan(options: PlanOptions) -> int:
    """Print the table and the residency pictures: of the budgets asked for, or of the whole curve and of auto.

    Returns the exit status.
    """
    if options.profile_path is not None:
        workload = load_workload(options.profile_path)
    else:
        workload = measure_workload(options)
    if options.save_path is not None:
        options.save_path.write_text(workload.to_json() + "\n", encoding="utf-8")
    workload = on_bus(workload, options)
    pictured = plans_for(workload, options.budgets or (AUTO,))
    print(format_plans(pictured if options.budgets else curve_plans(workload), workload))
    for label, plan in pictured:
        print(f"\n{label}: {plan.budget_bytes / MIB:.0f} MB, {verdict(plan, workload)}")
        print(picture(plan, workload))
    return 0
