"""Each wait of the CUDA backend by itself, without a model. What a wait is for is made late with certainty."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from lib_async_mover.device.accelerator import AcceleratorBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LATE = 200_000_000  # cycles of the device's clock: at least a tenth of a second
LATE_S = 0.2  # of a thread
COUNT = 1 << 20
Made = Callable[[Callable[[int], object]], AcceleratorBackend]


@pytest.fixture(scope="module", autouse=True)
def loaded_kernels() -> None:
    """Torch loads a kernel when it is launched first, which may wait for the device and hide that a wait is missing."""
    memory, other = empty(), empty()
    memory.fill_(1)
    other.copy_(memory)
    torch.cuda._sleep(1)
    torch.cuda.synchronize()


@pytest.fixture
def make() -> Iterator[Made]:
    """Backends whose copies are followed by something."""
    made: list[AcceleratorBackend] = []

    def make_one(after_copy: Callable[[int], object]) -> AcceleratorBackend:
        backend = AcceleratorBackend(torch.device("cuda"), after_copy)
        backend.use_current_stream()
        made.append(backend)
        return backend

    yield make_one
    for backend in made:
        backend.close()


def the_stream_sleeps(count: int) -> None:
    """The next copy is issued at once, and made late."""
    torch.cuda._sleep(LATE)


def the_thread_sleeps(count: int) -> None:
    """The next copy is issued late, where another thread issues it."""
    time.sleep(LATE_S)


def empty() -> torch.Tensor:
    """Device memory, shape (COUNT,), uint8. To be taken before anything is late: taking it may wait for the device."""
    return torch.zeros(COUNT, dtype=torch.uint8, device="cuda")


def host(value: int, pinned: bool = True) -> torch.Tensor:
    """Bytes to copy. Page-locking may wait for the device too."""
    memory = torch.full((COUNT,), value, dtype=torch.uint8)
    return memory.pin_memory() if pinned else memory


def holds(memory: torch.Tensor, value: int) -> bool:
    """Once the device has done all it was given."""
    torch.cuda.synchronize()
    return bool(memory.cpu().eq(value).all())


def test_the_compute_waits_for_the_copy(make: Made) -> None:
    backend = make(the_stream_sleeps)
    sources, slots, seen = [host(1), host(2)], [empty(), empty()], empty()
    torch.cuda.synchronize()
    copies = [backend.copy(source, slot, True, None) for source, slot in zip(sources, slots, strict=True)]
    backend.wait_for_copy(copies[1])
    seen.copy_(slots[1])
    assert holds(seen, 2)


def test_a_copy_waits_for_the_slots_last_reader(make: Made) -> None:
    backend = make(the_stream_sleeps)
    sources, slot, seen = [host(1), host(2)], empty(), empty()
    copy = backend.copy(sources[0], slot, True, None)
    backend.wait_for_copy(copy)
    torch.cuda.synchronize()
    torch.cuda._sleep(LATE)
    seen.copy_(slot)
    backend.copy(sources[1], slot, True, backend.release(copy))
    assert holds(seen, 1)
    assert holds(slot, 2)


def test_copies_wait_for_the_compute_at_a_fence(make: Made) -> None:
    backend = make(the_stream_sleeps)
    source, memory = host(1), empty()
    torch.cuda.synchronize()
    torch.cuda._sleep(LATE)
    memory.fill_(9)  # as whoever had it before
    backend.fence_copies()
    backend.copy(source, memory, True, None)
    assert holds(memory, 1)


@pytest.mark.parametrize(("after_copy", "pinned"), [(the_stream_sleeps, True), (the_thread_sleeps, False)])
def test_the_compute_waits_for_all_copies_at_a_fence(make: Made, after_copy: Callable, pinned: bool) -> None:
    """Those that another thread has not issued yet, too."""
    backend = make(after_copy)
    sources, slot, memory = [host(1, pinned), host(2, pinned)], empty(), empty()
    torch.cuda.synchronize()
    for source, target in zip(sources, (slot, memory), strict=True):
        backend.copy(source, target, pinned, None)
    backend.fence_compute()
    memory.fill_(7)  # as whoever has it next
    backend.synchronize()
    assert holds(memory, 7)


def test_the_compute_waits_for_a_copy_that_is_not_issued_yet(make: Made) -> None:
    backend = make(the_thread_sleeps)
    sources, slots, seen = [host(1, False), host(2, False)], [empty(), empty()], empty()
    torch.cuda.synchronize()
    copies = [backend.copy(source, slot, False, None) for source, slot in zip(sources, slots, strict=True)]
    backend.wait_for_copy(copies[1])
    seen.copy_(slots[1])
    backend.synchronize()
    assert holds(seen, 2)


def test_a_staging_buffer_is_not_filled_again_before_it_was_copied(make: Made) -> None:
    """There are two, so the fourth copy takes the one that the second is still to be copied from."""
    backend = make(the_stream_sleeps)
    sources, slots = [host(value, False) for value in range(1, 5)], [empty() for _ in range(4)]
    torch.cuda.synchronize()
    for source, slot in zip(sources, slots, strict=True):
        backend.copy(source, slot, False, None)
    backend.synchronize()
    assert [holds(slot, value) for value, slot in enumerate(slots, 1)] == [True] * 4


@pytest.mark.parametrize(("after_copy", "pinned"), [(the_stream_sleeps, True), (the_thread_sleeps, False)])
def test_the_host_waits_for_all_copies(make: Made, after_copy: Callable, pinned: bool) -> None:
    backend = make(after_copy)
    sources, slots = [host(1, pinned), host(2, pinned)], [empty(), empty()]
    torch.cuda.synchronize()
    for source, slot in zip(sources, slots, strict=True):
        backend.copy(source, slot, pinned, None)
    backend.synchronize()
    assert backend.copy_stream.query()
    assert holds(slots[1], 2)
