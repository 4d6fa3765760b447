"""Loads on demand: a leaf whose unit is not there is loaded on the spot, so that any order is right, if slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.run.binding import Binding, uploaded
from lib_async_mover.run.hooks import Hook


class OnDemand:
    """What stands, and at most one leaf beside it. Copies run on the compute stream, in order with everything."""

    def __init__(self, device: torch.device, changed: Callable[[Leaf, bool], None]) -> None:
        """``changed`` is told of a leaf that its forward changed, and whether its tensors are the same objects."""
        self._device = device
        self._changed = changed
        self._standing: tuple[Leaf, Binding] | None = None
        self._loaded: tuple[Leaf, Binding] | None = None
        self._call_hooks: list[Any] = []
        self.loads = 0  # of leaves, since ever
        self.forward_bytes = 0  # of what was loaded in this forward, or in the last

    def bind_standing(self, leaf: Leaf) -> None:
        """Loads and binds what stands, beside any leaf, until `unbind_standing`."""
        self._standing = self._bound(leaf)

    def unbind_standing(self) -> None:
        """Unbinds what stands, if anything does."""
        standing, self._standing = self._standing, None
        self._unbind(standing)

    def load(self, leaf: Leaf) -> None:
        """Loads and binds the leaf, in memory of its own, until `unload`."""
        self.unload()
        self.loads += 1
        self._loaded = self._bound(leaf)

    def unload(self) -> None:
        """Unbinds the leaf, if there is one, and brings home what was changed."""
        loaded, self._loaded = self._loaded, None
        self._unbind(loaded)

    def load_for_call(self, leaf: Leaf) -> None:
        """Loads the leaf outside a forward of the root, until its call is over."""
        self.load(leaf)
        # The hook cannot remove itself: after an exception torch iterates over the very dictionary.
        self._call_hooks.append(leaf.module.register_forward_hook(Hook(self._after_call), always_call=True))

    def _after_call(self, module: nn.Module, args: tuple, result: Any) -> None:
        self.unload()

    def end_calls(self) -> None:
        """Removes the hooks of such calls, and what they left behind."""
        if self._call_hooks:
            self.unload()
            for handle in self._call_hooks:
                handle.remove()
            self._call_hooks = []

    def _bound(self, leaf: Leaf) -> tuple[Leaf, Binding]:
        binding = Binding([leaf], uploaded(leaf, self._device))
        binding.bind()
        self.forward_bytes += leaf.bytes()
        return leaf, binding

    def _unbind(self, bound: tuple[Leaf, Binding] | None) -> None:
        if bound is not None:
            leaf, binding = bound
            binding.unbind()
            if not binding.untouched():
                self._changed(leaf, binding.write_back())
