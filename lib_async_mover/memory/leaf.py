"""What moves: the modules that own tensors.

A *leaf* is a module that directly owns parameters or buffers and is moved as a whole. Some are not leaves of their own
but *standing*: they are bound for a whole forward, because their tensors are read without a call that a hook could
see. These are the root itself, a container that owns a few bytes beside its children (SD3's position table, CLIP's
position ids), tensors that several modules share or that have no bytes, and modules that a forward was seen to read
from outside their call (`run/reads.py`).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from lib_async_mover.errors import UnsupportedModuleError

ALIGN = 256  # every tensor starts at a multiple of so many bytes, in RAM and on the GPU: what cudaMalloc guarantees
CONTAINER_OWN_BYTES = 4 << 20  # a container owning at most this much beside its children only stands for itself

Tensors = dict[str, "torch.Tensor | None"]


def aligned(count: int) -> int:
    """``count`` bytes rounded up to a multiple of `ALIGN`."""
    return -(-count // ALIGN) * ALIGN


def kept_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's own strides; contiguous ones if it repeats elements (an expanded tensor cannot be written to)."""
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return torch.empty(tensor.shape, device="meta").stride()
    return tensor.stride()


def extent_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor of this shape and its `kept_strides` spans, gaps included."""
    if tensor.numel() == 0:
        return 0
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, kept_strides(tensor), strict=True))
    return reach * tensor.element_size()


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers that the module itself holds, not its children's."""
    owned = chain(module._parameters.values(), module._buffers.values())
    return [tensor for tensor in owned if tensor is not None]


class Leaf:
    """Modules that are bound and unbound together: one module, or one with the children it reads directly.

    It keeps none of them alive: a guest is others' (run/guests.py).
    """

    def __init__(self, name: str, members: Iterable[nn.Module]) -> None:
        self.name = name
        self.refs = tuple(weakref.ref(member) for member in members)
        # Load hooks that it carries while it is not bound: a module's forward pre-hooks, the key there, and the hook
        self.hooks: list[tuple[dict, int, Any]] = []

    @property
    def members(self) -> list[nn.Module]:
        return [member for ref in self.refs if (member := ref()) is not None]

    @property
    def module(self) -> nn.Module:
        """The one that is called."""
        return self.members[0]

    def tensors(self) -> list[torch.Tensor]:
        """Distinct tensors of all members, in a stable order."""
        found = {id(tensor): tensor for member in self.members for tensor in own_tensors(member)}
        return list(found.values())

    def bytes(self) -> int:
        """Packed size: every tensor aligned, in bytes; a multiple of `ALIGN`."""
        return sum(aligned(extent_bytes(tensor)) for tensor in self.tensors())


def find_leaves(root: nn.Module, read_aside: Collection[int] = ()) -> tuple[list[Leaf], Leaf]:
    """All leaves under ``root`` in definition order, and the one pseudo-leaf that stands for the rest.

    Args:
        read_aside: ids of modules that are read from outside their call, and stand therefore.

    Raises:
        UnsupportedModuleError: a tensor is on the meta device, sparse, quantised or a subclass with storage of its own.
    """
    leaves: list[Leaf] = []
    standing: list[nn.Module] = []
    _descend(root, "", True, leaves, standing, set())

    held = [leaf.tensors() for leaf in leaves] + [own_tensors(module) for module in standing]
    owners = Counter(id(tensor) for tensors in held for tensor in tensors)
    alone: list[Leaf] = []
    for leaf in leaves:
        shared = any(owners[id(tensor)] > 1 for tensor in leaf.tensors())
        if shared or id(leaf.module) in read_aside or not leaf.bytes():
            standing.extend(leaf.members)
        else:
            alone.append(leaf)
    rest = Leaf("(standing)", standing)
    for leaf in [*alone, rest]:
        for tensor in leaf.tensors():
            _refuse(leaf.name, tensor)
    return alone, rest


def _descend(
    module: nn.Module, name: str, is_root: bool, leaves: list[Leaf], standing: list[nn.Module], seen: set[int]
) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    own = own_tensors(module)
    below = [child for child in module.modules() if child is not module and own_tensors(child)]
    if own and not is_root:
        # MultiheadAttention reads out_proj's weight without calling it, so the two cannot be told apart by hooks.
        whole = not below or isinstance(module, nn.MultiheadAttention)
        if whole or sum(map(extent_bytes, own)) > CONTAINER_OWN_BYTES:
            members = [child for child in [module, *below] if child is module or id(child) not in seen]
            seen.update(map(id, module.modules()))
            leaves.append(Leaf(name, members))
            return
    if own:
        standing.append(module)
    for key, child in module.named_children():
        _descend(child, f"{name}.{key}" if name else key, False, leaves, standing, seen)


def own_memory(root: nn.Module) -> None:
    """Puts tensors of the same values in place of those whose memory cannot be exchanged under them.

    A view keeps all of its base alive, and an inference tensor counts no versions. Nothing is copied.
    """
    made: dict[int, torch.Tensor] = {}  # by id of what it replaces: shared ones stay shared
    with torch.inference_mode(False), torch.no_grad():
        for module in root.modules():
            held: Tensors
            for held in (module._parameters, module._buffers):  # type: ignore[assignment]
                for key, tensor in held.items():
                    if tensor is None or not (tensor._is_view() or tensor.is_inference()):
                        continue
                    if id(tensor) not in made:
                        place = tensor.storage_offset(), tensor.shape, tensor.stride()
                        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                        plain.set_(tensor.untyped_storage(), *place)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(plain, tensor.requires_grad) if is_parameter else plain
                        made[id(tensor)].__dict__.update(tensor.__dict__)
                    held[key] = made[id(tensor)]


def _refuse(name: str, tensor: torch.Tensor) -> None:
    odd = None
    if tensor.is_meta:
        odd = "on the meta device (load the weights first)"
    elif tensor.layout != torch.strided or tensor.is_quantized:
        odd = f"of layout {tensor.layout}"
    elif type(tensor) not in (nn.Parameter, torch.Tensor):
        odd = f"a {type(tensor).__name__}, whose storage only its own library may move"
    if odd:
        raise UnsupportedModuleError(f"{name}: expected plain tensors, found one {odd}; nothing was changed")
