"""Binding: some leaves see their GPU tensors for a while, and what a forward changed meanwhile is written back.

A leaf is switched by exchanging the dictionaries that hold its parameters and buffers for those with their GPU twins:
the CPU `Parameter` objects stay untouched, whoever holds them. A leaf that is not bound carries a load hook, a forward
pre-hook; a bound one carries none, so it costs nothing while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lib_async_mover.memory.leaf import Leaf, Tensors, kept_strides, own_tensors
from lib_async_mover.memory.watch import TensorWatch

Twins = dict[int, torch.Tensor]  # GPU twins by id of the CPU tensor

_missing = object()


def twin_of(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """The GPU twin of a CPU parameter or buffer, over ``data``.

    It requires grad if the original does, though no gradient is ever wanted: `torch.matmul` looks at that flag to
    choose between two kernels whose low bits differ. ``data.data`` gives the twin a version counter of its own.
    """
    is_parameter = isinstance(tensor, nn.Parameter)
    twin = nn.Parameter(data.data, tensor.requires_grad) if is_parameter else data.data
    twin.__dict__ = tensor.__dict__  # what users keep there is the same for both
    return twin.requires_grad_(tensor.requires_grad)


def uploaded(leaf: Leaf, device: torch.device) -> Twins:
    """GPU twins of a leaf's tensors in memory of their own, copied in order with the compute; by id of the original."""
    twins = {}
    with torch.inference_mode(False), torch.no_grad():  # inference tensors count no versions
        for tensor in leaf.tensors():
            data = torch.empty_strided(tensor.shape, kept_strides(tensor), dtype=tensor.dtype, device=device)
            twins[id(tensor)] = twin_of(tensor, data.copy_(tensor.detach(), non_blocking=True))
    return twins


class Swap:
    """One module's ``_parameters`` or ``_buffers``: the CPU dictionary and its twin with GPU tensors."""

    __slots__ = ("attributes", "cpu", "expected", "gpu", "name")

    def __init__(self, module: nn.Module, name: str, twins: Twins) -> None:
        self.attributes = module.__dict__
        self.name = name
        self.cpu: Tensors = self.attributes[name]
        self.expected: Tensors = {key: None if t is None else twins[id(t)] for key, t in self.cpu.items()}
        self.gpu: Tensors = type(self.cpu)(self.expected)


class Binding:
    """Some leaves' CPU and GPU dictionaries, exchanged together."""

    def __init__(self, leaves: Sequence[Leaf], twins: Twins) -> None:
        """``twins`` has one of every tensor of theirs."""
        self._hooks: list[tuple[Any, int, Any]] = [entry for leaf in leaves for entry in leaf.hooks]
        self._swaps = [
            Swap(member, name, twins)
            for leaf in leaves
            for member in leaf.members
            for name in ("_parameters", "_buffers")
            if member.__dict__[name]
        ]
        self._gpu: list[tuple[dict, str, Any]] = [(swap.attributes, swap.name, swap.gpu) for swap in self._swaps]
        self._cpu: list[tuple[dict, str, Any]] = [(swap.attributes, swap.name, swap.cpu) for swap in self._swaps]
        for member in {id(member): member for leaf in leaves for member in leaf.members}.values():
            if isinstance(member, nn.RNNBase):  # keeps its parameters in a list beside the dictionary
                flat = member.__dict__["_flat_weights"]
                self._gpu.append((member.__dict__, "_flat_weights", [twins.get(id(t), t) for t in flat]))
                self._cpu.append((member.__dict__, "_flat_weights", flat))
        pairs = [(swap.cpu[k], t) for swap in self._swaps for k, t in swap.expected.items() if t is not None]
        self._originals = [original for original, _ in pairs if original is not None]
        self._watch = TensorWatch((swap.gpu for swap in self._swaps), [twin for _, twin in pairs])
        self._host = TensorWatch((swap.cpu for swap in self._swaps), self._originals)
        # torch writes their statistics without counting a version.
        self._norms = [m for leaf in leaves for m in leaf.members if isinstance(m, _NormBase) and m.track_running_stats]
        self._slots = [twin.data for _, twin in pairs]  # each twin's data while nobody has replaced it
        # Autocast keeps casts of such leaves until it ends, which would be a second copy of all weights on the GPU.
        self._cast_cached = any(twin.requires_grad and twin.dtype == torch.float32 for _, twin in pairs)
        self.readdress = self._watch.readdress  # after the arena was allocated anew under its views
        self.mark_copied = self._host.mark  # the slot gets a copy of the CPU tensors as they are now
        self.outdated = self._host.is_written  # whether they were written to since
        self.packed = self._host.in_place  # whether they are still the packed ones

    def untouched(self) -> bool:
        """Whether every twin, its version and its storage are as they were bound."""
        return self._watch.untouched() and not any(norm.training for norm in self._norms)

    def count_write(self) -> None:
        """The memory under the twins will be written to: autograd, if it has saved one, refuses to go back over it."""
        for twin in self._watch.tensors:
            torch.autograd.graph.increment_version(twin)
        self._watch.mark()

    def bind(self) -> None:
        """The leaves see their GPU tensors, and carry no load hook."""
        for attributes, name, gpu in self._gpu:
            attributes[name] = gpu
        for hooks, key, _ in self._hooks:
            hooks.pop(key, None)

    def unbind(self) -> None:
        """The leaves see their CPU tensors again, and carry the load hook in front of other hooks."""
        for attributes, name, cpu in self._cpu:
            attributes[name] = cpu
        if self._cast_cached:
            torch.clear_autocast_cache()
        for hooks, key, load_hook in self._hooks:
            others, hooks[key] = bool(hooks), load_hook
            if others:
                hooks.move_to_end(key, last=False)

    def write_back(self) -> bool:
        """Brings home what was changed; to be called when `untouched` says no, before the slot is reused.

        In-place edits are written to the CPU tensors, which blocks. A storage that somebody swapped inside a forward is
        forgotten if nothing was written to it and it has the dtype of before (`Module.to` and back, as the host's
        manual cast does), else its data is kept.

        Returns:
            Whether the tensors still are the packed ones; False means the module must be packed anew.
        """
        same = True
        with torch.no_grad():
            for swap in self._swaps:
                for key in {**swap.expected, **swap.gpu}:
                    now = swap.gpu.get(key, _missing)
                    if now is not swap.expected.get(key, _missing):
                        _adopt(swap.cpu, key, now)
                        same = False
                swap.gpu.clear()
                swap.gpu.update(swap.expected)
            uncounted = {id(tensor) for norm in self._norms if norm.training for tensor in own_tensors(norm)}
            written = set(self._watch.written())
            for place, (original, twin) in enumerate(zip(self._originals, self._watch.tensors, strict=True)):
                moved, slot = self._watch.moved(place), self._slots[place]
                if twin.dtype != original.dtype or twin.shape != original.shape:
                    original.data, same = twin.data.cpu(), False
                elif place in written or id(original) in uncounted:
                    original.copy_(twin.data)
                    if moved:
                        slot.copy_(twin.data)
                if moved:
                    twin.data = slot
                if twin.requires_grad != original.requires_grad:
                    original.requires_grad_(twin.requires_grad)
                    same = False
            self._watch.mark()
        return same


def _adopt(cpu: Tensors, key: str, now: object) -> None:
    """A forward registered, replaced or removed a tensor: the CPU dictionary does the same."""
    if now is _missing:
        cpu.pop(key, None)
    elif now is None:
        cpu[key] = None
    else:
        assert isinstance(now, torch.Tensor)
        if now.device.type != "cpu":
            now.data = now.data.cpu()
        cpu[key] = now
