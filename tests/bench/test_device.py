"""The device under measurement. Where there is no GPU, torch.cuda's calls are played, under names that must exist."""

from __future__ import annotations

import time

import pytest
import torch

from lib_async_mover.bench.device import Device, device_types
from lib_async_mover.bench.errors import BenchError

MIB = 2**20


class FakeEvent:
    """Reads the clock when recorded."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.moment_s = time.perf_counter()

    def elapsed_time(self, other):
        return (other.moment_s - self.moment_s) * 1e3


@pytest.fixture
def fake_cuda(monkeypatch):
    calls = []

    def play(name, result=None):
        def call(*args):
            calls.append((name, *args))
            return result

        monkeypatch.setattr(torch.cuda, name, call)

    play("is_available", True)
    play("current_device", 0)
    play("get_device_name", "Fake 3000")
    play("memory_allocated", 5 * MIB)
    play("max_memory_allocated", 9 * MIB)
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        play(name)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return calls


def test_cuda_calls(fake_cuda):
    device = Device("cuda")
    where = torch.device("cuda", 0)
    assert device.torch_device == where and not device.is_cpu
    assert device_types()[0] == "cuda"
    assert device.name == "Fake 3000"
    device.reset_peak()
    device.release()
    assert device.allocated_bytes() == 5 * MIB and device.peak_bytes() == 9 * MIB
    assert ("reset_peak_memory_stats", where) in fake_cuda
    assert fake_cuda.index(("synchronize", where)) < fake_cuda.index(("empty_cache",))


def test_cuda_clock_waits_only_after_the_last_step(fake_cuda):
    device = Device("cuda:1")
    assert ("set_device", torch.device("cuda", 1)) in fake_cuda
    fake_cuda.clear()
    waits = []

    def work():
        waits.append(len([call for call in fake_cuda if call[0] == "synchronize"]))
        time.sleep(0.01)

    times = device.time_ms(work, 3)
    assert waits == [0, 0, 0]
    assert len(times) == 3 and all(9.9 < one < 500 for one in times)
    assert fake_cuda[-1][0] == "synchronize"


def test_cpu_clock_and_memory():
    device = Device("cpu")
    times = device.time_ms(lambda: time.sleep(0.005), 2)
    assert len(times) == 2 and all(4.9 < one < 500 for one in times)
    assert device.peak_bytes() == device.allocated_bytes() == device.free_bytes() == 0
    device.reset_peak()
    device.release()
    assert device.name.startswith("CPU")


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps"])
def test_a_missing_device_is_refused(name, monkeypatch):
    for kind in ("cuda", "xpu"):
        if hasattr(torch, kind):
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
    with pytest.raises(BenchError, match="try --device cpu"):
        Device(name)
    assert device_types() == ["cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_real_gpu():
    device = Device("cuda")
    before = device.allocated_bytes()
    device.reset_peak()
    held = torch.empty(32 * MIB, dtype=torch.uint8, device=device.torch_device)
    del held
    assert 0 < device.free_bytes() and device.peak_bytes() == before + 32 * MIB
    assert all(one >= 0 for one in device.time_ms(lambda: torch.ones(8, device=device.torch_device), 3))
