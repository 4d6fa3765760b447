"""The host store: exact bytes, kept strides, RAM that does not double, and no change of its tensors unseen."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_async_mover.memory import host_store
from lib_async_mover.memory.host_store import HostStore, Span
from lib_async_mover.memory.joint_store import JointStore
from lib_async_mover.memory.leaf import ALIGN, Leaf, find_leaves
from tests.pair import weight_bytes
from tests.small import make


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_store, "SPAN_BYTES", 16 << 10)


def packed(model: nn.Module) -> HostStore:
    leaves, standing = find_leaves(model)
    return HostStore(model, leaves[:-1], leaves[-1:], standing, None)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn]
shape = st.lists(st.integers(0, 5), max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(shape, st.sampled_from(DTYPES), st.randoms()), max_size=8))
def test_packed_tensors_keep_values_strides_and_dtype(specs: list) -> None:
    module = nn.Module()
    expected = []
    for i, (sizes, dtype, dice) in enumerate(specs):
        axes = list(range(len(sizes)))
        dice.shuffle(axes)
        tensor = torch.randint(0, 2, [sizes[a] for a in axes]).to(dtype).permute(torch.tensor(axes).argsort().tolist())
        module.register_buffer(f"t{i}", tensor)
        expected.append((tensor, tensor.clone(), tensor.stride(), tensor.shape))
    leaf = Leaf("leaf", [module])
    place = HostStore(module, [leaf], [], Leaf("(standing)", []), None).places[id(leaf)]
    assert place.bytes == leaf.bytes() and place.bytes % ALIGN == 0
    for tensor, values, stride, size in expected:
        assert tensor.stride() == stride and tensor.shape == size and tensor.dtype == values.dtype
        assert torch.equal(tensor.float(), values.float())
    for tensor, offset in place.tensors:
        if tensor.numel():
            assert tensor.data_ptr() == place.span.raw.data_ptr() + place.offset + offset
            assert tensor.data_ptr() % ALIGN == 0
            assert tensor.untyped_storage().nbytes() < tensor.element_size() * tensor.numel() + ALIGN


def test_consecutive_leaves_lie_behind_one_another_within_a_span() -> None:
    model = make()
    leaves, standing = find_leaves(model)
    store = JointStore(leaves, [HostStore(model, leaves, [], standing, None)])
    assert len(store.barriers) > 3
    for index, (before, after) in enumerate(pairwise(store.order), start=1):
        first, second = store.places[id(before)], store.places[id(after)]
        assert (second.span is not first.span) == (index in store.barriers)
        assert index in store.barriers or second.offset == first.offset + first.bytes


def test_little_is_wasted() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(20)))
    assert packed(model).bytes <= 1.02 * weight_bytes(model)


def test_old_storages_go_as_the_packing_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(blocks=20)
    sizes = [leaf.bytes() for leaf in find_leaves(model)[0]]
    before = {parameter.data_ptr(): parameter.numel() * 4 for parameter in model.parameters()}
    peak = spans = 0

    class Watched(Span):
        def __init__(self, count: int) -> None:
            nonlocal peak, spans
            super().__init__(count)
            spans += count
            unpacked = sum(before.get(parameter.data_ptr(), 0) for parameter in model.parameters())
            peak = max(peak, spans + unpacked)

    monkeypatch.setattr(host_store, "Span", Watched)
    packed(model)
    assert sum(sizes) < peak <= 1.05 * sum(sizes) + host_store.SPAN_BYTES


def test_saving_one_tensor_does_not_write_the_whole_store() -> None:
    model = make()
    packed(model)
    file = io.BytesIO()
    torch.save(model.out.weight, file)
    assert file.getbuffer().nbytes < 2 * weight_bytes(model.out) + 4096


def wrap(model: nn.Module) -> None:
    model.blocks[3] = nn.Sequential(model.blocks[3])


def edit(model: nn.Module) -> None:
    model.blocks[3].late.weight.mul_(2)


@pytest.mark.parametrize("change", [wrap, edit])
def test_tensors_that_are_still_packed(change) -> None:
    model = make()
    store = packed(model)
    change(model)
    assert store.still_packed() and store.still_packed()


def new_tensor(model: nn.Module) -> None:
    model.out.bias = nn.Parameter(torch.zeros(4))


def new_buffer_on_a_bare_module(model: nn.Module) -> None:
    model.blocks.register_buffer("scale", torch.ones(1))


def new_module(model: nn.Module) -> None:
    model.blocks.append(nn.Linear(4, 4))


def replaced_inside_a_wrapper(model: nn.Module) -> None:
    wrap(model)
    assert isinstance(model.blocks[3], nn.Sequential)
    model.blocks[3][0].late = nn.Linear(32, 32)


def gone(model: nn.Module) -> None:
    del model.blocks[2]


@pytest.mark.parametrize(
    "change", [new_tensor, new_buffer_on_a_bare_module, new_module, replaced_inside_a_wrapper, gone]
)
def test_tensors_that_are_no_longer_packed(change) -> None:
    model = make()
    store = packed(model)
    assert store.still_packed()
    change(model)
    assert not store.still_packed()


def test_what_happens_behind_a_new_wrapper_is_seen() -> None:
    model = make()
    store = packed(model)
    wrap(model)
    assert store.still_packed()
    model.blocks[3].register_buffer("scale", torch.ones(1))
    assert not store.still_packed()


def other_data(model: nn.Module) -> None:
    model.blocks[3].late.weight.data = torch.zeros(32, 32)


@pytest.mark.parametrize("change", [nn.Module.double, other_data, lambda model: model.requires_grad_(False)])
def test_tensors_that_were_moved_or_frozen_are_not_in_place(change) -> None:
    model = make()
    store = packed(model)
    edit(model)
    assert store.in_place()
    change(model)
    assert not store.in_place()
