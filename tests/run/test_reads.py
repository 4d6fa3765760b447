"""Weights that are read without their layer being called, or after it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lib_async_mover.errors import UnsupportedModuleError
from tests.pair import Pair
from tests.small import Chain, make, rows


class Table(nn.Module):
    """Returns a view of its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cos", torch.randn(64, 32))

    def forward(self, count: int) -> torch.Tensor:
        return self.cos[:count]


class ReturnsAView(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.table = Table()

    def before(self, x: torch.Tensor) -> torch.Tensor:
        self.rows = self.table(4)
        return x

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.rows


class KeepsAWeight(Chain):
    def before(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[1](x)
        self.kept = [self.layers[1].weight, self.layers[1].weight.t()]
        return x

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kept.pop() @ self.kept.pop()


class KeepsAViewForTheNextForward(Chain):
    class Kept(Table):
        view: torch.Tensor | None = None

        def forward(self, count: int) -> torch.Tensor:
            if self.view is None:
                self.view = super().forward(count)
            return self.view.clone()

    def __init__(self) -> None:
        super().__init__()
        self.table = self.Kept()

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(4)


class ReadsLists(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.randn(32)) for _ in range(3))
        self.shifts = nn.ParameterDict({"a": nn.Parameter(torch.randn(32))})

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scales[0] + self.scales[2] * self.shifts["a"]


class ReadsALayerThatItNeverCalls(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(32, 32)
        self.codes = nn.Embedding(10, 32)

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.aside.weight, self.aside.bias), self.codes.weight)


class ReadsALayerBeforeItIsCalled(Chain):
    def before(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.layers[5].weight.float().t()


class BringsInputsToAWeight(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(10, 32)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.codes(torch.arange(4).to(self.codes.weight.device))


class ReadsInAMethod(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(32))

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(x)


class EditsALayerBeforeItIsCalled(Chain):
    def before(self, x: torch.Tensor) -> torch.Tensor:
        self.layers[5].weight.add_(0.125)
        return x


class Recurrent(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 32)

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


READERS = [
    ReturnsAView, KeepsAWeight, KeepsAViewForTheNextForward, ReadsLists, ReadsALayerThatItNeverCalls,
    ReadsALayerBeforeItIsCalled, BringsInputsToAWeight, ReadsInAMethod, EditsALayerBeforeItIsCalled, Recurrent,
]  # fmt: skip


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.__name__)
def test_read_from_outside_the_call(kind: type[Chain], share: float) -> None:
    pair = Pair(make(kind), share, inputs=rows)
    pair.check(times=8)
    assert pair.mover.stats()["state"] == "streaming" and pair.mover.stats()["streamed_units"] > 0
    pair.close()
    pair.check()


def test_only_what_is_read_stands() -> None:
    pair = Pair(make(ReadsALayerThatItNeverCalls), 0.4, inputs=rows)
    pair.check(times=4)
    (standing,) = pair.mover.placement.store.standing
    assert {id(m) for m in standing.members} == {id(pair.model.aside), id(pair.model.codes)}


def test_sizes_and_types_of_weights_may_be_asked_for() -> None:
    class Asks(Chain):
        def before(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.layers[6].weight
            return x.to(weight.dtype).view(-1, weight.shape[1])

    pair = Pair(make(Asks), 0.4, inputs=rows)
    pair.check(times=4)
    assert not pair.mover.placement.store.standing


def test_weights_may_be_copied_elsewhere_from_ram() -> None:
    class Backs(Chain):
        def before(self, x: torch.Tensor) -> torch.Tensor:
            torch.empty(32, 32).copy_(self.layers[6].weight)
            return x

    pair = Pair(make(Backs), 0.4, inputs=rows)
    pair.check(times=4)
    assert not pair.mover.placement.store.standing


class Part(Chain):
    """Reads a parameter of its own between the calls of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(32))

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x) + self.shift

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.shift


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Part(), Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def by_part(model: Parts, x: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(x)) + model.first.layers[3](x)


@pytest.mark.parametrize("whole", [False, True])
def test_a_part_with_a_parameter_of_its_own_is_called_by_itself(whole: bool) -> None:
    pair = Pair(make(Parts), 0.4, inputs=rows, whole=whole)
    for i in range(4):
        assert torch.equal(by_part(pair.model, rows(i)), by_part(pair.twin, rows(i)))
        pair.check(seed=i)
    pair.close()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pair.model.modules())


def test_a_part_that_fails_leaves_nothing_bound() -> None:
    pair = Pair(make(Parts), 0.4, inputs=rows)
    pair.check(times=2)
    for error in (ValueError, KeyboardInterrupt):
        handle = pair.model.first.layers[4].register_forward_pre_hook(raiser(error))
        with pytest.raises(error):
            pair.model.first(rows())
        handle.remove()
        assert torch.equal(pair.model.first(rows()), pair.twin.first(rows()))
        pair.check()


def raiser(error: type[BaseException]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        raise error

    return hook


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_trace_that_is_cut_off_records_no_more(error: type[BaseException]) -> None:
    pair, mode = Pair(make(ReadsLists), 0.4, inputs=rows), _get_current_dispatch_mode()
    handle = pair.model.layers[4].register_forward_pre_hook(raiser(error))
    with pytest.raises(error):
        pair.model(rows())
    handle.remove()
    pair.mover.release()
    assert _get_current_dispatch_mode() is mode
    pair.check(times=6)


def test_references_that_cannot_be_exchanged_are_refused() -> None:
    class Stubborn(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.own = [layer.weight for layer in self.layers]

        def after(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.own[3]

    pair = Pair(make(Stubborn), 0.4, inputs=rows)
    pair.model.own = [layer.weight for layer in pair.model.layers]
    pair.run()
    with pytest.raises(UnsupportedModuleError, match="references of its own"):
        pair.run()
    pair.check_weights()
    pair.close()
    pair.run()
