"""One benchmark run on the CPU: its rows, their order, and that it notices what it is there to notice."""

from __future__ import annotations

import json

import pytest
import torch

import lib_async_mover as engine
from lib_async_mover.bench import measure as measure_module
from lib_async_mover.bench import runner as runner_module
from lib_async_mover.bench.budget import parse_budgets
from lib_async_mover.bench.device import Device
from lib_async_mover.bench.measure import LEAD_IN_STEPS, measure
from lib_async_mover.bench.runner import BenchOptions, Runner
from lib_async_mover.bench.table import format_rows, headline, succeeded
from lib_async_mover.device.cpu import CpuBackend

pytestmark = pytest.mark.usefixtures("small_and_quick")

MIB = 2**20
KEYS = [
    "mover", "model", "batch", "size", "dtype", "budget", "budget_mb", "ms_per_step", "ms_median", "peak_weights_mib",
    "exact", "resident_ms", "resident_beside", "h2d_gbps", "limit_ms", "predicted_ms", "stall_share", "attach_s",
    "pinned_mib", "warmup_forwards", "torch", "gpu", "bus_gbps",
]  # fmt: skip


class FakeMover:
    """Moves nothing, settles after five forwards."""

    def __init__(self, module, vram_mb):
        self.vram_mb = vram_mb
        self.forwards = 0
        self.handle = module.register_forward_hook(self.count)

    def count(self, _module, _args, output):
        self.forwards += 1
        return self.result(output)

    def result(self, output):
        return output

    @property
    def settled(self):
        return self.forwards >= 5

    def stats(self):
        return {
            "budget_mb": max(self.vram_mb or 7.0, 1.5), "limit_ms": 1.0, "stall_share": 0.5, "attach_s": 0.25,
            "predicted_ms": 2.0, "bytes_per_step": 3, "h2d_gbps": 4.0, "pinned_mib": 5.0,
        }  # fmt: skip

    def workload(self):
        return None


class FakeEngine:
    """Stands for `attach` and `detach`, and writes down how it was called."""

    def __init__(self, mover=FakeMover):
        self.mover = mover
        self.calls = []
        self.attached = None

    def attach(self, module, device, vram_mb=0, backend=None):
        self.calls.append(("attach", round(vram_mb, 2), backend))
        assert all(parameter.device.type == "cpu" for parameter in module.parameters())
        assert self.attached is None
        self.attached = self.mover(module, vram_mb)
        return self.attached

    def detach(self, module):
        self.calls.append(("detach",))
        self.attached.handle.remove()
        self.attached = None


@pytest.fixture
def fake(monkeypatch):
    return use(monkeypatch, FakeEngine())


def use(monkeypatch, fake):
    monkeypatch.setattr(engine, "attach", fake.attach)
    monkeypatch.setattr(engine, "detach", fake.detach)
    return fake


def options(budgets="1,50%,0", **changes):
    given = {"model": "tiny", "device": "cpu", "batch": 1, "size_px": 32, "steps": 2, "bus_gbps": 100.0, **changes}
    return BenchOptions(budgets=parse_budgets(budgets), **given)


def test_rows_and_their_order(fake, tmp_path):
    path = tmp_path / "rows.json"
    rows = Runner(options(json_path=path)).run()
    assert [(row.mover, row.budget) for row in rows] == [
        ("resident", None), ("stock", None), ("async", "100%"), ("async", "1"), ("async", "50%"), ("async", "auto"),
    ]  # fmt: skip
    assert all(row.exact is True and row.error is None for row in rows)
    assert succeeded(rows)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert len(saved) == len(rows)
    assert all(key in saved[0] for key in KEYS)
    assert [row.budget_mb for row in rows][3:] == [1.5, pytest.approx(rows[0].weights_mib / 2), 7.0], "as used"
    assert rows[0].ms_per_step == rows[0].resident_ms == rows[1].resident_ms
    assert [row.resident_beside for row in rows] == 2 * [False] + 4 * [True]
    assert rows[0].peak_weights_mib is None, "a CPU's memory is not counted"
    assert (rows[3].limit_ms, rows[3].stall_share, rows[3].attach_s, rows[3].h2d_gbps) == (1.0, 0.5, 0.25, 4.0)
    assert rows[3].warmup_forwards == 5
    assert [row.bus_gbps for row in rows] == [None] + 5 * [100.0]


def test_every_row_attaches_anew_and_a_played_bus_is_its_backend(fake):
    rows = Runner(options("2")).run()
    assert [call[0] for call in fake.calls] == ["attach", "detach", "attach", "detach"]
    everything, small = fake.calls[0], fake.calls[2]
    assert everything[1] >= rows[0].weights_mib + 1
    assert small[1] == 2.0
    assert isinstance(small[2], CpuBackend) and small[2] is not everything[2]


def test_no_stock_and_no_bus(fake):
    rows = Runner(options("2", bus_gbps=None)).run()
    assert [row.mover for row in rows] == ["resident", "async", "async"], "stock has nothing to move on a CPU"
    assert fake.calls[2] == ("attach", 2.0, None)
    rows = Runner(options("2", stock=False)).run()
    assert [row.mover for row in rows] == ["resident", "async", "async"]


def test_bus_ratio_follows_the_resident_step(fake):
    rows = Runner(options("2", bus_gbps=None, bus_ratio=2.0, stock=False)).run()
    copy_all_ms = rows[1].weights_mib * MIB / (rows[1].bus_gbps * 1e6)
    assert copy_all_ms / rows[0].ms_per_step == pytest.approx(2.0)


@pytest.mark.parametrize("wrong_at", [1, 5, 6, 8, 10, 11])
def test_one_wrong_output_is_found(monkeypatch, wrong_at):
    """Whichever compared forward it is: warm-up 1-5, all inputs 6-8, the last timed one, and one more."""
    last = 8 + measure_module.ROUNDS * (LEAD_IN_STEPS + 1)
    compared = {10: last, 11: last + 1}.get(wrong_at, wrong_at)

    class Wrong(FakeMover):
        def result(self, output):
            return output + (self.forwards == compared and self.vram_mb == 2.0) * 1e-6

    use(monkeypatch, FakeEngine(Wrong))
    rows = Runner(options("2,4", stock=False)).run()
    assert [row.exact for row in rows] == [True, True, False, True]
    assert not succeeded(rows)
    assert "**no**" in format_rows(rows)
    assert "NOT EVERY ROW IS EXACT" in headline(rows)


def test_a_failed_row_says_why_and_the_run_goes_on(monkeypatch):
    class Failing(FakeMover):
        def result(self, output):
            if self.vram_mb == 2.0 and self.forwards == 3:
                raise RuntimeError("out of slots")
            return output

    fake = use(monkeypatch, FakeEngine(Failing))
    rows = Runner(options("2,4", stock=False)).run()
    assert [row.error for row in rows] == [None, None, "RuntimeError: out of slots", None]
    assert rows[2].exact is None and rows[3].exact is True
    assert not succeeded(rows)
    assert "out of slots" in format_rows(rows)
    assert [call[0] for call in fake.calls] == 3 * ["attach", "detach"]


def test_without_room_for_everything_stock_is_the_reference(fake, monkeypatch):
    def full(row, *args, **more):
        if row.mover == "resident":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return measure(row, *args, **more)

    monkeypatch.setattr(runner_module, "measure", full)
    rows = Runner(options("2")).run()
    assert [(row.mover, row.exact) for row in rows] == [
        ("resident", None), ("stock", True), ("async", True), ("async", True),
    ]  # fmt: skip
    assert all(row.resident_ms is None for row in rows)
    format_rows(rows), headline(rows)


def test_peaks_are_counted_above_the_activations_of_the_resident_run(fake, monkeypatch):
    resident = set()  # UNets on the device: of 6 MiB each, beside 10 of inputs and workspace, and 3 of activations

    def to(unet, where):
        # On the CPU both ends of a move are the same; which one is meant shows in how the runner names it.
        if not isinstance(where, torch.dtype):
            (resident.add if isinstance(where, torch.device) else resident.discard)(id(unet))
        return torch.nn.Module.to(unet, where)

    class CountingDevice(Device):
        def allocated_bytes(self):
            return (10 + 6 * len(resident)) * MIB

        def peak_bytes(self):
            return self.allocated_bytes() + int((3 + (2.5 if fake.attached else 0)) * MIB)

    monkeypatch.setattr(torch.nn.ModuleList, "to", to)
    monkeypatch.setattr(runner_module, "Device", CountingDevice)
    rows = Runner(options("2", stock=False)).run()
    assert len(resident) == 1, "one UNet stays beside"
    assert [row.peak_weights_mib for row in rows] == [6.0, 2.5, 2.5]


def test_a_controlnet_streams_within_the_same_budget():
    rows = Runner(options("2", guests="controlnet")).run()
    assert [(row.mover, row.exact, row.error) for row in rows] == [
        ("resident", True, None), ("stock", True, None), ("async", True, None), ("async", True, None),
    ]  # fmt: skip
    assert all(row.guests == "controlnet" for row in rows)
