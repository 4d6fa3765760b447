"""How stock `lowvram` holds a model: what its hooks look like, and how to put a model back into its hands.

Stock's `setup_for_low_vram` registers one closure, `send_me_to_gpu`, as forward pre-hook on whatever is moved as
one piece: text encoder and VAE always; of the UNet either the whole wrapper (`--medvram`) or each block
(`--lowvram`). It can run once per model only, before the hijack, so a late change moves the hook itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import nn

Hook = Callable[[nn.Module, Any], Any]

# What stock --lowvram moves one by one; the rest of a UNet (out, label_emb) stays on the GPU.
BLOCK_LISTS = ("input_blocks", "output_blocks")
BLOCKS = ("time_embed", "middle_block")


class StockLayout(Enum):
    """How stock holds a UNet."""

    BLOCKS = "lowvram"
    WHOLE = "medvram"
    RESIDENT = "resident"


class Placed(NamedTuple):
    """A hook and the module it is registered on: what must be known to take it off and to put it back."""

    module: nn.Module
    hook: Hook


def is_stock_hook(hook: Any) -> bool:
    """Is this the closure `send_me_to_gpu` of stock's set-up?"""
    name = getattr(hook, "__qualname__", "")
    return getattr(hook, "__module__", "") == "modules.lowvram" and name.endswith("send_me_to_gpu")


def stock_hooks(module: nn.Module) -> list[Placed]:
    """Stock's hooks on `module` and everything below it."""
    return [
        Placed(part, hook)
        for part in module.modules()
        for hook in part._forward_pre_hooks.values()
        if is_stock_hook(hook)
    ]


class Redirected(NamedTuple):
    """An entry of stock's map from a hooked module to what is moved in its stead, and what it said before."""

    parents: dict[Any, Any]
    module: nn.Module
    before: Any  # None: there was no entry


def redirect(placed: Placed, occupant: Any) -> Redirected | None:
    """Let stock's closure move `occupant` when `placed.module` comes. None where this host's closure has no such map.

    Stock's hooks and its `encode` and `decode` stay where they are, whoever wrapped them since: what they find in
    `module_in_gpu` is the occupant already, so they do nothing.
    """
    code, cells = getattr(placed.hook, "__code__", None), getattr(placed.hook, "__closure__", None) or ()
    found = dict(zip(code.co_freevars, cells, strict=True)) if code is not None else {}
    parents = found["parents"].cell_contents if "parents" in found else None
    if not isinstance(parents, dict):
        return None
    entry = Redirected(parents, placed.module, parents.get(placed.module))
    parents[placed.module] = occupant
    return entry


def undo_redirect(entry: Redirected) -> None:
    if entry.before is None:
        entry.parents.pop(entry.module, None)
    else:
        entry.parents[entry.module] = entry.before


def layout_of(sd_model: Any) -> tuple[StockLayout, list[Placed], list[Placed]]:
    """How stock holds the UNet now, by which hooks, and stock's hooks on everything else."""
    wrapper = sd_model.model
    taken = stock_hooks(wrapper)
    inside = set(wrapper.modules())
    elsewhere = [placed for placed in stock_hooks(sd_model) if placed.module not in inside]
    if not taken:
        return StockLayout.RESIDENT, [], elsewhere
    return (StockLayout.WHOLE if taken[0].module is wrapper else StockLayout.BLOCKS), taken, elsewhere


def take_off(placed: Iterable[Placed]) -> None:
    """Remove hooks, whoever registered them; one that is not there is no error."""
    for module, hook in placed:
        for key in [key for key, value in module._forward_pre_hooks.items() if value is hook]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def put_on(placed: Iterable[Placed]) -> None:
    """Register hooks; one that is already there is not registered twice."""
    for module, hook in placed:
        if hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hook)


def blocks_of(unet: nn.Module) -> list[nn.Module]:
    """The pieces stock --lowvram moves one by one; empty where the UNet is not built of them (SD3)."""
    lists = [getattr(unet, name, None) for name in BLOCK_LISTS]
    singles = [getattr(unet, name, None) for name in BLOCKS]
    if any(part is None for part in (*lists, *singles)):
        return []
    return [*(part for part in singles if part is not None), *(b for blocks in lists if blocks for b in blocks)]


def move_except(module: nn.Module, kept: set[nn.Module], device: torch.device) -> None:
    """Move `module` to `device`, in place, all but the modules in `kept` and what is below them."""
    for part in _outside(module, kept):
        part._apply(lambda tensor: tensor.to(device), recurse=False)


def _outside(module: nn.Module, kept: set[nn.Module]) -> Iterator[nn.Module]:
    if module in kept:
        return
    yield module
    for child in module.children():
        yield from _outside(child, kept)
