"""Every copy has a token of its own: whoever waits for one waits for exactly that copy, whatever went before."""

from __future__ import annotations

import threading

import pytest
import torch

from lib_async_mover.device.backend import Backend
from tests.checked_backend import CheckedBackend
from tests.virtual import VirtualBackend


@pytest.mark.parametrize("backend", [CheckedBackend(), VirtualBackend()], ids=["cpu", "virtual"])
def test_a_token_per_copy(backend: Backend) -> None:
    source, slot = torch.ones(32, dtype=torch.uint8), torch.zeros(32, dtype=torch.uint8)
    backend.fence_copies()
    first, second = (backend.copy(source, slot, True, None) for _ in range(2))
    assert first is not second and first.ready != second.ready


def test_the_wait_for_the_second_of_two_copies_of_one_unit_is_not_over_with_the_first() -> None:
    """The kind of fault that once overwrote an edit: the first copy's end passed for the second one's."""
    gates = [threading.Event(), threading.Event()]
    waiting = iter(gates)
    backend = CheckedBackend(delay=lambda count: 0.0 if next(waiting).wait(10) else 1.0)
    source, slot = torch.ones(32, dtype=torch.uint8), torch.zeros(32, dtype=torch.uint8)
    backend.fence_copies()
    first = backend.copy(source, slot, True, None)
    second = backend.copy(source, slot, True, None)
    gates[0].set()
    first.ready.result(10)
    source.fill_(2)
    edit_seen: list[bool] = []

    def wait() -> None:
        backend.wait_for_copy(second)
        edit_seen.append(bool(slot.eq(2).all()))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive(), "the first copy is over, and the second has not begun"
    gates[1].set()
    thread.join(10)
    assert edit_seen == [True]
    backend.close()
