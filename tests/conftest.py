"""What all tests share: no gradients, one thread, and a ledger of page-locked RAM that is as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lib_async_mover.memory.pinning import ledger
from tests.pair import Pair


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers on a busy machine: threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ledger_as_before() -> Iterator[None]:
    limit_bytes = ledger.limit_bytes
    yield
    ledger.limit_bytes = limit_bytes


@pytest.fixture
def pair() -> Iterator[Pair]:
    """`Net` under a budget of 40 % of its weights: traced, packed, and streaming by a measured plan."""
    made = Pair()
    made.settle()
    assert made.mover.stats()["streamed_units"] > 1
    yield made
    made.close()
