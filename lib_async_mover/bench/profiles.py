"""Profiles in files: what a forward took, leaf by leaf, on some machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.errors import PlanError
from lib_async_mover.plan.workload import LeafCost, Workload


def workload_of_profile(data: Mapping[str, Any]) -> Workload:
    """From a recorded profile: {"leaves": [[name, bytes, ms], …], "eager_ms", "h2d_gbps", …}.

    The per-leaf times carry the cost of one event each, so they are scaled to sum to `eager_ms`.
    Raises PlanError on anything else.
    """
    try:
        recorded_ms = math.fsum(float(ms) for _, _, ms in data["leaves"])
        scale = float(data["eager_ms"]) / recorded_ms if recorded_ms > 0 else 1.0
        leaves = tuple(LeafCost(str(name), int(size), float(ms) * scale) for name, size, ms in data["leaves"])
        return Workload(leaves, float(data["h2d_gbps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"This is not a recorded profile ({error!r}). Record one with the bench.") from error


def to_json(workload: Workload) -> str:
    """One line that `load_workload` reads back to an equal workload."""
    return json.dumps({**asdict(workload), "barriers": sorted(workload.barriers)}, separators=(",", ":"))


def load_workload(path: Path) -> Workload:
    """Read a profile: one that `to_json` made, or a recorded one. Raises BenchError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "eager_ms" in data:
            return workload_of_profile(data)
        leaves = tuple(LeafCost(str(one["name"]), int(one["bytes"]), float(one["ms"])) for one in data["leaves"])
        return Workload(**{**data, "leaves": leaves, "barriers": frozenset(data["barriers"])})
    except (OSError, ValueError, TypeError, KeyError, PlanError) as error:
        raise BenchError(f"{path} is not a profile: {error!r}") from error
