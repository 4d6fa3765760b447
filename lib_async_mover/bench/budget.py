"""Budgets as people write them on a command line: megabytes ("256"), a share of the weights ("50%"), or "auto"."""

from __future__ import annotations

import math

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.plan.workload import MIB

AUTO, EVERYTHING = "auto", "100%"
# Slots are aligned, so "everything" needs slightly more than the bare weights.
_ALIGNMENT_SLACK = 1.01


def parse_budgets(text: str) -> tuple[str, ...]:
    """Read "128,256.5,50%,0": each budget once, in the order given. 0 is auto. Raises BenchError for anything else."""
    parts = [part.strip().lower() for part in text.split(",")]
    return tuple(dict.fromkeys(_parse(part) for part in parts if part))


def _parse(part: str) -> str:
    percent = "%" if part.endswith("%") else ""
    try:
        number = 0.0 if part == AUTO else float(part.removesuffix(percent or "mb"))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf or (percent and number == 0):
        raise BenchError(f"a budget is megabytes (256), a share of the weights (50%) or 0 for auto, not {part!r}")
    return f"{number:g}{percent}" if number else AUTO


def budget_mb(budget: str, weights_bytes: int) -> float:
    """What to ask a mover for, in MiB; 0 for auto. All of the weights or more comes with room for alignment."""
    if not budget.endswith("%"):
        return 0.0 if budget == AUTO else float(budget)
    share = float(budget[:-1]) / 100
    mb = share * weights_bytes / MIB
    return mb if share < 1 else math.ceil(mb * _ALIGNMENT_SLACK + 1)
