"""The buffer's size: raised to what the largest leaf needs, smaller where the device refuses."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.memory.arena import Arena
from lib_async_mover.memory.leaf import ALIGN
from lib_async_mover.plan.planner import make_plan
from lib_async_mover.plan.workload import MIB
from tests.pair import Pair, replan, weight_bytes
from tests.small import make


def least_mb(pair: Pair) -> float:
    """What stands, and the largest leaf: `wide`, whose bias is padded to the alignment."""
    return (ALIGN + weight_bytes(pair.model.wide)) / MIB


def test_a_buffer_smaller_than_the_largest_leaf_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(share=0.05)
    with caplog.at_level(logging.INFO, "async_lowvram"):
        pair.check(times=12)
        pair.mover.release()
        pair.run()
    raised = [record.getMessage() for record in caplog.records if "largest layer" in record.getMessage()]
    assert len(raised) == 1
    stats = pair.mover.stats()
    assert stats["vram_mb"] == pytest.approx(0.05 * weight_bytes(pair.model) / MIB)
    assert stats["budget_mb"] == pytest.approx(least_mb(pair), abs=1e-6) and stats["arena_mib"] <= stats["budget_mb"]
    assert stats["on_demand_loads"] == 22, "one for each leaf, in the first forward"
    pair.close()


def test_a_size_that_is_no_multiple_of_the_alignment() -> None:
    """Slots are laid out from both ends of the ring: one that ends at an odd byte would be read elsewhere."""
    pair = Pair(share=0)
    for extra in (0.0, 0.1, 1.0, 100.1, 255.0):
        pair.mover.vram_mb = (36 * 1024 + extra) / MIB
        for seed in range(4):
            replan(pair.mover, seed)
            pair.check()
            assert pair.mover.plan is None or all(unit.offset % ALIGN == 0 for unit in pair.mover.plan.units)
    pair.close()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The device's room for an arena, in bytes: to be set; and what was refused."""
    refused = [1 << 60]
    allocate = Arena.allocate

    def tight(arena: Arena) -> None:
        if arena.bytes > refused[0]:
            refused.append(arena.bytes)
            raise ArenaAllocationError("no room")
        allocate(arena)

    monkeypatch.setattr(Arena, "allocate", tight)
    yield refused


def test_an_arena_that_no_longer_fits_is_taken_smaller(pair: Pair, room: list[int]) -> None:
    pair.mover.vram_mb *= 2
    pair.check(times=2)
    pair.mover.release()
    room[0] = int(0.6 * pair.mover.stats()["budget_mb"] * MIB)
    pair.check(times=3)
    assert len(room) == 2 and 0 < pair.mover.stats()["arena_mib"] * MIB <= room[0]
    room[0] = 1 << 60
    pair.mover.release()
    pair.check()
    assert pair.mover.stats()["arena_mib"] * MIB < room[1], "what was refused is not asked for again"
    pair.mover.vram_mb *= 1.1
    pair.check()
    assert pair.mover.stats()["arena_mib"] * MIB > room[1] / 2, "until another size is chosen"


def test_no_room_at_all_is_raised_and_nothing_is_bound(pair: Pair, room: list[int]) -> None:
    pair.mover.release()
    room[0] = 1024
    with pytest.raises(ArenaAllocationError):
        pair.run()
    assert pair.mover.stats()["arena_mib"] in (0, None) and not pair.mover.busy
    pair.check_weights()
    room[0] = 1 << 60
    pair.check(times=2)


def test_automatic_starts_small_and_ends_within_what_is_free() -> None:
    pair = Pair(share=0)
    pair.settle()
    stats = pair.mover.stats()
    assert stats["vram_mb"] == 0 and stats["budget_mb"] * MIB <= 2 * weight_bytes(pair.model)
    pair.check()
    pair.close()


def test_a_told_workload_is_what_the_plan_is_made_of() -> None:
    pair = Pair(make(blocks=20), 0.5)
    pair.run(times=2)
    for seed in range(6):
        replan(pair.mover, seed)
        pair.check()
        assert pair.mover.plan == make_plan(pair.mover.workload(), pair.mover.plan.budget_bytes)
    pair.close()
