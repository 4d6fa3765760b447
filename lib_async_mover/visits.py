"""Visits: a leaf whose unit is not there is loaded on the spot, so that any order of execution is right, if slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .binding import Binding, uploaded
from .hooks import Hook
from .leaf import Leaf


class StrayLeave(Hook):
    """Forward hook of a leaf that runs outside a forward of the root."""

    def __call__(self, module: nn.Module, args: tuple, result: Any) -> None:
        self.mover.end_stray()


class Visits:
    """At most one leaf at a time. Its copy runs on the compute stream, in order with everything."""

    def __init__(self, device: torch.device, changed: Callable[[Leaf, bool], None]) -> None:
        """
        Args:
            changed: told of a leaf that its forward changed, and whether its tensors still are the same objects.
        """
        self._device = device
        self._changed = changed
        self._leaf: Leaf | None = None
        self._binding: Binding | None = None
        self._standing: tuple[Leaf, Binding] | None = None
        self.count = 0

    def stand(self, leaf: Leaf) -> None:
        """Loads and binds what stands, beside any leaf, until `sit`."""
        binding = Binding([leaf], uploaded(leaf, self._device))
        binding.bind()
        self._standing = (leaf, binding)

    def sit(self) -> None:
        """Unbinds what stands, if anything does."""
        if self._standing is not None:
            (leaf, binding), self._standing = self._standing, None
            self._unbind(leaf, binding)

    def begin(self, leaf: Leaf) -> None:
        """Loads and binds the leaf, in memory of its own, until `end`."""
        self.end()
        self.count += 1
        self._leaf = leaf
        self._binding = Binding([leaf], uploaded(leaf, self._device))
        self._binding.bind()

    def end(self) -> None:
        """Unbinds the leaf, if there is one, and brings home what was changed."""
        leaf, binding = self._leaf, self._binding
        if leaf is None or binding is None:
            return
        self._leaf = self._binding = None
        self._unbind(leaf, binding)

    def _unbind(self, leaf: Leaf, binding: Binding) -> None:
        binding.unbind()
        if not binding.untouched():
            self._changed(leaf, binding.collect())
