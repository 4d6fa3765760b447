"""The checked CPU backend finds every wait that is missing, and the plain one is as slow as asked."""

from __future__ import annotations

import pytest
import torch

from lib_async_mover.device.cpu import CpuBackend
from lib_async_mover.memory.arena import Arena
from tests.checked_backend import CheckedBackend, RaceError

FIRST, SECOND = (torch.full((32,), value, dtype=torch.uint8) for value in (1, 2))


def one_slot(backend: CheckedBackend) -> torch.Tensor:
    arena = Arena(64, backend.device)
    backend.memory_taken(arena.raw)
    return arena.raw[8:40]


def test_a_copy_without_waiting_for_the_allocator() -> None:
    backend = CheckedBackend()
    slot = one_slot(backend)
    with pytest.raises(RaceError, match="queued compute"):
        backend.copy(FIRST, slot, True, None)
    backend.fence_copies()
    backend.copy(FIRST, slot, True, None)


def test_a_copy_over_a_slot_that_is_being_read() -> None:
    backend = CheckedBackend()
    slot = one_slot(backend)
    backend.fence_copies()
    copy = backend.copy(FIRST, slot, True, None)
    backend.wait_for_copy(copy)
    with pytest.raises(RaceError, match="may still read"):
        backend.copy(SECOND, slot[4:], True, None)
    done = backend.release(copy)
    with pytest.raises(RaceError, match="may still read"):
        backend.copy(SECOND, slot, True, None)
    backend.wait_for_copy(backend.copy(SECOND, slot, True, done))
    assert slot.eq(2).all()


def test_a_copy_over_a_resident_that_was_read() -> None:
    backend = CheckedBackend()
    slot = one_slot(backend)
    backend.fence_copies()
    copy = backend.copy(FIRST, slot, True, None)
    backend.wait_for_copy(copy)
    with pytest.raises(RaceError):
        backend.copy(SECOND, slot, True, None)
    backend.fence_copies()
    backend.copy(SECOND, slot, True, None)


def test_a_read_before_its_copy_sees_poison() -> None:
    backend = CheckedBackend(delay=lambda count: 0.05, poison=True)
    slot = one_slot(backend)
    backend.fence_copies()
    copy = backend.copy(FIRST, slot, True, None)
    assert slot.view(torch.float32).isnan().all()
    backend.wait_for_copy(copy)
    assert slot.eq(1).all()
    backend.release(copy)
    assert slot.view(torch.float32).isnan().all()


def test_the_arena_given_back_under_a_copy() -> None:
    backend = CheckedBackend(delay=lambda count: 0.05)
    slot = one_slot(backend)
    backend.fence_copies()
    backend.copy(FIRST, slot, True, None)
    with pytest.raises(RaceError, match="in flight"):
        backend.memory_freed()
    backend.copy(FIRST, slot, True, None)
    backend.fence_compute()
    backend.memory_freed()


def test_the_bus_is_as_slow_as_asked() -> None:
    backend = CpuBackend(bus_gbps=32 / 20e6)  # 32 bytes take 20 ms
    slot, timed = one_slot(backend), []
    backend.fence_copies()
    backend.time_copies(timed)
    backend.copy(FIRST, slot, True, None)
    backend.synchronize()
    (count, start, end), *_ = timed
    assert count == 32 and backend.elapsed_ms(start, end) >= 20
