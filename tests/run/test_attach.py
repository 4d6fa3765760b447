"""Attaching and detaching: what is refused changes nothing, and what is detached is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lib_async_mover import attach, detach, mover_of
from lib_async_mover.errors import (
    AsyncMoverError,
    ConcurrentForwardError,
    UnsupportedDeviceError,
    UnsupportedModuleError,
)
from tests.pair import Pair
from tests.small import image, make


def hooks(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()}


@pytest.mark.parametrize("warm", [0, 1, 8])
def test_detach_leaves_nothing_behind(warm: int) -> None:
    pair = Pair()
    pair.check(times=warm)
    pair.model.blocks[0](torch.randn(2, 64, 32))
    pair.both(lambda model: model.out.weight.mul_(3))
    pair.close()
    assert mover_of(pair.model) is None and hooks(pair.model) == hooks(pair.twin)
    assert not pair.model._state_dict_pre_hooks and not pair.model._load_state_dict_pre_hooks
    pair.check(times=2)
    detach(pair.model)


def test_detach_inside_a_forward_is_refused(pair: Pair) -> None:
    def undo(module: nn.Module, args: tuple) -> None:
        with pytest.raises(ConcurrentForwardError):
            detach(pair.model)

    handle = pair.model.blocks[2].register_forward_pre_hook(undo)
    pair.check()
    handle.remove()


@pytest.mark.parametrize("warm", [0, 8])
def test_a_module_inside_an_attached_one_is_refused(warm: int) -> None:
    pair = Pair()
    model = pair.model
    pair.check(times=warm)
    before = hooks(model)
    for child in (model.blocks, model.blocks[2], model.blocks[2].late):
        with pytest.raises(AsyncMoverError, match="detach"):
            attach(child, "cpu")
        assert mover_of(child) is None
    assert hooks(model) == before
    pair.check(times=2)
    pair.close()
    mover = attach(model.blocks[2], "cpu")
    pair.run(times=3)
    assert mover.forwards == 3
    detach(model.blocks[2])


@pytest.mark.parametrize("module", [nn.Linear(4, 4), nn.ReLU(), nn.Sequential()])
def test_a_module_with_nothing_to_stream_is_refused(module: nn.Module) -> None:
    with pytest.raises(UnsupportedModuleError, match="attach the module that it is part of"):
        attach(module, "cpu")
    assert mover_of(module) is None


def test_a_module_around_an_attached_one_is_refused() -> None:
    outer = nn.Sequential(make())
    expected = outer(image())
    attach(outer[0], "cpu")
    with pytest.raises(AsyncMoverError, match="^0 streams already"):
        attach(outer, "cpu")
    assert torch.equal(outer(image()), expected)
    detach(outer[0])
    assert attach(outer, "cpu") is mover_of(outer)
    for _ in range(3):
        assert torch.equal(outer(image()), expected)
    detach(outer)


@pytest.mark.parametrize("vram_mb", [-1, float("nan"), float("inf")])
def test_sizes_that_are_none(vram_mb: float) -> None:
    with pytest.raises(ValueError, match="vram_mb"):
        attach(make(), "cpu", vram_mb)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("meta",), UnsupportedDeviceError), (("cuda",), UnsupportedDeviceError), (("cpu",), UnsupportedModuleError)],
)
def test_what_is_refused_changes_nothing(arguments: Any, error: type[AsyncMoverError]) -> None:
    if arguments == ("cuda",) and torch.cuda.is_available():
        pytest.skip("this machine has one")
    model = make()
    if error is UnsupportedModuleError:
        model.out.to("meta")
    before = hooks(model)
    with pytest.raises(error):
        attach(model, *arguments)
    assert hooks(model) == before and mover_of(model) is None
