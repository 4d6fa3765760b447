"""A whole module: on the device as one while it runs, packed in definition order, nothing learned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.memory.arena import Arena
from lib_async_mover.plan.workload import MIB
from tests.pair import Pair, weight_bytes


@pytest.fixture
def whole() -> Iterator[Pair]:
    pair = Pair(share=0, whole=True)
    yield pair
    pair.close()


def test_no_leaf_is_loaded_on_demand_from_the_first_forward_on(whole: Pair) -> None:
    whole.check(times=10)
    stats = whole.mover.stats()
    assert stats["on_demand_loads"] == 0 == stats["streamed_units"] == stats["bytes_per_step"]
    assert stats["arena_mib"] * MIB >= weight_bytes(whole.model)


def test_the_plan_is_never_made_again(whole: Pair) -> None:
    whole.check()
    plan = whole.mover.plan
    for size in (8, 16, 8, 12):
        whole.run(size=size)
    whole.check(times=20)
    assert whole.mover.plan is plan


def test_weights_are_seen_on_the_device_from_the_start(whole: Pair) -> None:
    """SD3's text encoders ask where their embedding lies before they call it; Tiled VAE asks the first parameter."""
    seen = []
    host_address = whole.model.out.weight.data_ptr()
    whole.model.embed.register_forward_pre_hook(lambda *_: seen.append(whole.model.out.weight.data_ptr()))
    whole.check()
    assert seen[0] != host_address


def test_packed_before_the_first_forward(whole: Pair) -> None:
    whole.mover.pack()
    assert whole.mover.stats()["state"] == "packed" and not whole.mover.stats()["arena_mib"]
    attach_s = whole.mover.stats()["attach_s"]
    whole.check()
    assert whole.mover.stats()["arena_mib"] > 0
    whole.mover.release()
    assert whole.mover.stats()["arena_mib"] == 0
    whole.both(lambda model: model.out.weight.add_(1))
    whole.check()
    assert whole.mover.stats()["attach_s"] == attach_s


def test_what_is_packed_is_not_packed_ahead_once_more(pair: Pair) -> None:
    pair.both(lambda model: model.to(torch.float64).to(torch.float32))
    attach_s = pair.mover.stats()["attach_s"]
    pair.mover.pack()
    assert pair.mover.stats()["attach_s"] == attach_s
    pair.check(times=2)


def test_a_new_module_is_taken_in(whole: Pair) -> None:
    def change(model: nn.Module) -> None:
        torch.manual_seed(3)
        model.out = nn.Sequential(nn.Linear(32, 4))

    whole.check()
    whole.both(change)
    whole.check(times=3)
    assert whole.on_demand_loads == 0


def test_nothing_is_measured(whole: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan needs neither the bus nor the time of its forwards."""
    monkeypatch.setattr(whole.backend, "time_copies", lambda into: into is None or pytest.fail("measured"))
    whole.check(times=6)
    assert whole.mover.workload() is None


def test_where_it_does_not_fit_it_streams(whole: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = weight_bytes(whole.model) * 0.6
    allocate = Arena.allocate

    def tight(arena: Arena) -> None:
        if arena.bytes > limit:
            raise ArenaAllocationError("no room")
        allocate(arena)

    monkeypatch.setattr(Arena, "allocate", tight)
    whole.check(times=6)
    assert 0 < whole.mover.stats()["arena_mib"] * MIB <= limit


def test_a_leaf_called_from_outside_with_cpu_tensors_computes_on_the_cpu(whole: Pair) -> None:
    """As textual inversion does, which brings its token ids to where it sees the embedding's weight: in RAM."""
    whole.backend.device = torch.device("meta")  # any that is not the CPU
    x = torch.ones(1, 32)
    assert torch.equal(whole.model.out(x), whole.twin.out(x))
    assert whole.on_demand_loads == 0
    whole.backend.device = torch.device("cpu")
