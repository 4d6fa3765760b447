"""The rows of one run, and what is known of the run as a whole and belongs into all of them."""

from __future__ import annotations

import torch

from .budget import Budget
from .device import MIB, rss_mib
from .measure import Measurement
from .options import BenchOptions
from .row import Row, bound_ms, save_rows


class Records:
    """Filled in as the run goes on; `refresh` spreads the news over all rows and saves them.

    `activation_bytes` is the resident run's peak without its weights; None where memory is not counted.
    """

    def __init__(self, options: BenchOptions, device_name: str) -> None:
        self.options = options
        self.rows: list[Row] = []
        self.weights_bytes = 0
        self.beside_bytes = 0  # of a second, resident UNet
        self.activation_bytes: int | None = None
        self.resident_rounds_ms: list[float] = []
        self.h2d_gbps: float | None = None
        self.bus_gbps = options.bus_gbps
        self._device_name = device_name

    def new(self, mover: str, budget: Budget | None = None) -> Row:
        """A row without results, not yet among `rows`."""
        options = self.options
        return Row(
            mover=mover,
            model=options.model,
            batch=options.batch,
            size=options.image_size_px,
            dtype=str(options.dtype).removeprefix("torch."),
            steps=options.steps,
            seed=options.seed,
            weights_mib=self.weights_bytes / MIB,
            torch=torch.__version__,
            gpu=self._device_name,
            budget=None if budget is None else budget.label,
        )

    def fill(self, row: Row, measured: Measurement) -> None:
        """Put a measurement into its row."""
        row.ms_per_step, row.ms_median = measured.ms_per_step, measured.ms_median
        row.exact = measured.exact
        row.warmup_forwards = measured.warmup_forwards
        row.rss_mib = rss_mib()
        if measured.peak_bytes is not None and self.activation_bytes is not None:
            row.peak_weights_mib = (measured.peak_bytes - self.activation_bytes - self.beside_bytes) / MIB
        if measured.beside_ms is not None:
            row.resident_ms, row.resident_beside = measured.beside_ms, True

    def refresh(self) -> None:
        """Put what is known of the whole run into every row, and save them all."""
        rounds = self.resident_rounds_ms
        for row in self.rows:
            row.h2d_gbps = self.h2d_gbps
            row.bus_gbps = self.bus_gbps if row.mover != "resident" else None
            if not rounds:
                continue
            if not row.resident_beside or row.resident_ms is None:
                row.resident_ms = sum(rounds) / len(rounds)
            row.resident_spread_ms = max(rounds) - min(rounds)
            if row.mover == "resident":
                row.ms_per_step = row.resident_ms
            if row.mover == "async" and row.budget_mb is not None and self.h2d_gbps is not None:
                gbps = min(self.h2d_gbps, self.bus_gbps or self.h2d_gbps)
                row.bound_ms = bound_ms(row.resident_ms, row.weights_mib, row.budget_mb, gbps)
        if self.options.json_path is not None:
            save_rows(self.rows, self.options.json_path)
