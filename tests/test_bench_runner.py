"""One benchmark run on the CPU: its rows, their order, and that it notices what it is there to notice."""

from __future__ import annotations

import json

import pytest
import torch

import lib_async_mover as engine
from lib_async_mover.bench import device as device_module
from lib_async_mover.bench import runner as runner_module
from lib_async_mover.bench.budget import parse_budgets
from lib_async_mover.bench.device import MIB
from lib_async_mover.bench.measure import LEAD_IN_STEPS, ROUNDS
from lib_async_mover.bench.options import BenchOptions
from lib_async_mover.bench.row import bound_ms
from lib_async_mover.bench.runner import Runner
from lib_async_mover.bench.table import format_rows, headline, succeeded

pytestmark = pytest.mark.usefixtures("small_and_quick")

KEYS = [
    "mover", "model", "batch", "size", "dtype", "budget_mb", "ms_per_step", "peak_weights_mib", "exact",
    "resident_ms", "h2d_gbps", "bound_ms", "limit_ms", "predicted_ms", "stall_share", "attach_s", "pinned_mib",
    "rss_mib", "torch", "gpu", "bus_gbps",
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
        return {"budget_mb": self.vram_mb or 7.0, "limit_ms": 1.0, "stall_share": 0.5, "attach_s": 0.25}

    def workload(self):
        return None


class FakeEngine:
    """Stands for `attach` and `detach`, and writes down how it was called."""

    def __init__(self, mover=FakeMover):
        self.mover = mover
        self.calls = []
        self.attached = None

    def attach(self, module, device, vram_mb=0, **extra):
        self.calls.append(("attach", round(vram_mb, 2), extra))
        assert all(parameter.device.type == "cpu" for parameter in module.parameters())
        if self.attached is not None:
            self.attached.handle.remove()
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
    monkeypatch.setattr(engine, "attach", fake.attach, raising=False)
    monkeypatch.setattr(engine, "detach", fake.detach, raising=False)
    return fake


def options(budgets="1,50%,0", **changes):
    given = {"model": "tiny", "device": "cpu", "batch": 1, "size_px": 32, "steps": 2, "bus_gbps": 100.0, **changes}
    return BenchOptions(budgets=tuple(parse_budgets(budgets)), **given)


def test_rows_and_their_order(fake, tmp_path):
    path = tmp_path / "rows.json"
    rows = Runner(options(json_path=path)).run()
    assert [(row.mover, row.budget) for row in rows] == [
        ("resident", None), ("async", "100%"), ("stock", None), ("async", "1"), ("async", "50%"), ("async", "auto"),
    ]  # fmt: skip
    assert all(row.exact is True and row.error is None for row in rows)
    assert succeeded(rows)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert len(saved) == len(rows)
    assert all(key in saved[0] for key in KEYS)
    weights_mib = rows[0].weights_mib
    assert [row.budget_mb for row in rows][3:] == [1.0, pytest.approx(weights_mib / 2), 7.0]
    assert len({row.resident_ms for row in rows}) == 1
    assert rows[0].ms_per_step == rows[0].resident_ms
    assert rows[0].peak_weights_mib is None, "a CPU's memory is not counted"
    gbps = min(100, rows[3].h2d_gbps)
    assert rows[3].bound_ms == pytest.approx(bound_ms(rows[0].resident_ms, weights_mib, 1.0, gbps))
    assert rows[3].limit_ms == 1.0 and rows[3].stall_share == 0.5 and rows[3].attach_s == 0.25
    assert rows[3].warmup_forwards == 5
    assert rows[3].bus_gbps == 100.0


def test_calls_of_the_engine(fake):
    rows = Runner(options("2")).run()
    names = [call[0] for call in fake.calls]
    assert names == ["attach", "detach", "attach", "detach"], "stock must find the module as it was"
    everything, small = fake.calls[0], fake.calls[2]
    assert everything[1] >= rows[0].weights_mib + 1
    assert small == ("attach", 2.0, {"hold": True, "bus_gbps": 100.0})


def test_no_stock_and_no_bus(fake):
    rows = Runner(options("2", bus_gbps=None)).run()
    assert [row.mover for row in rows] == ["resident", "async", "async"], "stock has nothing to move on a CPU"
    assert [call[0] for call in fake.calls] == ["attach", "attach", "detach"], "a new budget needs no detach"
    assert fake.calls[1] == ("attach", 2.0, {"hold": True, "bus_gbps": None})
    rows = Runner(options("2", stock=False)).run()
    assert [row.mover for row in rows] == ["resident", "async", "async"]


def test_bus_ratio_follows_the_resident_step(fake):
    rows = Runner(options("2", bus_gbps=None, bus_ratio=2.0, stock=False)).run()
    copy_all_ms = rows[1].weights_mib * 2**20 / (rows[1].bus_gbps * 1e6)
    assert copy_all_ms / rows[1].resident_ms == pytest.approx(2.0, rel=0.9)


@pytest.mark.parametrize("wrong_at", [1, 2, 5, 6, 7, 10, 11])
def test_one_wrong_output_is_found(monkeypatch, wrong_at):
    """Whichever compared forward it is: warm-up 1-5, all inputs 6-8, the last timed one, and one more."""
    last = 8 + ROUNDS * (LEAD_IN_STEPS + 1)
    compared = {10: last, 11: last + 1}.get(wrong_at, wrong_at)

    class Wrong(FakeMover):
        def result(self, output):
            return output + (self.forwards == compared and self.vram_mb == 2.0) * 1e-6

    use(monkeypatch, FakeEngine(Wrong))
    rows = Runner(options("2,4", stock=False)).run()
    assert [row.exact for row in rows] == [True, True, False, True]
    assert not succeeded(rows)
    assert "NO" in format_rows(rows)
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
    assert [call[0] for call in fake.calls] == ["attach", "attach", "detach", "attach", "detach"]


def test_without_room_for_everything_stock_is_the_reference(fake, monkeypatch):
    real = runner_module.Runner._resident_round

    def full(self, progress):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner_module.Runner, "_resident_round", full)
    rows = Runner(options("2")).run()
    monkeypatch.setattr(runner_module.Runner, "_resident_round", real)
    assert [(row.mover, row.exact) for row in rows] == [
        ("resident", None), ("stock", True), ("async", True), ("async", True),
    ]  # fmt: skip
    assert all(row.resident_ms is None and row.bound_ms is None for row in rows)
    format_rows(rows), headline(rows)


def test_bound():
    assert bound_ms(resident_ms=20, weights_mib=1000, budget_mb=1000, gbps=10) == 20
    assert bound_ms(resident_ms=20, weights_mib=1000, budget_mb=0, gbps=10) == pytest.approx(104.8576)
    assert bound_ms(resident_ms=20, weights_mib=1000, budget_mb=2000, gbps=10) == 20


class CountingDevice(device_module.Device):
    """A CPU whose allocator counts: 10 MiB of inputs and workspace, the weights while they are "on the device"."""

    weights_mib = 6
    activations_mib = 3
    mover_mib = 0.0
    resident = False

    def allocated_bytes(self):
        return (10 + self.resident * self.weights_mib) * MIB

    def peak_bytes(self):
        held = self.weights_mib if self.resident else self.mover_mib
        return int((10 + held + self.activations_mib) * MIB)


def test_peaks_are_counted_above_the_activations_of_the_resident_run(fake, monkeypatch):
    monkeypatch.setattr(runner_module, "Device", CountingDevice)
    bench = Runner(options("2", stock=False))
    make = bench._make_weights

    def make_weights(progress):
        make(progress)
        move = bench._unet.to

        def to(where):
            # On the CPU both ends of a move are the same; which one is meant shows in how the runner names it.
            bench.device.resident = isinstance(where, torch.device)
            bench.device.mover_mib = 2.5
            return move(where)

        bench._unet.to = to

    monkeypatch.setattr(bench, "_make_weights", make_weights)
    rows = bench.run()
    assert [row.peak_weights_mib for row in rows] == [6.0, 2.5, 2.5]
