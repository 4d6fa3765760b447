"""Page-locked RAM: counted, limited, refused, and given back exactly when the last tensor goes."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import pytest
import torch

from lib_async_mover import attach, detach
from lib_async_mover.device.cpu import CpuBackend
from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.memory.leaf import find_leaves
from lib_async_mover.memory.pinning import PinLedger, ledger, total_ram_bytes
from lib_async_mover.plan.workload import MIB
from tests.pair import Pair, weight_bytes
from tests.small import image, make


class Driver(CpuBackend):
    """Remembers what it page-locked, and refuses after ``capacity`` bytes."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        super().__init__()
        self.capacity = capacity
        self.live: dict[int, int] = {}

    def page_lock(self, address: int, count: int) -> Callable[[], None] | None:  # type: ignore[override]
        if self.locked_bytes + count > self.capacity:
            return None
        self.live[address] = count
        return lambda: self.live.pop(address) and None

    @property
    def locked_bytes(self) -> int:
        return sum(self.live.values())


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_async_mover.memory.host_store.SPAN_BYTES", 16 << 10)


def streamed(driver: Driver) -> Pair:
    pair = Pair(backend=driver)
    pair.run(times=3)
    return pair


def test_the_ledger_counts() -> None:
    books = PinLedger()
    books.set_limit_mb(1)
    assert books.take(MIB) and not books.take(1)
    books.give(MIB)
    assert books.take(1)
    assert total_ram_bytes() > 0


@pytest.mark.parametrize("drop", [False, True])
def test_pages_are_unlocked_when_the_model_is_detached_or_dropped(drop: bool) -> None:
    driver, before = Driver(), ledger.pinned_bytes
    pair = streamed(driver)
    assert weight_bytes(pair.model) <= driver.locked_bytes == ledger.pinned_bytes - before
    assert pair.mover.stats()["pinned_mib"] == driver.locked_bytes / MIB and pair.mover.stats()["pageable_mib"] == 0
    if drop:
        pair.mover.backend.synchronize()  # a copy in flight holds its source
    else:
        detach(pair.model)
        assert not driver.live, "detach left pages locked"
        pair.run()
    del pair
    gc.collect()
    assert not driver.live and ledger.pinned_bytes == before


def test_pages_stay_locked_while_one_tensor_lives() -> None:
    driver = Driver()
    model = make()
    leaves, standing = find_leaves(model)
    store = HostStore(model, leaves, [], standing, driver.page_lock)
    weight, expected = model.blocks[0].late.weight, model.blocks[0].late.weight.clone()
    del model, store, leaves, standing
    gc.collect()
    assert len(driver.live) == 1 and torch.equal(weight, expected)
    del weight
    gc.collect()
    assert not driver.live


def test_moving_to_meta_gives_the_pages_back() -> None:
    driver = Driver()
    pair = streamed(driver)
    pair.close()
    pair.model.to("meta")
    gc.collect()
    assert not driver.live


def test_packing_anew_does_not_lock_twice_as_much() -> None:
    driver = Driver()
    pair = streamed(driver)
    for _ in range(3):
        pair.both(lambda model: model.to(torch.float64).to(torch.float32))
        pair.run(times=3)
    gc.collect()
    assert driver.locked_bytes <= 1.1 * weight_bytes(pair.model)
    pair.close()


@pytest.mark.parametrize("refusal", ["limit", "driver"])
def test_refused_pages_are_said_once_and_the_rest_goes_on(refusal: str, caplog: pytest.LogCaptureFixture) -> None:
    capacity = 60 << 10
    driver = Driver(capacity if refusal == "driver" else 1 << 40)
    limit_mb = (ledger.pinned_bytes + capacity) / MIB if refusal == "limit" else None
    model, twin = make(blocks=20), make(blocks=20)
    mover = attach(model, "cpu", 0.05, pin_limit_mb=limit_mb, backend=driver)
    with caplog.at_level(logging.WARNING, "async_lowvram"):
        for i in range(6):
            assert torch.equal(model(image(i)), twin(image(i)))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "page-locked RAM" in warnings[0]
    assert 0 < driver.locked_bytes <= capacity and mover.stats()["pageable_mib"] > 0
    detach(model)
