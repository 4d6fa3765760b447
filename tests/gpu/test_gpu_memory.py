"""On a real GPU that is made small: torch may take a part of its memory only, and raises as on a small card."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from lib_async_mover import Mover, attach, detach
from lib_async_mover.bench.weights import weight_bytes
from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.plan.workload import MIB
from tests.gpu.test_gpu import Case, PoisoningBackend
from tests.run.test_memory import run_again

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Not here: drawing SD1.5's weights takes all there are."""


class SmallCard:
    """What a forward of SD1.5 at 512² takes beside its weights, and a limit for all that torch takes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.total = torch.cuda.get_device_properties(0).total_memory
        self.everything = weight_bytes(case.unet)
        empty()
        self.base = torch.cuda.memory_reserved()
        mover = attach(case.unet, case.device, 1.1 * self.everything / MIB)
        for _ in range(3):
            self.check()
        mover.release()
        empty()
        torch.cuda.reset_peak_memory_stats()
        self.check()
        self.activations = torch.cuda.max_memory_reserved() - self.base - self.everything
        detach(case.unet)
        empty()

    def limit(self, count: float) -> None:
        """Torch takes at most so many bytes more than it has."""
        empty()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (self.base + count) / self.total))

    def check(self, mover: Mover | None = None) -> None:
        """Each input, done again where memory runs out, gives what the resident twin gave."""
        for inputs, expected in zip(self.case.inputs, self.case.expected, strict=True):
            if mover is None:
                output = inputs.run(self.case.unet)
            else:
                output = run_again(lambda _, inputs=inputs: inputs.run(self.case.unet), mover, None)
            assert torch.equal(output.cpu(), expected)


def empty() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def made() -> SmallCard:
    torch.backends.cudnn.benchmark = False
    with torch.no_grad():
        case = Case(size_px=512)
        case.drop_resident()
        return SmallCard(case)


@pytest.fixture
def card(made: SmallCard) -> Iterator[SmallCard]:
    yield made
    torch.cuda.set_per_process_memory_fraction(1.0)
    detach(made.case.unet)
    empty()


@pytest.mark.parametrize("poison", [False, True])
def test_activations_that_do_not_fit_beside_the_buffer(card: SmallCard, poison: bool) -> None:
    device = card.case.device
    backend = PoisoningBackend(device) if poison else None
    mover = attach(card.case.unet, device, 4096, backend=backend)
    card.check()
    mover.release()
    card.limit(card.everything + card.activations // 2)
    for _ in range(12):
        card.check(mover)
    stats = mover.stats()
    assert stats["oom_retries"] >= 1 and 0 < stats["arena_mib"] * MIB <= 0.6 * card.everything


def test_down_to_the_least_buffer_and_then_raised(card: SmallCard) -> None:
    mover = attach(card.case.unet, card.case.device, 1024)
    card.check()
    mover.release()
    card.limit(card.activations // 3)
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        with pytest.raises((torch.cuda.OutOfMemoryError, ArenaAllocationError)):
            card.check(mover)
        mover.release()
        empty()
        assert torch.cuda.memory_allocated() == before
    torch.cuda.set_per_process_memory_fraction(1.0)
    card.check()


def test_an_error_at_every_seventh_leaf(card: SmallCard) -> None:
    """The allocator's own error, since no card has so much memory."""
    mover = attach(card.case.unet, card.case.device, 700)
    for _ in range(4):
        card.check()
    leaves = [leaf.module for leaf in mover.placement.store.order]
    allocated = None
    for number in range(0, len(leaves), 7):
        armed = [True]

        def fail(*_: object, armed: list[bool] = armed) -> None:
            if armed:
                armed.clear()
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

        mover.vram_mb = 700 + number / 1e4  # another size: what was reduced starts anew
        handle = leaves[number].register_forward_pre_hook(fail)
        card.check(mover)
        handle.remove()
        assert not armed and mover.stats()["budget_mb"] == pytest.approx(350, abs=1)
        mover.release()
        empty()
        allocated = allocated or torch.cuda.memory_allocated()
        assert torch.cuda.memory_allocated() == allocated
    assert mover.stats()["oom_retries"] == len(range(0, len(leaves), 7))


def test_the_automatic_size_shrinks_before_the_device_is_full(card: SmallCard, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = [card.base + card.everything + card.activations + (1 << 30)]
    info = lambda device=None: (max(0, limit[0] - torch.cuda.memory_reserved()), limit[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    mover = attach(card.case.unet, card.case.device, 0)
    for _ in range(8):
        card.check()
    before = mover.stats()["arena_mib"]
    limit[0] = int(torch.cuda.memory_reserved() + 100 * MIB)
    for _ in range(8):
        card.check()
    stats = mover.stats()
    assert stats["arena_mib"] < before - 100 and stats["oom_retries"] == 0
    assert info()[0] >= 200 * MIB


def test_a_whole_module_that_does_not_fit_streams(card: SmallCard, monkeypatch: pytest.MonkeyPatch) -> None:
    room = card.everything // 2 + card.activations + 256 * MIB
    card.limit(room)
    info = lambda device=None: (max(0, card.base + int(room) - torch.cuda.memory_reserved()), card.base + int(room))
    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    mover = attach(card.case.unet, card.case.device, whole=True)
    for _ in range(8):
        card.check(mover)
    assert not mover.whole and mover.stats()["streamed_units"] > 0
