"""The page's one sentence: which of them, the size that its button sets, and the speed to expect there."""

from __future__ import annotations

import math
from typing import Any

from lib_async_mover.plan.budget import CurvePoint, advise, speed_at
from lib_async_mover.plan.workload import MIB
from lib_async_mover.run.buffer import RESERVE_BYTES
from lib_async_mover.webui.host.choice import MIN_BUFFER_MB, option

RESERVE_MIB = RESERVE_BYTES / MIB
FULL = 0.03  # of the card; with less left, activations are about to fail, or Windows to use RAM


def advice(curve: list[list[float]], stats: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any] | None:
    """
    {kind, mb, now, it_s, enough_mb}: speeds now and at `mb`, and the least size that is as fast as any that fits.
    The kinds of `plan.budget.advise`, and
        "copies_fp8"          copies are what limits the speed, and the webui could halve them
        "auto", "auto_most"   the automatic size is as fast as any, or the largest that fitted
        "full", "full_most"   VRAM is nearly full; `mb` is a smaller size, if there is one
    None before there is a curve.
    """
    points = [CurvePoint(*point) for point in curve]
    points = [point for point in points if point.budget_mb >= MIN_BUFFER_MB] or points[-1:]
    used_mb = stats["budget_mb"]
    if not points or not used_mb:
        return None
    full_mb, free_mb, at_peak_mb = _left_mb(memory["cuda"])
    found = advise(points, used_mb, used_mb + at_peak_mb - RESERVE_MIB)
    kind, size_mb = found.kind, found.budget_mb
    automatic = not stats["vram_mb"]
    if free_mb < full_mb:
        smaller = [point.budget_mb for point in points if point.budget_mb <= used_mb / 2]
        kind, size_mb = ("full", smaller[-1]) if smaller and not automatic else ("full_most", used_mb)
    elif automatic:
        kind, size_mb = "auto" if kind in ("best", "smaller") else "auto_most", used_mb
    elif kind == "copies" and option("fp8_storage", None) == "Disable":
        kind = "copies_fp8"
    predicted = speed_at(points, used_mb)
    now = stats["it_s"] or predicted
    there = now * speed_at(points, size_mb) / predicted
    return {"kind": kind, "mb": size_mb, "now": now, "it_s": there, "enough_mb": found.budget_mb}


def _left_mb(cuda: dict[str, Any]) -> tuple[float, float, float]:
    """What is too little, what is free or kept by torch for later, and what was at the last image's peak. Without a
    card there is always enough."""
    system, allocated = cuda.get("system"), cuda.get("allocated")
    if system is None:
        return 0.0, math.inf, math.inf
    ours = system["free"] + (cuda["reserved"]["current"] if allocated else 0)  # what this process could have
    now, peak = (allocated["current"], allocated["peak"]) if allocated else (0, 0)
    return max(RESERVE_MIB, FULL * system["total"] / MIB), (ours - now) / MIB, (ours - peak) / MIB
