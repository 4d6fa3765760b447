"""One run: everything resident, stock, and the mover at each budget, with the same weights on the same inputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

import lib_async_mover as engine
from lib_async_mover.bench.baseline import stock_lowvram
from lib_async_mover.bench.budget import EVERYTHING, budget_mb
from lib_async_mover.bench.device import Device
from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.inputs import make_inputs
from lib_async_mover.bench.measure import Reference, measure
from lib_async_mover.bench.profiles import to_json
from lib_async_mover.bench.progress import progress
from lib_async_mover.bench.row import Row, save_rows
from lib_async_mover.bench.shapes import SHAPES
from lib_async_mover.bench.throttle import throttled_backend
from lib_async_mover.bench.weights import random_controlnet, random_unet, weight_bytes
from lib_async_mover.plan.workload import MIB

logger = logging.getLogger("async_lowvram")

DIFFERENT_INPUTS = 3
USUAL_WARMUP = 15
ROOM_FOR_BESIDE = 4  # times the weights must be free on the device for a second, resident UNet beside the measured one
MAX_STOCK_STEPS = 5  # stock takes seconds a step and has nothing to warm up
FROM_STATS = (
    "budget_mb", "limit_ms", "predicted_ms", "stall_share", "bytes_per_step", "h2d_gbps", "attach_s", "pinned_mib",
)  # fmt: skip
Measure = Callable[..., int]  # `measure`, told what it measures


@dataclass(frozen=True)
class BenchOptions:
    """One run: a model, its inputs, the budgets, and how long to measure.

    - bus_gbps: play a bus of this speed (GB/s) for the mover and for stock
    - bus_ratio: play the bus on which copying all weights takes this many times a resident step
    - json_path: rows go here, after every row; profile_path: the measured workload goes here, for `plan`
    """

    model: str
    device: str
    budgets: tuple[str, ...]
    batch: int = 2
    size_px: int | None = None
    steps: int = 10
    seed: int = 0
    guests: str | None = None  # "controlnet": one that the UNet runs
    stock: bool = True
    bus_gbps: float | None = None
    bus_ratio: float | None = None
    json_path: Path | None = None
    profile_path: Path | None = None


class Runner:
    """Measures what `BenchOptions` ask for. One use: make it, call `run`, drop it."""

    def __init__(self, options: BenchOptions) -> None:
        self.options = options
        self.rows: list[Row] = []
        self.device = Device(options.device)
        if self.device.is_cpu:
            # The mover's copies run in a thread there: without a core left for it, it and the compute would crawl.
            torch.set_num_threads(max(1, torch.get_num_threads() // 2))
        self._dtype = torch.float32 if self.device.is_cpu else torch.float16  # a CPU is slow in anything less
        shape, where, seed = SHAPES[options.model], self.device.torch_device, options.seed
        self._size_px = options.size_px or shape.default_size_px
        seeds = range(seed + 1, seed + 1 + DIFFERENT_INPUTS)
        self._reference = Reference(
            [make_inputs(shape, options.batch, self._size_px, where, self._dtype, one) for one in seeds]
        )
        self._unet = random_unet(shape, where, self._dtype, seed)
        guests = [random_controlnet(shape, where, self._dtype, seed + 1)] if options.guests else []
        self._unet.controlnets = guests
        self._all = nn.ModuleList([self._unet, *guests])
        self._weights_bytes = weight_bytes(self._all)
        self._bus_gbps = options.bus_gbps
        self._other_bytes = 0  # allocated in a step beside the weights, once the resident step has shown it
        self._beside: nn.Module | None = None

    def run(self) -> list[Row]:
        """Measure everything. A row that fails says why in `error`, and the run goes on with the next."""
        options = self.options
        resident = self._measure_row("resident", self._run_resident)
        if options.bus_ratio is not None:
            if resident.ms_per_step is None:
                raise BenchError("a bus ratio needs the resident step time, and that run failed: use --bus-gbps")
            self._bus_gbps = self._weights_bytes / (options.bus_ratio * resident.ms_per_step * 1e6)
        if options.stock and self.device.is_cpu and self._bus_gbps is None:
            logger.info("stock moves nothing from a CPU to itself: no row for it without --bus-gbps or --bus-ratio")
        elif options.stock:
            self._measure_row("stock", self._run_stock)
        if resident.error is None:
            self._make_beside()
        for budget in dict.fromkeys((EVERYTHING, *options.budgets)):
            self._measure_row("async", partial(self._run_mover, budget=budget), budget)
        return self.rows

    def _measure_row(self, mover: str, work: Callable[[Row, Measure], int], budget: str | None = None) -> Row:
        """Measure one row; whatever becomes of it, the row is kept and saved. `work` returns the peak in bytes."""
        options = self.options
        row = Row(
            mover, options.model, options.batch, self._size_px, str(self._dtype).removeprefix("torch."),
            options.steps, options.seed, self._weights_bytes / MIB, torch.__version__, self.device.name,
            guests=options.guests, bus_gbps=None if mover == "resident" else self._bus_gbps, budget=budget,
        )  # fmt: skip
        self.rows.append(row)
        self.device.release()
        with progress(" ".join(filter(None, (options.model, mover, budget))), options.steps + USUAL_WARMUP) as advance:
            try:
                peak_bytes = work(row, partial(measure, row, self._unet, self.device, self._reference, advance))
                if self._other_bytes:
                    row.peak_weights_mib = (peak_bytes - self._other_bytes) / MIB
            except BenchError:
                raise
            except Exception as error:  # one row lost must not cost the others
                row.error = f"{type(error).__name__}: {error}"
                logger.exception("no measurement of %s %s", row.mover, row.budget or "")
        if not row.resident_beside:
            row.resident_ms = self.rows[0].ms_per_step
        if options.json_path is not None:
            save_rows(self.rows, options.json_path)
        return row

    def _run_resident(self, row: Row, measured: Measure) -> int:
        before_bytes = self.device.allocated_bytes()
        try:
            self._all.to(self.device.torch_device)
            weights_bytes = self.device.allocated_bytes() - before_bytes
            peak_bytes = measured()
        finally:
            self._all.to("cpu")
        self._other_bytes = peak_bytes - weights_bytes
        return peak_bytes

    def _run_stock(self, row: Row, measured: Measure) -> int:
        row.steps, row.pinned_mib = min(row.steps, MAX_STOCK_STEPS), 0.0
        guests = nn.ModuleList(self._unet.controlnets).to(self.device.torch_device)  # as without their Low VRAM box
        try:
            with stock_lowvram(self._unet, self.device.torch_device, self._bus_gbps):
                return measured(warmup=1)
        finally:
            guests.to("cpu")

    def _run_mover(self, row: Row, measured: Measure, budget: str) -> int:
        where = self.device.torch_device
        row.budget_mb = budget_mb(budget, self._weights_bytes)
        backend = None if self._bus_gbps is None else throttled_backend(where, self._bus_gbps)
        mover = engine.attach(self._unet, where, vram_mb=row.budget_mb, backend=backend)
        mover.guests = self._unet.controlnets
        try:
            peak_bytes = measured(settled=lambda: mover.settled, beside=self._beside)
            stats, workload = mover.stats(), mover.workload()
        finally:
            engine.detach(self._unet)
        for name in FROM_STATS:
            setattr(row, name, stats[name])
        if self.options.profile_path is not None and workload is not None:
            self.options.profile_path.write_text(to_json(workload) + "\n", encoding="utf-8")
        return peak_bytes

    def _make_beside(self) -> None:
        """A second UNet that stays on the device, if there is plenty of room, to time every row against."""
        self.device.release()
        if self.device.is_cpu or self.device.free_bytes() > ROOM_FOR_BESIDE * self._weights_bytes:
            before_bytes = self.device.allocated_bytes()
            self._beside = copy.deepcopy(self._all).to(self.device.torch_device)[0]
            self._other_bytes += self.device.allocated_bytes() - before_bytes
