"""Memory runs out: the buffer yields, the step is done again, and the bits are those of a model that had room."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lib_async_mover.device.out_of_memory import drop_locals, is_out_of_memory
from lib_async_mover.memory.leaf import find_leaves
from lib_async_mover.memory.pinning import ledger
from lib_async_mover.plan.workload import MIB, LeafCost, Workload
from lib_async_mover.run import buffer
from tests.checked_backend import CheckedBackend
from tests.pair import Pair, hasty, weight_bytes
from tests.run.test_buffer import least_mb
from tests.small import image, make


class Card:
    """A leaf of the model raises out of memory while the arena holds more than `room` bytes, and inputs are large."""

    def __init__(self, pair: Pair, leaf: nn.Module, room: float) -> None:
        self.pair = pair
        self.room = room
        self.large = 0  # inputs of at least so many rows have the trouble
        self.errors = 0
        self.seen: list[weakref.ref] = []  # activations of forwards that failed
        self.handle = leaf.register_forward_pre_hook(self._before)

    def _before(self, module: nn.Module, args: tuple) -> None:
        activation = args[0]
        if self.pair.mover.placement.held_bytes > self.room and activation.numel() >= self.large:
            self.errors += 1
            if module is not self.pair.model.embed:  # which gets the input
                self.seen.append(weakref.ref(activation))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def run_again(model: Callable, mover: Any, x: torch.Tensor, after: Callable[[], object] = lambda: None) -> torch.Tensor:
    """As the webui's guard does."""
    while True:
        try:
            return model(x)
        except Exception as error:  # noqa: BLE001
            if not is_out_of_memory(error):
                raise
            drop_locals(error)
            if not mover.give_way():
                raise
        after()


def budget_of(pair: Pair) -> float:
    return pair.mover.stats()["budget_mb"]


@pytest.mark.parametrize("number", [0, 7, 14, 21])
def test_out_of_memory_at_a_leaf(pair: Pair, number: int) -> None:
    before = budget_of(pair)
    leaf = pair.mover.placement.store.order[number].module
    card = Card(pair, leaf, 0.6 * before * MIB)
    state = torch.get_rng_state()

    def given_back() -> None:
        assert pair.mover.stats()["arena_mib"] == 0 and not pair.mover.busy
        assert all(reference() is None for reference in card.seen), "what the failed forward computed is gone"
        pair.check_weights()

    gc.collect()
    gc.disable()
    for seed in range(4):
        x = image(seed)
        assert torch.equal(run_again(pair.model, pair.mover, x, given_back), pair.twin(x))
    gc.enable()
    assert card.errors == 1 == pair.mover.stats()["oom_retries"], "the reduced size holds"
    assert budget_of(pair) == pytest.approx(before / 2, abs=0.001)
    assert torch.equal(torch.get_rng_state(), state)
    card.handle.remove()
    pair.check(times=3)
    assert budget_of(pair) == pytest.approx(before / 2, abs=0.001)


def test_down_to_the_least_and_then_raised(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    card = Card(pair, pair.model.out, -1)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_again(pair.model, pair.mover, image())
    said = [record.getMessage() for record in caplog.records if "out of VRAM" in record.getMessage()]
    assert len(said) == card.errors - 1 == pair.mover.stats()["oom_retries"] > 0
    assert not pair.mover.give_way()
    card.handle.remove()
    pair.check(times=3)
    assert budget_of(pair) == pytest.approx(least_mb(pair), abs=1e-6)


def test_a_buffer_far_too_large_counts_as_what_it_takes() -> None:
    pair = Pair(share=20)
    pair.settle()
    Card(pair, pair.model.out, 0.6 * weight_bytes(pair.model))
    assert torch.equal(run_again(pair.model, pair.mover, image()), pair.twin(image()))
    assert pair.mover.stats()["oom_retries"] == 1
    pair.close()


def test_other_sizes_keep_the_whole_buffer(pair: Pair) -> None:
    """A large image gets the reduced buffer at once, a small one the whole one when the arena is taken anew."""
    full = budget_of(pair)
    card = Card(pair, pair.model.out, 0.6 * full * MIB)
    card.large = 2 * 16 * 16 * 32
    for _ in range(3):
        for size, expected in ((16, full / 2), (8, full), (12, full), (16, full / 2)):
            for seed in range(3):
                x = image(seed, size)
                assert torch.equal(run_again(pair.model, pair.mover, x), pair.twin(x))
                assert budget_of(pair) == pytest.approx(expected, abs=0.001), size
            pair.mover.release()
    assert card.errors == 1
    for seed, size in enumerate([16, *[8] * 12]):  # or after a while
        pair.run(seed=seed, size=size)
    assert budget_of(pair) == pytest.approx(full, abs=0.001)


def test_sizes_that_alternate_do_not_change_the_plan_in_every_forward(pair: Pair) -> None:
    full = budget_of(pair)
    card = Card(pair, pair.model.out, 0.6 * full * MIB)
    card.large = 2 * 16 * 16 * 32
    run_again(pair.model, pair.mover, image(0, 16))
    for seed in range(10):
        pair.run(seed=seed, size=8 if seed % 2 else 16)
        assert budget_of(pair) == pytest.approx(full / 2, abs=0.001)


def test_another_buffer_is_a_fresh_start(pair: Pair) -> None:
    card = Card(pair, pair.model.out, 0.6 * budget_of(pair) * MIB)
    run_again(pair.model, pair.mover, image())
    pair.mover.vram_mb *= 1.1
    card.handle.remove()
    pair.check(times=3)
    assert budget_of(pair) == pytest.approx(pair.mover.vram_mb, abs=0.001)


def test_nothing_piles_up(pair: Pair) -> None:
    """Ten times: objects and page-locked bytes are as many afterwards."""

    def once() -> None:
        card = Card(pair, pair.model.out, 0.6 * budget_of(pair) * MIB)
        run_again(pair.model, pair.mover, image())
        card.handle.remove()
        pair.mover.vram_mb *= 1.0001  # a fresh start
        pair.run()

    for _ in range(3):
        once()
    counts = []
    for _ in range(2):
        gc.collect()
        counts.append((sum(isinstance(each, torch.Tensor) for each in gc.get_objects()), ledger.pinned_bytes))
        for _ in range(5):
            once()
    assert counts[0] == counts[1]


def test_within_a_forward_nothing_is_given(pair: Pair) -> None:
    gave = []
    handle = pair.model.out.register_forward_pre_hook(lambda *_: gave.append(pair.mover.give_way()))
    pair.check()
    assert gave == [False]
    handle.remove()


@pytest.mark.parametrize("number", [0, 9])
def test_in_a_traced_forward_there_is_nothing_to_give(number: int) -> None:
    """And a load that failed leaves no recorder behind."""
    pair = Pair()
    allocate, calls = torch.empty_strided, []

    def fail(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > number:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return allocate(*args, **kwargs)

    before = _get_current_dispatch_mode()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(torch.cuda.OutOfMemoryError):
        patch.setattr(torch, "empty_strided", fail)
        run_again(pair.model, pair.mover, image())
    assert _get_current_dispatch_mode() is before
    pair.check(times=6)
    pair.close()


def test_what_out_of_memory_looks_like() -> None:
    for text in (
        "CUDA out of memory. Tried to allocate 2.00 GiB", "HIP out of memory.", "XPU out of memory.",
        "CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    ):  # fmt: skip
        assert is_out_of_memory(RuntimeError(text)), text
    for error in (
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), MemoryError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("CUDA out of memory"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ):  # fmt: skip
        assert not is_out_of_memory(error), error


def test_an_error_keeps_nothing_of_its_calls_or_causes_alive() -> None:
    seen = []

    def inner() -> None:
        local = torch.ones(3)
        seen.append(weakref.ref(local))
        raise ValueError("a cause")

    def outer() -> None:
        local = torch.ones(3)
        seen.append(weakref.ref(local))
        try:
            inner()
        except ValueError as error:
            raise RuntimeError("an effect") from error

    try:
        outer()
    except RuntimeError as error:
        assert all(reference() is not None for reference in seen)
        drop_locals(error)
        assert all(reference() is None for reference in seen)


class Nearly(CheckedBackend):
    """A card whose free memory is to be set."""

    def __init__(self) -> None:
        super().__init__(poison=True, delay=hasty())
        self.free, self.cached, self.emptied = 1 << 30, 0, 0
        self.taken: Callable[[], int] = lambda: 0

    def free_bytes(self) -> int:
        return self.free - self.taken()

    def total_bytes(self) -> int:
        return 1 << 30

    def cached_bytes(self) -> int:
        return self.cached

    def empty_cache(self) -> None:
        self.emptied += 1
        self.free, self.cached = self.free + self.cached, 0


def packed_bytes(pair: Pair) -> int:
    """Of all weights, each tensor aligned."""
    return sum(leaf.bytes() for leaf in [*find_leaves(pair.model)[0], find_leaves(pair.model)[1]])


RESERVE = 40 << 10


@pytest.fixture
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "RESERVE_BYTES", RESERVE)
    monkeypatch.setattr(buffer, "RESERVE_SHARE", 0)


@pytest.fixture
def auto(small_reserve: None) -> Iterator[Pair]:
    """An automatic size that was all weights at first."""
    pair = Pair(share=0, backend=Nearly())
    pair.check(times=3)
    yield pair
    pair.close()


def test_the_automatic_size_shrinks_between_two_steps(auto: Pair, caplog: pytest.LogCaptureFixture) -> None:
    card, before = auto.backend, auto.mover.stats()["arena_mib"]
    card.free = RESERVE - (10 << 10)
    auto.check()
    assert card.emptied == 1 and auto.mover.stats()["arena_mib"] == before, "what others left in the cache goes first"
    auto.check()
    after = auto.mover.stats()["arena_mib"]
    assert after <= before - 10 / 1024
    card.free += int((before - after) * MIB)
    auto.check(times=5)
    assert auto.mover.stats()["arena_mib"] <= after
    assert len([record for record in caplog.records if "nearly full" in record.getMessage()]) == 1
    assert auto.mover.stats()["oom_retries"] == 0


def test_an_automatic_size_shrinks_to_the_least_and_no_further(auto: Pair) -> None:
    auto.backend.free = 0
    auto.check(times=20)
    assert budget_of(auto) == pytest.approx(least_mb(auto), abs=1e-6)


def test_the_cache_that_others_left_is_no_reason_to_shrink(auto: Pair, caplog: pytest.LogCaptureFixture) -> None:
    auto.backend.free, auto.backend.cached = RESERVE // 2, RESERVE
    auto.check(times=5)
    assert auto.backend.emptied == 1 and not [each for each in caplog.records if "nearly" in each.getMessage()]


def test_a_chosen_size_is_kept_while_memory_does_not_run_out(small_reserve: None) -> None:
    pair = Pair(backend=Nearly())
    pair.settle()
    before = budget_of(pair)
    pair.backend.free = 0
    pair.check(times=5)
    assert budget_of(pair) == before and pair.backend.emptied == 0
    pair.close()


def test_the_automatic_size_leaves_what_activations_needed(small_reserve: None) -> None:
    """The room is what the device had free beside the activations of inputs of that size, not what it has now."""
    card, held, leaf_bytes = Nearly(), 100 << 10, 10 << 10
    size = buffer.Buffer("module", card)
    load = Workload(tuple(LeafCost(f"{i}", leaf_bytes, i * 0.2) for i in range(40)), 1e-3)  # the more, the faster
    for now in (0, held):
        size.begin(("large", "other"), now)
    card.free = 2 * RESERVE
    assert not size.shrink_due(held, held, lambda: load)
    card.free = 1 << 30
    most = held + 0.875 * RESERVE
    size.begin(("large",), 0)
    assert most - leaf_bytes <= size.bytes(0, load, True, 0) <= most
    size.begin(("small",), 0)
    assert size.bytes(0, load, True, 0) > 2 * most


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_whole_module_that_does_not_fit_streams(small_reserve: None, share: float) -> None:
    card = Nearly()
    pair = Pair(share=0, whole=True, backend=card)
    card.free = int(share * packed_bytes(pair) + 1.125 * RESERVE)
    card.taken = lambda: pair.mover.placement.held_bytes
    pair.check(times=12)
    stats = pair.mover.stats()
    assert not pair.mover.whole and stats["on_demand_loads"] == 22, "in the one forward that is traced"
    assert stats["streamed_units"] and 0 < stats["arena_mib"] * MIB <= share * packed_bytes(pair)
    pair.close()


def test_what_torch_keeps_unused_counts_as_free_for_a_whole_module(small_reserve: None) -> None:
    card = Nearly()
    pair = Pair(share=0, whole=True, backend=card)
    card.free, card.cached = 2 * RESERVE, packed_bytes(pair)
    pair.check(times=4)
    assert pair.mover.whole and pair.mover.stats()["streamed_units"] == 0
    pair.close()


def test_a_whole_module_that_runs_out_of_memory_streams() -> None:
    pair = Pair(share=0, whole=True)
    pair.check()
    card = Card(pair, pair.model.blocks[3].late, 0.6 * packed_bytes(pair))
    for seed in range(8):
        x = image(seed)
        assert torch.equal(run_again(pair.model, pair.mover, x), pair.twin(x))
    assert card.errors == 1 and not pair.mover.whole and pair.mover.stats()["streamed_units"]
    assert pair.mover.stats()["arena_mib"] * MIB <= 0.5 * packed_bytes(pair)
    pair.check_weights()
    pair.close()


def test_page_locked_ram_for_a_third_of_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    """What fits is locked, and one sentence says so, for all modules and images."""
    ledger.told = None

    class Locks(CheckedBackend):
        page_lock = staticmethod(lambda address, count: lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib_async_mover.memory.host_store.SPAN_BYTES", 16 << 10)
        pairs = [Pair(make(seed=seed), backend=Locks(poison=True, delay=hasty())) for seed in range(2)]
        ledger.limit_bytes = ledger.pinned_bytes + sum(weight_bytes(pair.model) for pair in pairs) // 3
        for _ in range(3):
            for pair in pairs:
                pair.check(times=4)
                pair.both(lambda model: model.to(torch.float64).to(torch.float32))  # packed anew
    stats = [pair.mover.stats() for pair in pairs]
    locked = sum(each["pinned_mib"] for each in stats) * MIB
    assert 0 < locked <= ledger.limit_bytes and locked >= 0.2 * sum(weight_bytes(pair.model) for pair in pairs)
    assert len([record for record in caplog.records if "could not be locked" in record.getMessage()]) == 1
    for pair in pairs:
        pair.close()
