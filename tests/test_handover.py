"""From one plan to the next: residents that stay are moved within the arena, and are not copied from RAM again."""

from __future__ import annotations

import pytest
import torch

from lib_async_mover.arena import Arena
from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.unit import Unit
from tests.conftest import Pair
from tests.small import image, make


class Copies:
    """The leaves whose bytes cross the bus, by name."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self._pair = pair
        copy = pair.backend.copy

        def watched(unit: Unit, after: Unit | None) -> None:
            self._note(unit)
            copy(unit, after)

        monkeypatch.setattr(pair.backend, "copy", watched)

    def _note(self, unit: Unit) -> None:
        pack = self._pair.mover.holdings.pack
        assert pack is not None
        if unit.resident:
            start = unit.source.data_ptr()
            self.names += [
                leaf.name
                for leaf in pack.order
                if start <= leaf.tensors()[0].data_ptr() < start + unit.bytes
            ]


@pytest.fixture
def still() -> Pair:
    """A pair that measures nothing by itself any more."""
    pair = Pair(make(blocks=30), 0.6)
    pair.still()
    pair.replan(100)
    pair.check(times=2)
    assert pair.residents
    return pair


def test_residents_that_stay_are_not_copied_again(still: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stayed = came = 0
    for seed in range(36):
        still.replan(seed)
        before = still.residents
        with monkeypatch.context() as patch:
            copies = Copies(still, patch)
            still.check(times=3)
        now = still.residents
        assert sorted(copies.names) == sorted(now - before)
        stayed += len(before & now)
        came += len(now - before)
    assert stayed > 25 and came > 10


def test_the_same_plan_again_touches_nothing(still: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    still.replan(0)
    still.check(times=3)
    loadout, scheduler = still.mover.holdings.loadout, still.mover.holdings.scheduler
    assert scheduler is not None
    scheduler._due = True
    copies = Copies(still, monkeypatch)
    still.check(times=3)
    assert still.mover.holdings.loadout is loadout
    assert not copies.names


def test_an_edit_before_the_new_plan_is_seen(still: Pair) -> None:
    for seed in range(6):
        still.replan(seed)
        still.both(lambda model: [leaf.weight.mul_(1.5) for leaf in (model.embed, model.wide, model.out)])
        still.check(times=2)


def test_a_plan_that_fails_to_be_laid_out_leaves_nothing_wrong(still: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room for a chunk")

    with monkeypatch.context() as patch:
        patch.setattr("lib_async_mover.arena.Arena.rearrange", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            for seed in range(12):  # until a plan is another one
                still.replan(seed)
                still.model(image())
    assert not still.mover.stats()["arena_mib"]
    still.check(times=3)


def test_another_budget_takes_the_memory_anew(still: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(still, monkeypatch)
    still.mover.vram_mb *= 0.7
    still.check(times=3)
    assert set(copies.names) == still.residents


def test_an_arena_that_no_longer_fits_is_taken_smaller(still: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_async_mover.holdings.LEAST_BUDGET_BYTES", 1024)
    still.mover.release()
    refused = []
    allocate = Arena.allocate

    def tight(arena: Arena) -> None:
        if arena.bytes > 0.5 * still.mover.vram_mb * 2**20 and not refused:
            refused.append(arena.bytes)
            raise ArenaAllocationError("no room")
        allocate(arena)

    monkeypatch.setattr(Arena, "allocate", tight)
    still.check(times=3)
    assert refused and 0 < still.mover.stats()["arena_mib"] <= 0.5 * still.mover.vram_mb
