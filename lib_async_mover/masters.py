"""The masters: the CPU tensors as they were packed, watched cheaply for what anybody did to them between forwards."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter

import torch
from torch import nn

from .leaf import Leaf, Structure

_version = attrgetter("_version")
_requires_grad = attrgetter("requires_grad")


class Masters:
    """All packed tensors of a module, in a flat list."""

    def __init__(self, root: nn.Module, leaves: list[Leaf], aside: Collection[Leaf] = ()) -> None:
        """
        Args:
            aside: other packed leaves, which are not watched.
        """
        self._root = root
        self._leaves = leaves
        self._structure = Structure(root, leaves, {member for leaf in aside for member in leaf.members})
        pairs = [(leaf, tensor) for leaf in leaves for tensor in leaf.tensors()]
        self._owners = [leaf for leaf, _ in pairs]
        self._tensors = [tensor for _, tensor in pairs]
        self._addresses = list(map(torch.Tensor.data_ptr, self._tensors))
        self._versions = list(map(_version, self._tensors))
        self._grads = list(map(_requires_grad, self._tensors))

    def in_place(self) -> bool:
        """Whether modules, tensor objects and their storages are those that were packed.

        False after a new or removed parameter, `.half()`, `.to("cuda")`, `load_state_dict(assign=True)` and the like;
        also when a tensor begins or ceases to require grad (see `binding.twin_of`).
        """
        return (
            self._structure.unchanged()
            and list(map(torch.Tensor.data_ptr, self._tensors)) == self._addresses
            and list(map(_requires_grad, self._tensors)) == self._grads
        )

    def unchanged(self) -> bool:
        """Whether all are in place, and nobody has written to them since the last look at who did."""
        return self.in_place() and list(map(_version, self._tensors)) == self._versions

    def without(self, aside: list[Leaf]) -> Masters:
        """All but some, as they are now."""
        known = set(map(id, aside))
        return Masters(self._root, [leaf for leaf in self._leaves if id(leaf) not in known], aside)

    def edited(self) -> list[Leaf]:
        """Leaves whose tensors were written to in place since the last call (`load_state_dict`, `copy_`, `add_`).

        Writes through ``.data`` leave no trace; `Mover.refresh` is for those.
        """
        versions = list(map(_version, self._tensors))
        if versions == self._versions:
            return []
        changed = {
            id(owner): owner
            for owner, now, before in zip(self._owners, versions, self._versions, strict=True)
            if now != before
        }
        self._versions = versions
        return list(changed.values())
