"""The CPU backend finds every wait that is missing."""

from __future__ import annotations

import pytest
import torch

from lib_async_mover.arena import Arena
from lib_async_mover.binding import Binding
from lib_async_mover.cpu import CpuBackend
from lib_async_mover.errors import RaceError
from lib_async_mover.unit import Unit


def two_units_over_one_slot(backend: CpuBackend, resident: bool = False) -> tuple[Arena, list[Unit]]:
    arena = Arena(64, backend.device)
    backend.take(arena)
    sources = [torch.full((32,), value, dtype=torch.uint8) for value in (1, 2)]
    units = [Unit(i, resident, source, arena.raw[8:40], 8, Binding([], {})) for i, source in enumerate(sources)]
    backend.install(units)
    return arena, units


def test_a_copy_without_waiting_for_the_allocator() -> None:
    backend = CpuBackend()
    _, (first, _) = two_units_over_one_slot(backend)
    with pytest.raises(RaceError, match="queued compute"):
        backend.copy(first, None)
    backend.fence_copies()
    backend.copy(first, None)


def test_a_copy_over_a_slot_that_is_being_read() -> None:
    backend = CpuBackend()
    _, (first, second) = two_units_over_one_slot(backend)
    backend.fence_copies()
    backend.copy(first, None)
    backend.acquire(first)
    with pytest.raises(RaceError, match="may still read"):
        backend.copy(second, None)
    backend.leave(first)
    with pytest.raises(RaceError, match="may still read"):
        backend.copy(second, None)
    backend.copy(second, first)
    backend.acquire(second)
    assert second.target.eq(2).all()


def test_a_copy_over_a_resident_that_rested() -> None:
    backend = CpuBackend()
    _, (first, second) = two_units_over_one_slot(backend, resident=True)
    backend.fence_copies()
    backend.copy(first, None)
    backend.acquire(first)
    backend.rest([first])
    with pytest.raises(RaceError):
        backend.copy(second, None)
    backend.fence_copies()
    backend.copy(second, None)


def test_a_read_before_its_copy_sees_poison() -> None:
    backend = CpuBackend(delay=lambda count: 0.05, poison=True)
    _, (first, _) = two_units_over_one_slot(backend)
    backend.fence_copies()
    backend.copy(first, None)
    assert first.target.view(torch.float32).isnan().all()
    backend.acquire(first)
    assert first.target.eq(1).all()
    backend.leave(first)
    assert first.target.view(torch.float32).isnan().all()


def test_the_arena_given_back_under_a_copy() -> None:
    backend = CpuBackend(delay=lambda count: 0.05)
    arena, (first, _) = two_units_over_one_slot(backend)
    backend.fence_copies()
    backend.copy(first, None)
    with pytest.raises(RaceError, match="in flight"):
        backend.free(arena)
    backend.copy(first, None)
    backend.fence_compute()
    backend.free(arena)
    assert not arena.allocated


def test_the_bus_is_as_slow_as_asked() -> None:
    backend = CpuBackend(bus_gbps=32 / 20e6)  # 32 bytes take 20 ms
    _, (first, _) = two_units_over_one_slot(backend)
    backend.fence_copies()
    backend.time_copies(True)
    backend.copy(first, None)
    backend.acquire(first)
    backend.synchronize()
    (count, elapsed_ms), *_ = backend.copy_times()
    assert count == 32 and elapsed_ms >= 20
