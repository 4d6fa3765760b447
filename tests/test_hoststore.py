"""The host store: exact bytes, kept strides, RAM that does not double, and page-locking that may be refused."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_async_mover import attach, detach, hoststore
from lib_async_mover.cpu import CpuBackend
from lib_async_mover.hoststore import HostStore
from lib_async_mover.leaf import ALIGN_BYTES, Leaf, find_leaves
from lib_async_mover.pinning import PinLedger, ledger, total_ram_bytes
from tests.conftest import MIB, weight_bytes
from tests.small import image, make


class Locked:
    """Plays a driver: remembers what is page-locked, and refuses after ``capacity`` bytes."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.live: dict[int, int] = {}

    def __call__(self, address: int, count: int) -> Callable[[], None] | None:
        if sum(self.live.values()) + count > self.capacity:
            return None
        self.live[address] = count
        return lambda: self.live.pop(address) and None


class PinningBackend(CpuBackend):
    def __init__(self, locked: Locked) -> None:
        super().__init__()
        self.locked = locked

    def register(self) -> Locked:
        return self.locked


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoststore, "SPAN_BYTES", 16 << 10)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn]
shape = st.lists(st.integers(0, 5), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(shape, st.sampled_from(DTYPES), st.randoms()), max_size=8))
def test_packed_tensors_keep_values_strides_and_dtype(specs: list) -> None:
    module = nn.Module()
    expected = []
    for i, (sizes, dtype, dice) in enumerate(specs):
        axes = list(range(len(sizes)))
        dice.shuffle(axes)
        tensor = torch.randint(0, 2, [sizes[a] for a in axes]).to(dtype).permute(torch.tensor(axes).argsort().tolist())
        module.register_buffer(f"t{i}", tensor)
        expected.append((tensor, tensor.clone(), tensor.stride(), tensor.shape))
    leaf = Leaf("leaf", module, [module])
    store = HostStore()
    store.pack([[leaf]], None)
    place = store.places[id(leaf)]
    assert place.bytes == leaf.bytes() and place.bytes % ALIGN_BYTES == 0
    for tensor, values, stride, size in expected:
        assert tensor.stride() == stride and tensor.shape == size and tensor.dtype == values.dtype
        assert torch.equal(tensor.float(), values.float())
    for tensor, offset in place.tensors:
        if tensor.numel():
            assert tensor.data_ptr() == place.span.raw.data_ptr() + place.offset + offset
            assert tensor.data_ptr() % ALIGN_BYTES == 0
            assert tensor.untyped_storage().nbytes() < tensor.element_size() * tensor.numel() + ALIGN_BYTES


def test_consecutive_leaves_lie_behind_one_another_within_a_span() -> None:
    leaves, standing = find_leaves(make())
    store = HostStore()
    store.pack([[standing], leaves], None)
    assert len(store.spans) > 3
    for before, after in zip(leaves, leaves[1:], strict=False):
        first, second = store.places[id(before)], store.places[id(after)]
        assert second.span is not first.span or second.offset == first.offset + first.bytes


def test_little_is_wasted() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(20)))
    leaves, _ = find_leaves(model)
    store = HostStore()
    locked = Locked()
    store.pack([leaves], locked)
    assert sum(locked.live.values()) <= 1.02 * weight_bytes(model)
    assert store.pinned_bytes == sum(locked.live.values()) and store.pageable_bytes == 0


def test_old_storages_go_as_the_packing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(blocks=20)
    leaves, _ = find_leaves(model)
    alive = [weakref.ref(leaf.module.weight.untyped_storage()) for leaf in leaves]
    sizes = [leaf.bytes() for leaf in leaves]
    peak = 0
    plain = HostStore._fill

    def watched(store: HostStore, part: list[Leaf]) -> hoststore.Span:
        nonlocal peak
        packed = sum(span.bytes for span in store.spans)
        remaining = sum(size for leaf, size in zip(leaves, sizes, strict=True) if id(leaf) not in store.places)
        peak = max(peak, packed + remaining)
        return plain(store, part)

    monkeypatch.setattr(HostStore, "_fill", watched)
    HostStore().pack([leaves], None)
    assert peak <= sum(sizes) + hoststore.SPAN_BYTES
    del alive


def test_pages_are_unlocked_when_the_model_is_detached_or_dropped() -> None:
    locked, before = Locked(), ledger.pinned_bytes
    for drop in (False, True):
        model = make()
        mover = attach(model, "cpu", 0.05, backend=PinningBackend(locked))
        for i in range(3):
            model(image(i))
        assert sum(locked.live.values()) >= weight_bytes(model)
        assert ledger.pinned_bytes - before == sum(locked.live.values())
        if not drop:
            detach(model)
            assert not locked.live, "detach left pages locked"
            model(image())
        else:
            mover.synchronize()  # a copy in flight holds its unit
        del model, mover
        gc.collect()
        assert not locked.live and ledger.pinned_bytes == before


def test_pages_stay_locked_while_one_tensor_lives() -> None:
    locked = Locked()
    model = make()
    store = HostStore()
    store.pack([find_leaves(model)[0]], locked)
    weight = model.blocks[0].late.weight
    del model, store
    gc.collect()
    assert len(locked.live) == 1
    weight.clone()
    del weight
    gc.collect()
    assert not locked.live


def test_moving_to_meta_gives_the_pages_back() -> None:
    locked = Locked()
    model = make()
    attach(model, "cpu", 0.05, backend=PinningBackend(locked))
    for i in range(4):
        model(image(i))
    detach(model)
    model.to("meta")
    gc.collect()
    assert not locked.live


def test_packing_anew_does_not_lock_twice_as_much() -> None:
    locked = Locked()
    model = make()
    attach(model, "cpu", 0.05, backend=PinningBackend(locked))
    for _ in range(3):
        for i in range(3):
            model(image(i))
        model.to(torch.float64)
        model.to(torch.float32)
    gc.collect()
    assert sum(locked.live.values()) <= 1.1 * weight_bytes(model)


@pytest.mark.parametrize("refusal", ["limit", "driver"])
def test_refused_pages_are_said_once_and_the_rest_goes_on(refusal: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make(blocks=20)
    capacity = 60 << 10
    locked = Locked(capacity if refusal == "driver" else 1 << 40)
    before = ledger.limit_bytes
    limit_mb = (ledger.pinned_bytes + capacity) / MIB if refusal == "limit" else None
    try:
        with caplog.at_level(logging.WARNING, "async_lowvram"):
            attach(model, "cpu", 0.05, pin_limit_mb=limit_mb, backend=PinningBackend(locked))
            twin = make(blocks=20)
            for i in range(6):
                assert torch.equal(model(image(i)), twin(image(i)))
    finally:
        ledger.limit_bytes = before
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "page-locked RAM" in warnings[0]
    assert 0 < sum(locked.live.values()) <= capacity


def test_the_ledger_counts() -> None:
    books = PinLedger()
    books.set_limit_mb(1)
    assert books.take(MIB) and not books.take(1)
    books.give(MIB)
    assert books.take(1)
    assert total_ram_bytes() > 0
