"""Budgets as people write them on a command line: megabytes, a share of the weights, or 0 for auto."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .device import MIB
from .errors import BenchError

# Slots are aligned, so "everything" needs slightly more than the bare weights.
_ALIGNMENT_SLACK = 1.01


@dataclass(frozen=True)
class Budget:
    """One budget: `mb` megabytes (2**20 bytes), or `share` of the weights (1 = all); mb 0 means auto."""

    mb: float | None = None
    share: float | None = None

    @property
    def label(self) -> str:
        """As a person would write it: "256", "50%", "auto"."""
        if self.share is not None:
            return f"{self.share * 100:g}%"
        return "auto" if self.mb == 0 else f"{self.mb:g}"

    @property
    def is_auto(self) -> bool:
        """Whether the mover shall choose."""
        return self.mb == 0

    def to_mb(self, weights_bytes: int) -> float:
        """Megabytes to ask the mover for. All of the weights or more comes with room for alignment."""
        if self.share is None:
            return float(self.mb or 0)
        mb = self.share * weights_bytes / MIB
        return mb if self.share < 1 else math.ceil(mb * _ALIGNMENT_SLACK + 1)


EVERYTHING = Budget(share=1.0)
AUTO = Budget(mb=0.0)


def parse_budgets(text: str) -> list[Budget]:
    """Read "128,256.5,50%,auto": each budget once, in the order given. Raises BenchError for anything else."""
    budgets: list[Budget] = []
    for part in filter(None, (part.strip().lower() for part in text.split(","))):
        budget = _parse(part)
        if budget not in budgets:
            budgets.append(budget)
    return budgets


def _parse(part: str) -> Budget:
    if part == "auto":
        return AUTO
    try:
        number = float(part.removesuffix("%").removesuffix("mb"))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0) or (part.endswith("%") and number == 0):
        raise BenchError(f"a budget is megabytes (256), a share of the weights (50%) or 0 for auto, not {part!r}")
    return Budget(share=number / 100) if part.endswith("%") else Budget(mb=number)
