"""One row of a benchmark: what ran, how fast, in how much memory, whether bit-identical."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """A mover at one budget. MB and MiB are both 2**20 bytes, GB/s are 1e9 bytes; None is "not measured here".

    - mover: "resident" (plain torch), "async" (this package) or "stock" (stock lowvram's mechanism)
    - budget: as asked for ("256", "50%", "auto"); budget_mb: what the mover made of that
    - ms_per_step: the median of rounds, of each the mean over its steps; ms_median: the median of all steps
    - peak_weights_mib: peak allocated in those steps less the activations of the resident run
    - exact: every compared output is bitwise equal to the resident one; None where there was none to compare
    - resident_ms: of a resident UNet timed in turns with this row (resident_beside), else of the run's first row
    - limit_ms, predicted_ms, stall_share, h2d_gbps, attach_s, pinned_mib, bytes_per_step: the mover's own figures
    - warmup_forwards: how many it took until the plan had settled; measure.MAX_WARMUP where it never did
    - guests: "controlnet" where the UNet runs one
    - bus_gbps: a slower bus that was played, where one was asked for
    - error: why there is no measurement
    """

    mover: str
    model: str
    batch: int
    size: int
    dtype: str
    steps: int
    seed: int
    weights_mib: float
    torch: str
    gpu: str
    guests: str | None = None
    bus_gbps: float | None = None
    budget: str | None = None
    budget_mb: float | None = None
    ms_per_step: float | None = None
    ms_median: float | None = None
    peak_weights_mib: float | None = None
    exact: bool | None = None
    resident_ms: float | None = None
    resident_beside: bool = False
    h2d_gbps: float | None = None
    limit_ms: float | None = None
    predicted_ms: float | None = None
    stall_share: float | None = None
    bytes_per_step: int | None = None
    attach_s: float | None = None
    pinned_mib: float | None = None
    warmup_forwards: int | None = None
    error: str | None = None

    @property
    def times_resident(self) -> float | None:
        """Step time as a multiple of the resident one."""
        return self.ms_per_step / self.resident_ms if self.ms_per_step and self.resident_ms else None


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """Write all rows as one JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def row_of(data: dict[str, Any]) -> Row:
    """A row as `save_rows` wrote it, now or when rows had other fields."""
    return Row(**{field.name: data[field.name] for field in fields(Row) if field.name in data})
