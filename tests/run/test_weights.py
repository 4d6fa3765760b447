"""What anybody may do to the weights, inside a forward and between forwards."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.checked_backend import CheckedBackend
from tests.edits import CHANGES, EDITS, add
from tests.pair import Pair
from tests.small import Net, image, make

WARMTH = [0, 1, 2, 8]  # forwards: never run, traced, packed, profiled
WARMTH_AND_SHARE = [(0, 0.3), (1, 0.3), (2, 0.3), (8, 0.3), (8, 1.0)]


def warm_pair(warm: int, share: float, model: nn.Module | None = None) -> Pair:
    pair = Pair(model, share)
    pair.check(times=warm)
    pair.mover.backend.synchronize()
    return pair


@pytest.mark.parametrize(("warm", "share"), WARMTH_AND_SHARE)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_inside_a_forward_is_written_back(edit: Callable, warm: int, share: float) -> None:
    pair = warm_pair(warm, share)
    pair.both(lambda model: model.edit_inside(edit))
    pair.check()
    pair.both(lambda model: model.edit_inside(None))
    pair.check(times=3)
    pair.close()


@pytest.mark.parametrize(("warm", "share"), WARMTH_AND_SHARE)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_forwards(change: Callable, warm: int, share: float) -> None:
    pair = warm_pair(warm, share)
    pair.both(change)
    pair.check(times=3)
    pair.close()


def test_an_edit_is_undone_from_a_backup(pair: Pair) -> None:
    backup = pair.model.narrow.weight.clone()
    for edit in (add, lambda leaf: leaf.weight.copy_(backup)):
        pair.both(lambda model: setattr(model.narrow, "edit", edit))  # noqa: B023 - called at once
        pair.check()
        pair.both(lambda model: model.edit_inside(None))
        pair.check(times=2)
    assert torch.equal(pair.model.narrow.weight, backup)


def test_an_edit_survives_the_exception_that_follows_it(pair: Pair) -> None:
    def edit_and_fail(leaf: nn.Module) -> None:
        leaf.weight += 1
        raise RuntimeError("cancelled")

    pair.both(lambda model: setattr(model.blocks[2].late, "edit", edit_and_fail))
    for model in (pair.model, pair.twin):
        with pytest.raises(RuntimeError, match="cancelled"):
            model(image())
    pair.both(lambda model: model.edit_inside(None))
    pair.check(times=3)


class Scaled(nn.Module):
    """Kohya's hires fix puts such a module around two blocks of the UNet for some steps of every image."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * 0.5


@pytest.mark.parametrize("share", [0.4, 1.5])
def test_a_module_put_around_the_same_tensors_costs_no_packing(share: float, caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(share=share)
    pair.settle()

    def known() -> tuple:
        addresses = [tensor.data_ptr() for tensor in [*pair.model.parameters(), *pair.model.buffers()]]
        return addresses, pair.mover.plan, pair.mover.settled, pair.mover.stats()["attach_s"], pair.on_demand_loads

    before = known()
    with caplog.at_level(logging.DEBUG, "async_lowvram"):
        for _ in range(3):
            pair.both(lambda model: model.blocks.__setitem__(3, Scaled(model.blocks[3])))
            pair.check()
            assert known()[3:] == before[3:] and set(known()[0]) == set(before[0])
            pair.both(lambda model: model.blocks.__setitem__(3, model.blocks[3].inner))
            pair.check()
            assert known() == before
    assert not caplog.records
    pair.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype(dtype: torch.dtype) -> None:
    try:
        make().to(dtype)(image().to(dtype))
    except RuntimeError as error:
        pytest.skip(f"this torch cannot compute with it on a CPU: {error}")
    pair = warm_pair(8, 0.4)
    pair.both(lambda model: model.to(dtype))
    for i in range(6):
        x = image(i).to(dtype)
        assert torch.equal(pair.model(x), pair.twin(x))
    pair.check_weights()
    pair.close()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_kernel_is_the_one_that_the_requires_grad_flag_chooses(frozen: bool) -> None:
    """matmul folds a batch only if its second operand requires grad, and the two ways round differently."""
    pair = Pair(make().to(torch.float64))
    parameters = list(pair.model.parameters())
    for now in (frozen, not frozen):
        pair.both(lambda model: model.requires_grad_(not now))  # noqa: B023
        for i in range(6):
            x = image(i).double()
            assert torch.equal(pair.model(x), pair.twin(x))
        assert all(parameter.requires_grad is not now for parameter in parameters)
        assert all(a is b for a, b in zip(pair.model.parameters(), parameters, strict=True)), "the very objects"
    pair.close()


def test_channels_last_is_kept() -> None:
    pair = Pair(make().to(memory_format=torch.channels_last))
    stride = pair.twin.embed.weight.stride()
    assert stride != torch.empty(pair.twin.embed.weight.shape).stride()
    pair.check(times=6)
    assert pair.model.embed.weight.stride() == stride
    pair.both(lambda model: model.to(memory_format=torch.contiguous_format))
    pair.check(times=4)
    pair.close()


class Odd(Net):
    """With an expanded, an empty and a boolean buffer, and one that counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expanded", torch.randn(1).expand(32))
        self.register_buffer("nothing", torch.empty(0))
        self.out.register_buffer("flag", torch.tensor(True))
        self.narrow.register_buffer("calls", torch.zeros(1))
        self.narrow.edit = lambda leaf: leaf.calls.add_(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.expanded.sum()


def test_odd_buffers_and_one_that_counts() -> None:
    pair = Pair(make(Odd))
    pair.run(times=8)
    assert pair.model.narrow.calls == 8 == pair.twin.narrow.calls
    pair.close()


@pytest.mark.parametrize("warm", WARMTH)
def test_deep_copies_and_pickles_are_plain(warm: int) -> None:
    pair = warm_pair(warm, 0.4)
    clones = [copy.deepcopy(pair.model), pickle.loads(pickle.dumps(pair.model))]
    for clone in clones:
        clone.blocks[0].late.weight.zero_()
        clone.load_state_dict(pair.model.state_dict())
        assert torch.equal(clone(image(4)), pair.twin(image(4)))
    pair.check(times=2)
    pair.close()


def test_new_weights_are_seen_although_the_old_ones_were_copied_ahead(pair: Pair) -> None:
    for wait in (True, False):
        pair.run()
        if wait:
            pair.mover.backend.synchronize()
        pair.both(lambda model: model.embed.weight.mul_(-1))
        pair.both(lambda model: model.narrow.weight.mul_(-1))
        pair.check(times=2)


def test_loading_while_copies_of_the_old_weights_are_in_flight() -> None:
    pair = Pair(backend=CheckedBackend(delay=lambda count: 0.02))
    pair.run(times=4)
    new = {key: value * 1.5 for key, value in pair.twin.state_dict().items()}
    for _ in range(2):  # the copies for the next forward were just issued
        pair.both(lambda model: model.load_state_dict(new))
        pair.check(times=2)
    pair.close()


def test_a_write_through_data_is_seen_after_invalidate_all(pair: Pair) -> None:
    pair.mover.backend.synchronize()
    pair.both(lambda model: [parameter.data.mul_(1.5) for parameter in model.parameters()])
    pair.mover.invalidate_all()
    pair.check(times=2)


@pytest.mark.parametrize("known", [True, False])
def test_packed_ahead_in_the_order_of_a_forward_or_in_another(known: bool) -> None:
    first = Pair()
    first.run(times=3)
    order = first.mover.order
    assert sorted(order) != order and set(order) < set(dict(first.model.named_modules()))
    pair = Pair()
    pair.mover.pack(order if known else sorted(order))
    assert all(tensor.untyped_storage().nbytes() for tensor in pair.model.parameters())
    before = pair.model.out.weight.data_ptr()
    pair.run(times=4)
    assert (pair.model.out.weight.data_ptr() == before) == known, "packed once more where the order was another"
    assert pair.mover.placement.store.barriers == first.mover.placement.store.barriers
    pair.check()
    pair.mover.pack([])
    assert (pair.model.out.weight.data_ptr() == before) == known
    pair.close()
    pair.check()
