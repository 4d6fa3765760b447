"""What happens to tensors seldom, and must be right all the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lib_async_mover import attach
from lib_async_mover.errors import UnsupportedModuleError
from tests.checked_backend import CheckedBackend
from tests.pair import Pair
from tests.small import Chain, Edit, make, rows


def new_parameter(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(torch.full((32, 32), 0.03))


def edit_in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.full((32, 32), 0.03))


def other_data(layer: nn.Module) -> None:
    layer.weight.data = torch.full((32, 32), 0.03)


def flip_requires_grad(layer: nn.Module) -> None:
    layer.weight.requires_grad_(not layer.weight.requires_grad)


@pytest.mark.parametrize("edited", [0, 5], ids=["an earlier layer", "a later one"])
@pytest.mark.parametrize("edit", [new_parameter, edit_in_place, other_data, flip_requires_grad])
def test_another_layer_is_changed_inside_a_forward(edit: Edit, edited: int) -> None:
    class Edits(Chain):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            for i, layer in enumerate(self.layers):
                if i == 2 and self.calls % 3 == 0:
                    edit(self.layers[edited])
                x = layer(x)
            return x

    pair = Pair(make(Edits), 0.4, inputs=rows)
    for i in range(16):
        pair.check(seed=i)
        ours, theirs = ([p.requires_grad for p in model.parameters()] for model in (pair.model, pair.twin))
        assert ours == theirs


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda width: nn.InstanceNorm1d(width, track_running_stats=True)])
def test_statistics_of_training_come_home(norm: type[nn.Module]) -> None:
    class Trains(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(norm(4) for _ in range(4))

        def after(self, x: torch.Tensor) -> torch.Tensor:
            for each in self.norms:
                x = each(x.reshape(2, 4, 16)).reshape(4, 32)
            return x

    pair = Pair(make(Trains).train(), 0.4, inputs=rows)
    pair.check(times=6)
    pair.both(lambda model: model.eval())
    pair.check(times=2)


def test_attributes_of_a_parameter_are_seen() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * getattr(self.weight, "scale", 1.0)

    model = make(Chain)
    model.layers[3] = Scaled(32, 32)
    pair = Pair(model, 0.4, inputs=rows)
    for scale in (0.5, 2.0):
        pair.both(lambda model: setattr(model.layers[3].weight, "scale", scale))  # noqa: B023 - called at once
        pair.check(times=4)


def test_another_dtype_after_a_forward_that_was_cut_off() -> None:
    pair = Pair(make(Chain), 0.4, inputs=rows)
    pair.check(times=4)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    for model in (pair.model, pair.twin):
        handle = model.layers[4].register_forward_pre_hook(cut)
        with pytest.raises(KeyboardInterrupt):
            model(rows())
        handle.remove()
        model.double()
    pair.inputs = lambda seed, size: rows(seed).double()
    pair.check(times=4)


@pytest.mark.parametrize("when", ["before attach", "between forwards"])
def test_weights_made_in_inference_mode(when: str) -> None:
    def remake(model: nn.Module) -> None:
        with torch.inference_mode():
            torch.manual_seed(5)
            for layer in model.layers:
                layer.weight = nn.Parameter(torch.randn(32, 32))

    model, twin = make(Chain), make(Chain)
    if when == "before attach":
        remake(model)
        remake(twin)
    with torch.inference_mode(when == "before attach"):
        pair = Pair(model, 0.4, inputs=rows, twin=twin)
    pair.check(times=3)
    if when == "between forwards":
        pair.both(remake)
    with torch.inference_mode():
        pair.check(times=3)
    pair.check(times=3)
    with torch.inference_mode():
        pair.both(lambda model: edit_in_place(model.layers[2]))
    pair.check(times=2)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_another_default_device(device: str) -> None:
    pair = Pair(make(Chain), 0.4, inputs=rows)
    x = [rows(seed) for seed in range(6)]
    torch.set_default_device(device)
    try:
        assert all(torch.equal(pair.model(one), pair.twin(one)) for one in x)
        pair.mover.release()
        assert all(torch.equal(pair.model(one), pair.twin(one)) for one in x)
    finally:
        torch.set_default_device("cpu")
        torch.set_default_device(None)


class Empty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dummy.sum()


class WithEmptyLeaves(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.empty(0))
        self.empty = nn.Sequential(Empty(), nn.Linear(32, 32), Empty())
        self.through_nothing = nn.Sequential(nn.Linear(32, 0), nn.Linear(0, 32))

    def after(self, x: torch.Tensor) -> torch.Tensor:
        self.devices = {self.dummy.device.type, self.empty[0].dummy.device.type}
        return self.empty(x) + self.through_nothing(x)


@pytest.mark.parametrize("whole", [False, True])
def test_tensors_without_bytes(whole: bool) -> None:
    pair = Pair(make(WithEmptyLeaves), 0.4, inputs=rows, whole=whole)
    pair.check(times=6)
    assert pair.model.devices == {"cpu"}


def test_nothing_but_tensors_without_bytes_is_refused() -> None:
    model = nn.Sequential(Empty(), Empty())
    with pytest.raises(UnsupportedModuleError, match="found no layers"):
        attach(model, "cpu", 1)
    assert not model[0]._forward_pre_hooks


def test_a_forward_that_runs_no_layer_takes_nothing() -> None:
    """As where another extension computes in the model's place."""

    class Bypassed(Chain):
        bypass = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if self.bypass else super().forward(x)

    pair = Pair(make(Bypassed), 0.4, inputs=rows)
    for before in (0, 2, 14):
        pair.check(times=before)
        pair.mover.release()
        pair.both(lambda model: setattr(model, "bypass", True))
        pair.check(times=3)
        assert not pair.mover.stats()["arena_mib"]
        pair.both(lambda model: setattr(model, "bypass", False))
        pair.check(times=3)
    assert pair.mover.stats()["arena_mib"] > 0




@pytest.mark.parametrize("end", ["release", "close", "drop"])
@pytest.mark.parametrize("share", [0.4, 2.0])
def test_memory_that_others_hold_stays(share: float, end: str) -> None:
    class Returns(Chain):
        def after(self, x: torch.Tensor) -> torch.Tensor:
            self.view, self.weight = self.layers[7].weight[:2], self.layers[7].weight
            return x

    pair = Pair(make(Returns), share, inputs=rows)
    for forwards in (1, 5):
        pair.run(times=forwards)
        held = pair.model.view, pair.model.weight
        pair.model.view = None
        del pair.model.weight
        values = [one.clone() for one in held]
        pair.mover.release()
        assert all(map(torch.equal, held, values))
        assert torch.equal(held[0], held[1][:2])
    if end == "close":
        pair.close()
    elif end == "drop":
        del pair
    assert all(map(torch.equal, held, values))


def test_a_buffer_that_is_a_view_keeps_no_base_alive() -> None:
    class Views(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("few", torch.randn(4096, 32)[:4])

        def after(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.few

    model = Views().eval()
    twin = copy.deepcopy(model)
    attach(model, "cpu", 0.02, backend=CheckedBackend(poison=True))
    for i in range(4):
        assert torch.equal(model(rows(i)), twin(rows(i)))
    assert model.few._base is None and model.few.untyped_storage().nbytes() == 4 * 32 * 4
