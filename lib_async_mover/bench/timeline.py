"""Draws one forward as the planner sees it: when each unit is copied, when it computes, when the GPU waits."""

from __future__ import annotations

from html import escape
from pathlib import Path

from lib_async_mover.bench.profiles import load_workload
from lib_async_mover.plan.planner import make_plan
from lib_async_mover.plan.simulation import simulate
from lib_async_mover.plan.workload import MIB, Workload

WIDTH, LEFT, RIGHT, LANE, GAP, TOP, BOTTOM = 900, 70, 10, 26, 14, 44, 30
LANES = ("copy", "compute", "waiting")
STYLE = """
text { font: 11px sans-serif; fill: #444 }
.title { font-weight: bold; font-size: 13px }
.copy { fill: #f97316 } .compute { fill: #3b82f6 } .waiting { fill: #ef4444 }
.axis { stroke: #999 }
.paper { fill: #fff }
"""


def timeline(workload: Workload, budget_mb: float) -> str:
    """The SVG of one steady forward within `budget_mb` MiB. Times are simulated from the measured ones."""
    plan = make_plan(workload, int(budget_mb * MIB))
    schedule = simulate(plan, workload)
    first = min([0.0, *schedule.begin])  # copies for the first units begin in the forward before
    scale = (WIDTH - LEFT - RIGHT) / (schedule.enter[-1] - first)
    axis_y = TOP + len(LANES) * (LANE + GAP)

    def x(ms: float) -> float:
        return round(LEFT + (ms - first) * scale, 2)

    def bar(lane: int, begin: float, end: float) -> str:
        y, width = TOP + lane * (LANE + GAP), max(0.4, x(end) - x(begin) - 0.3)
        return f'<rect class="{LANES[lane]}" x="{x(begin)}" y="{y}" width="{width:.2f}" height="{LANE}"/>'

    bars = [bar(1, 0.0, schedule.enter[0])]  # residents before the first streamed unit
    for index, (entered, left) in enumerate(zip(schedule.enter, schedule.enter[1:], strict=False)):
        ready = min(left, max(entered, schedule.end[index]))
        bars += [bar(0, schedule.begin[index], schedule.end[index]), bar(1, ready, left)]
        if ready > entered:
            bars.append(bar(2, entered, ready))
    waiting = plan.stall_ms / plan.predicted_ms if plan.predicted_ms else 0.0
    title = escape(
        f"{workload.weight_bytes / MIB:.0f} MiB of weights through {budget_mb:.0f} MB at {workload.gbps:.0f} GB/s: "
        f"{plan.predicted_ms:.0f} ms a step, {100 * waiting:.0f} % of it waiting "
        f"({workload.compute_ms:.0f} ms with everything on the GPU)"
    )
    labels = "".join(
        f'<text x="4" y="{TOP + lane * (LANE + GAP) + LANE * 0.65:.0f}">{name}</text>'
        for lane, name in enumerate(LANES)
    )
    last_ms = schedule.enter[-1] - 0.0
    every_ms = next((ms for ms in (1, 2, 5, 10, 20, 50, 100, 200, 500) if last_ms / ms <= 10), 1000)
    ticks = "".join(
        f'<line class="axis" x1="{x(0.0 + ms)}" x2="{x(0.0 + ms)}" y1="{axis_y}" y2="{axis_y + 5}"/>'
        f'<text x="{x(0.0 + ms)}" y="{axis_y + 18}" text-anchor="middle">{ms} ms</text>'
        for ms in range(0, int(last_ms) + 1, every_ms)
    )
    height = axis_y + BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{title}"><style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{height}"/>'
        f'<text class="title" x="4" y="20">{title}</text>{labels}'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axis_y}" y2="{axis_y}"/>'
        f"{ticks}{''.join(bars)}</svg>\n"
    )


def write_timeline(profile: Path, budget_mb: float, compute: float, bus_gbps: float | None, out: Path) -> int:
    """Draw a profile with its compute times multiplied by `compute` into the file `out`. Returns the exit status."""
    workload = load_workload(profile).scaled(compute, bus_gbps)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(timeline(workload, budget_mb), encoding="utf-8")
    return 0
