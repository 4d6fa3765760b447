"""One row of a benchmark: what ran, how fast, in how much memory, whether bit-identical."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Row:
    """A mover at one budget. MB and MiB are both 2**20 bytes, GB/s are 1e9 bytes; None is "not measured here".

    - mover: "resident" (plain torch), "async" (this package) or "stock" (stock lowvram's mechanism)
    - budget: as asked for ("256", "50%", "auto"); budget_mb: what that came to
    - ms_per_step: mean over the timed steps; ms_median: their median
    - peak_weights_mib: peak allocated in those steps less the activations of the resident run
    - exact: every compared output is bitwise equal to the resident one; None where there was none to compare
    - resident_ms: of a resident UNet timed in turns with this row (resident_beside), else the mean of the resident
      rounds at the beginning and the end of the run; resident_spread_ms: the difference of those two
    - bound_ms: max(C, (W - V) / B) with C = resident_ms, W the weights, V the budget, B the bus
    - limit_ms, predicted_ms, stall_share, attach_s: the mover's own figures
    - bus_gbps: an emulated slower bus, where one was asked for
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
    budget: str | None = None
    budget_mb: float | None = None
    ms_per_step: float | None = None
    ms_median: float | None = None
    peak_weights_mib: float | None = None
    exact: bool | None = None
    resident_ms: float | None = None
    resident_spread_ms: float | None = None
    resident_beside: bool = False
    h2d_gbps: float | None = None
    bus_gbps: float | None = None
    bound_ms: float | None = None
    limit_ms: float | None = None
    predicted_ms: float | None = None
    stall_share: float | None = None
    bytes_per_step: int | None = None
    attach_s: float | None = None
    pinned_mib: float | None = None
    rss_mib: float | None = None
    warmup_forwards: int | None = None
    error: str | None = None

    @property
    def times_resident(self) -> float | None:
        """Step time as a multiple of the resident one."""
        if self.ms_per_step is None or not self.resident_ms:
            return None
        return self.ms_per_step / self.resident_ms


def bound_ms(resident_ms: float, weights_mib: float, budget_mb: float, gbps: float) -> float:
    """The plain bound of a step, max(C, (W - V) / B): what does not fit must cross the bus once a step."""
    streamed_bytes = max(0.0, weights_mib - budget_mb) * 2**20
    return max(resident_ms, streamed_bytes / (gbps * 1e6))


def save_rows(rows: list[Row], path: Path) -> None:
    """Write all rows as one JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
