"""Draws one forward as the planner sees it: when each unit is copied, when it computes, when the GPU waits.

    python -m lib_async_mover.bench.timeline --profile FILE --budget-mb 256 [--compute X] [--bus-gbps B] OUT.svg

The profile is what `bench --save-profile` or `plan --save` wrote, or one of tests/profiles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..plan import make_plan
from ..simulate import run, track_of
from ..workload import MIB, Workload
from .planning import load_workload

WIDTH, LEFT, RIGHT, LANE, GAP, TOP, BOTTOM = 900, 70, 10, 26, 14, 44, 30
STYLE = """
text { font: 11px sans-serif; fill: #444 }
.title { font-weight: bold; font-size: 13px }
.copy { fill: #f97316 } .compute { fill: #3b82f6 } .wait { fill: #ef4444 }
.axis { stroke: #999 }
.paper { fill: #fff }
"""


def timeline(workload: Workload, budget_mb: float) -> str:
    """The SVG of one steady forward within `budget_mb` MiB. Times are simulated from the measured ones."""
    plan = make_plan(workload, int(budget_mb * MIB))
    track, _ = track_of(plan, workload)
    schedule = run(track)
    zero = schedule.enter[0] - track.lead_ms
    first = min([zero, *schedule.begin])  # copies for the first units begin in the forward before
    scale = (WIDTH - LEFT - RIGHT) / (schedule.enter[-1] - first)

    def x(ms: float) -> float:
        return round(LEFT + (ms - first) * scale, 2)

    def bar(kind: str, lane: int, begin: float, end: float) -> str:
        y = TOP + lane * (LANE + GAP)
        width = max(0.4, x(end) - x(begin) - 0.3)
        return f'<rect class="{kind}" x="{x(begin)}" y="{y}" width="{width:.2f}" height="{LANE}"/>'

    parts: list[str] = []
    computes = enumerate(zip(schedule.enter, schedule.enter[1:], strict=False))
    for index, (entered, left) in computes:
        ready = min(left, max(entered, schedule.end[index]))
        parts.append(bar("copy", 0, schedule.begin[index], schedule.end[index]))
        parts.append(bar("compute", 1, ready, left))
        if ready > entered:
            parts.append(bar("wait", 2, entered, ready))
    if track.lead_ms > 0:
        parts.append(bar("compute", 1, schedule.enter[0] - track.lead_ms, schedule.enter[0]))
    height = TOP + 3 * (LANE + GAP) + BOTTOM
    waiting = plan.stall_ms / plan.predicted_ms if plan.predicted_ms else 0.0
    title = (
        f"{workload.weight_bytes / MIB:.0f} MiB of weights through {budget_mb:.0f} MB at {workload.gbps:.0f} GB/s: "
        f"{plan.predicted_ms:.0f} ms a step, {100 * waiting:.0f} % of it waiting "
        f"({workload.compute_ms:.0f} ms with everything on the GPU)"
    )
    labels = "".join(
        f'<text x="4" y="{TOP + lane * (LANE + GAP) + LANE * 0.65:.0f}">{name}</text>'
        for lane, name in enumerate(("copy", "compute", "waiting"))
    )
    axis_y = TOP + 3 * (LANE + GAP)
    ticks = "".join(
        f'<line class="axis" x1="{x(zero + ms)}" x2="{x(zero + ms)}" y1="{axis_y}" y2="{axis_y + 5}"/>'
        f'<text x="{x(zero + ms)}" y="{axis_y + 18}" text-anchor="middle">{ms:.0f} ms</text>'
        for ms in _ticks(schedule.enter[-1] - zero)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{height}"/>'
        f'<text class="title" x="4" y="20">{escape(title)}</text>{labels}'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axis_y}" y2="{axis_y}"/>'
        f"{ticks}{''.join(parts)}</svg>\n"
    )


def _ticks(last: float) -> list[float]:
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500) if last / s <= 10), 1000)
    return [float(step * number) for number in range(int(last / step) + 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib_async_mover.bench.timeline", description=__doc__)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--budget-mb", type=float, default=256)
    parser.add_argument("--compute", type=float, default=1.0, metavar="X", help="multiply compute times: a slower card")
    parser.add_argument("--bus-gbps", type=float, metavar="B", help="another bus")
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    workload = load_workload(given.profile).scaled(given.compute, given.bus_gbps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(timeline(workload, given.budget_mb), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
