"""Leaves: what is moved as a whole, what stands, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_async_mover.errors import UnsupportedModuleError
from lib_async_mover.memory.leaf import CONTAINER_OWN_BYTES, find_leaves
from tests.small import make


def names(root: nn.Module) -> list[str]:
    return [leaf.name for leaf in find_leaves(root)[0]]


def test_leaves_in_definition_order_and_the_root_stands() -> None:
    model = make(blocks=2)
    blocks = [f"blocks.{number}.{leaf}" for number in (0, 1) for leaf in ("late", "early", "norm")]
    assert names(model) == ["embed", *blocks, "wide", "narrow", "out"]
    assert find_leaves(model)[1].tensors() == [model.table]


@pytest.mark.parametrize("large", [False, True])
def test_a_container_with_tensors_of_its_own(large: bool) -> None:
    """A small one stands beside its children; a large one is moved with them."""
    root = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    root[0].table = nn.Parameter(torch.zeros(CONTAINER_OWN_BYTES // 4 + large))
    leaves, standing = find_leaves(root)
    assert [leaf.name for leaf in leaves] == (["0"] if large else ["0.0"])
    assert standing.tensors() == ([] if large else [root[0].table])
    assert len(leaves[0].tensors()) == (3 if large else 2)


def test_attention_is_one_leaf_with_its_output_projection() -> None:
    root = nn.Sequential(nn.MultiheadAttention(4, 2))
    (leaf,), _ = find_leaves(root)
    assert leaf.name == "0" and any(tensor is root[0].out_proj.weight for tensor in leaf.tensors())


def test_shared_tensors_stand() -> None:
    root = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4))
    root[2].weight = root[0].weight
    leaves, standing = find_leaves(root)
    assert [leaf.name for leaf in leaves] == ["1"]
    assert standing.tensors() == [root[0].weight, root[2].bias]


def test_a_module_in_two_places_is_one_leaf() -> None:
    layer = nn.Linear(4, 4)
    assert names(nn.Sequential(layer, layer)) == ["0"]


class Wrapped(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.empty(4, device="meta"), "meta device"),
        (torch.eye(4).to_sparse(), "layout"),
        (torch.zeros(4).as_subclass(Wrapped), "Wrapped"),
    ],
    ids=["meta", "sparse", "subclass"],
)
def test_odd_tensors_are_refused_by_name(tensor: torch.Tensor, said: str) -> None:
    root = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    root[1][0].register_buffer("odd", tensor)
    with pytest.raises(UnsupportedModuleError, match=rf"1\.0.*{said}"):
        find_leaves(root)
