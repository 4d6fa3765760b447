"""A whole module: on the device as one while it runs, packed in definition order, nothing learned."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn

from lib_async_mover import attach, detach
from lib_async_mover.cpu import CpuBackend
from lib_async_mover.errors import ArenaAllocationError
from tests.conftest import hasty, weight_bytes
from tests.small import image, make

MIB = 1 << 20


class Whole:
    def __init__(self) -> None:
        self.model = make()
        self.twin = copy.deepcopy(self.model)
        self.mover = attach(self.model, "cpu", whole=True, backend=CpuBackend(poison=True, delay=hasty()))

    def check(self, times: int = 1) -> None:
        for i in range(times):
            assert torch.equal(self.model(image(i)), self.twin(image(i)))
        assert all(t.device.type == "cpu" for t in self.model.state_dict().values())


@pytest.fixture
def whole() -> Whole:
    return Whole()


def test_no_leaf_is_loaded_on_the_spot_from_the_first_forward_on(whole: Whole) -> None:
    whole.check(times=20)
    assert whole.mover.visits.count == 0
    stats = whole.mover.stats()
    assert stats["streamed_units"] == 0
    assert stats["arena_mib"] * MIB >= weight_bytes(whole.model)


def test_the_plan_is_never_made_again(whole: Whole) -> None:
    whole.check()
    loadout = whole.mover.holdings.loadout
    for size in (8, 16, 8, 12):
        x = image(size=size)
        assert torch.equal(whole.model(x), whole.twin(x))
    whole.check(times=20)
    assert whole.mover.holdings.loadout is loadout


def test_weights_are_seen_on_the_device_from_the_start(whole: Whole) -> None:
    """SD3's text encoders ask where their embedding lies before they call it; Tiled VAE asks the first parameter."""
    seen = []
    parked = whole.model.out.weight.data_ptr()
    whole.model.embed.register_forward_pre_hook(lambda *_: seen.append(whole.model.out.weight.data_ptr()))
    whole.check()
    assert seen[0] != parked


def test_prepared_and_prefetched_before_the_first_forward(whole: Whole) -> None:
    whole.mover.prepare()
    assert whole.mover.stats()["state"] != "tracing"
    assert not whole.mover.stats()["arena_mib"]
    whole.mover.prefetch()
    assert whole.mover.stats()["arena_mib"] > 0
    whole.check()
    whole.mover.release()
    assert whole.mover.stats()["arena_mib"] == 0
    whole.check()


def test_an_edit_between_prefetch_and_forward_is_seen(whole: Whole) -> None:
    whole.check()
    whole.mover.release()
    whole.mover.prefetch()
    whole.mover.synchronize()
    for model in (whole.model, whole.twin):
        model.out.weight.add_(1)
    whole.check()


def test_a_new_module_is_taken_in(whole: Whole) -> None:
    whole.check()
    for model in (whole.model, whole.twin):
        torch.manual_seed(3)
        model.out = nn.Sequential(nn.Linear(32, 4))
    whole.check(times=3)
    assert whole.mover.visits.count == 0


def test_nothing_is_measured(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan needs neither the bus nor the time of its forwards."""
    for name in ("measure_gbps", "time_copies"):
        monkeypatch.setattr(whole.mover.backend, name, lambda *_: pytest.fail("measured"))
    whole.check(times=6)


def test_where_it_does_not_fit_it_streams(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_async_mover import holdings
    from lib_async_mover.arena import Arena

    monkeypatch.setattr(holdings, "LEAST_BUDGET_BYTES", 1024)
    limit = weight_bytes(whole.model) * 0.6

    class Tight(Arena):
        def allocate(self) -> None:
            if self.bytes > limit:
                raise ArenaAllocationError("no room")
            super().allocate()

    monkeypatch.setattr(holdings, "Arena", Tight)
    whole.check(times=6)
    assert whole.mover.stats()["arena_mib"] * MIB <= limit


def test_detach_leaves_it_as_found(whole: Whole) -> None:
    whole.check()
    detach(whole.model)
    whole.check()
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in whole.model.modules())


def test_busy_says_whether_a_forward_is_under_way(whole: Whole) -> None:
    seen = []
    whole.model.out.register_forward_hook(lambda *_: seen.append(whole.mover.busy))
    whole.check()
    assert seen == [True]
    assert not whole.mover.busy


def test_a_leaf_called_from_outside_with_cpu_tensors_computes_on_the_cpu(whole: Whole) -> None:
    """As textual inversion does, which brings its token ids to where it sees the embedding's weight: in RAM."""
    mover = whole.mover
    mover.backend = types.SimpleNamespace(device=torch.device("meta"))  # type: ignore[assignment]
    x = torch.ones(1, 32)
    assert torch.equal(whole.model.out(x), whole.twin.out(x))
    assert mover.visits.count == 0
