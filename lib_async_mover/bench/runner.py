"""One benchmark run: everything resident, the mover with everything resident, stock, the mover at each budget.

All of them run the same weights on the same inputs in one process. The resident UNet is timed at the beginning
and again at the end, so that a machine that got faster or slower meanwhile shows itself.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable

from torch import nn

import lib_async_mover as engine

from .baseline import StockLowvram
from .budget import EVERYTHING, Budget
from .device import Device
from .errors import BenchError
from .inputs import make_inputs
from .measure import Measurement, measure
from .options import BenchOptions
from .progress import Progress
from .records import Records
from .reference import Reference
from .row import Row
from .unet import build_unet
from .weights import random_unet, weight_bytes

logger = logging.getLogger("async_lowvram")

DIFFERENT_INPUTS = 3
MAX_MOVER_WARMUP = 60  # trace, pack and pin, profiles, plans, up to three revisions: about half of it
ROOM_FOR_BESIDE = 4  # times the weights must be free on the device for a second, resident UNet beside the measured one
MAX_STOCK_STEPS = 5  # stock takes seconds a step and has nothing to warm up


class Runner:
    """Runs what `BenchOptions` ask for. One use: make it, call `run`, drop it."""

    def __init__(self, options: BenchOptions) -> None:
        self.options = options
        self.device = Device(options.device)
        self._reference = Reference(
            [
                make_inputs(
                    options.shape,
                    options.batch,
                    options.image_size_px,
                    self.device.torch_device,
                    options.dtype,
                    seed=options.seed + 1 + index,
                )
                for index in range(DIFFERENT_INPUTS)
            ]
        )
        self._unet = build_unet(options.shape)  # on the meta device, until there are weights
        self._records = Records(options, self.device.name)
        self._attached = False
        self._beside: nn.Module | None = None

    def run(self) -> list[Row]:
        """Measure everything. A row that fails says why in `error`, and the run goes on with the next."""
        self.device.leave_room_for_copies()
        budgets = [budget for budget in self.options.budgets if budget != EVERYTHING]
        forwards = self.options.steps + DIFFERENT_INPUTS + MAX_MOVER_WARMUP // 2
        with Progress(phases=7 + len(budgets), forwards=forwards) as progress:
            self._phase(progress, "random weights", self._make_weights)
            resident = self._records.new("resident")
            self._measured(progress, "everything resident", resident, self._first_resident_round)
            self._phase(progress, "bandwidth", self._measure_bus)
            if resident.error is None:
                self._phase(progress, "a resident UNet to compare with", self._make_beside)
                self._async_row(progress, EVERYTHING)
                self._stock_row(progress)
            else:  # then stock's outputs are what the others are compared with
                self._stock_row(progress)
                self._async_row(progress, EVERYTHING)
            for budget in budgets:
                self._async_row(progress, budget)
            self._detach()
            if resident.error is None:
                self._phase(progress, "everything resident, again", self._last_resident_round)
        return self._records.rows

    # The phases -----------------------------------------------------------------------------------------------

    def _make_weights(self, _progress: Progress) -> None:
        options = self.options
        self._unet = random_unet(options.shape, self.device.torch_device, options.dtype, options.seed)
        self._records.weights_bytes = weight_bytes(self._unet)

    def _first_resident_round(self, progress: Progress, row: Row) -> None:
        measured, resident_bytes = self._resident_round(progress)
        if measured.peak_bytes is not None and resident_bytes is not None:
            self._records.activation_bytes = measured.peak_bytes - resident_bytes
        self._records.fill(row, measured)

    def _make_beside(self, _progress: Progress) -> None:
        """A second UNet that stays on the device, if there is plenty of room, to time every row against."""
        free_bytes = self.device.free_bytes()
        if free_bytes is None or free_bytes < ROOM_FOR_BESIDE * self._records.weights_bytes:
            return
        before_bytes = self.device.allocated_bytes() or 0
        self._beside = copy.deepcopy(self._unet).to(self.device.torch_device)
        self._records.beside_bytes = (self.device.allocated_bytes() or 0) - before_bytes

    def _last_resident_round(self, progress: Progress) -> None:
        measured, _ = self._resident_round(progress)
        row = self._records.rows[0]
        row.exact = measured.exact if row.exact is None else row.exact and bool(measured.exact)
        row.ms_median = (measured.ms_median + (row.ms_median or measured.ms_median)) / 2
        self._records.refresh()

    def _resident_round(self, progress: Progress) -> tuple[Measurement, int | None]:
        """Time plain torch. Returns also what the weights take on the device, as its allocator counts it."""
        self.device.release()
        before_bytes = self.device.allocated_bytes()
        try:
            self._unet.to(self.device.torch_device)
            after_bytes = self.device.allocated_bytes()
            measured = measure(
                self._unet, self.device, self._reference, self.options.steps, progress, trusted=True
            )
        finally:
            self._unet.to("cpu")
            self.device.release()
        self._records.resident_rounds_ms.append(measured.ms_per_step)
        taken = None if before_bytes is None or after_bytes is None else after_bytes - before_bytes
        return measured, taken

    def _measure_bus(self, _progress: Progress) -> None:
        records = self._records
        records.h2d_gbps = self.device.measure_h2d_gbps()
        if self.options.bus_ratio is not None:
            if not records.resident_rounds_ms:
                raise BenchError("a bus ratio needs the resident step time, and that run failed: use --bus-gbps")
            copy_all_ms = self.options.bus_ratio * records.resident_rounds_ms[0]
            records.bus_gbps = records.weights_bytes / (copy_all_ms * 1e6)

    def _stock_row(self, progress: Progress) -> None:
        if not self.options.stock:
            return
        if self.device.is_cpu and self._records.bus_gbps is None:
            logger.info("stock moves nothing from a CPU to itself: no row for it without an emulated bus")
            return
        row = self._records.new("stock")
        row.steps = min(self.options.steps, MAX_STOCK_STEPS)
        row.pinned_mib = 0.0

        def run(progress: Progress, row: Row) -> None:
            self._detach()
            with StockLowvram(self._unet, self.device.torch_device, self._records.bus_gbps):
                measured = measure(
                    self._unet, self.device, self._reference, row.steps, progress,
                    min_warmup=1, max_warmup=1, trusted=True,
                )
            self._records.fill(row, measured)

        self._measured(progress, "stock lowvram", row, run)

    def _async_row(self, progress: Progress, budget: Budget) -> None:
        row = self._records.new("async", budget)

        def run(progress: Progress, row: Row) -> None:
            self.device.release()
            budget_mb = budget.to_mb(self._records.weights_bytes)
            row.budget_mb = budget_mb
            started_s = time.perf_counter()
            self._attached = True
            mover = engine.attach(
                self._unet, self.device.torch_device, vram_mb=budget_mb, hold=True, bus_gbps=self._records.bus_gbps
            )
            attach_s = time.perf_counter() - started_s
            measured = measure(
                self._unet, self.device, self._reference, self.options.steps, progress,
                max_warmup=MAX_MOVER_WARMUP, settled=lambda: mover.settled, beside=self._beside,
            )
            if not mover.settled:
                logger.warning("the plan had not settled after %d forwards", measured.warmup_forwards)
            stats = mover.stats()
            if budget.is_auto:
                row.budget_mb = stats.get("budget_mb")
            row.attach_s = stats.get("attach_s") or attach_s
            for name in ("limit_ms", "predicted_ms", "stall_share", "pinned_mib", "bytes_per_step"):
                setattr(row, name, stats.get(name))
            self._records.fill(row, measured)
            self._save_profile(mover)

        self._measured(progress, f"async {budget.label}", row, run)
        if row.error is not None:
            self._detach()  # leave nothing of the failure on the device for the next row

    # Around a phase ------------------------------------------------------------------------------------------

    def _phase(self, progress: Progress, text: str, work: Callable[[Progress], None]) -> None:
        progress.begin(f"{self.options.model}: {text}")
        work(progress)
        progress.end()

    def _measured(
        self, progress: Progress, text: str, row: Row, work: Callable[[Progress, Row], None]
    ) -> None:
        """Run one row's measurement; whatever becomes of it, the row is kept and saved."""

        def guarded(progress: Progress) -> None:
            try:
                work(progress, row)
            except BenchError:
                raise
            except Exception as error:  # one row lost must not cost the others
                row.error = f"{type(error).__name__}: {error}"
                logger.exception("no measurement of %s %s", row.mover, row.budget or "")

        self._records.rows.append(row)
        self._phase(progress, text, guarded)
        self._records.refresh()

    def _save_profile(self, mover: engine.Mover) -> None:
        if self.options.profile_path is None:
            return
        workload = mover.workload()
        if workload is not None:
            self.options.profile_path.write_text(workload.to_json() + "\n", encoding="utf-8")

    def _detach(self) -> None:
        if self._attached:
            self._attached = False
            engine.detach(self._unet)
        self.device.release()
