"""The watches: whatever happens to tensors and to the dictionaries that hold them is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lib_async_mover.memory.watch import DictWatch, TensorWatch


@pytest.mark.parametrize(
    "change",
    [
        lambda first, second: first.update(a=object()),
        lambda first, second: first.pop("a"),
        lambda first, second: first.update(b=object()),
        lambda first, second: second.update(b=first["a"]),
        lambda first, second: second.update(a=first.pop("a")),
    ],
    ids=["replaced", "removed", "added", "added to an empty one", "moved to an empty one"],
)
def test_a_dictionary_that_holds_something_else_is_seen(change: Callable[[dict, dict], object]) -> None:
    first: dict = {"a": object()}
    second: dict = {}
    watch = DictWatch([first, second])
    assert watch.unchanged()
    change(first, second)
    assert not watch.unchanged()


def watched() -> tuple[nn.Linear, TensorWatch]:
    layer = nn.Linear(3, 3)
    return layer, TensorWatch([layer._parameters, layer._buffers], [layer.weight, layer.bias])


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().clone())),
        lambda layer: setattr(layer, "bias", None),
        lambda layer: layer.register_buffer("new", torch.zeros(1)),
        lambda layer: layer.double(),
        lambda layer: layer.requires_grad_(False),
        lambda layer: setattr(layer.weight, "data", layer.weight.data.clone()),
    ],
    ids=["another parameter", "none", "a new buffer", "another dtype", "frozen", "other data"],
)
def test_what_is_no_longer_in_place(change: Callable[[nn.Linear], object]) -> None:
    layer, watch = watched()
    assert watch.in_place() and watch.untouched()
    change(layer)
    assert not watch.in_place() and not watch.untouched()


def test_a_write_is_told_until_it_is_marked_and_leaves_all_in_place() -> None:
    layer, watch = watched()
    assert watch.written() == [] and not watch.is_written()
    layer.bias.add_(1)
    assert watch.in_place() and not watch.untouched()
    assert watch.written() == [1] and watch.is_written()
    watch.mark()
    assert watch.written() == [] and not watch.is_written() and watch.untouched()


def test_moved_tensors_are_told_and_new_addresses_taken_over() -> None:
    layer, watch = watched()
    layer.weight.data = layer.weight.data.clone()
    assert watch.moved(0) and not watch.moved(1)
    watch.readdress()
    assert not watch.moved(0) and watch.in_place()
