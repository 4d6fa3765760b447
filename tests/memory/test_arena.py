"""The arena: memory that comes and goes under views that stay."""

from __future__ import annotations

import pytest
import torch

from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.memory.arena import Arena


def test_views_follow_the_memory() -> None:
    arena = Arena(4096, torch.device("cpu"))
    like = torch.empty(3, 5, dtype=torch.float16)
    view = arena.view(like, (1, 3), 512)
    assert view.shape == (3, 5) and view.stride() == (1, 3) and view.data_ptr() == arena.raw.data_ptr() + 512
    arena.free()
    assert not arena.allocated
    arena.allocate()
    assert arena.allocated and view.data_ptr() == arena.raw.data_ptr() + 512
    arena.raw.zero_()
    assert view.eq(0).all()


def test_taking_what_is_held_touches_nothing() -> None:
    arena = Arena(4096, torch.device("cpu"))
    arena.raw.fill_(7)
    address = arena.raw.data_ptr()
    arena.allocate()
    assert arena.raw.data_ptr() == address and arena.raw.eq(7).all()


def test_an_empty_arena_is_always_there() -> None:
    arena = Arena(0, torch.device("cpu"))
    assert arena.allocated
    arena.free()
    arena.allocate()
    assert arena.allocated


def test_no_room_says_what_to_do() -> None:
    with pytest.raises(ArenaAllocationError, match="choose a smaller buffer"):
        Arena(1 << 60, torch.device("cpu"))
