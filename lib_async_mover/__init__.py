"""Streams the weights of a torch module from page-locked RAM, ahead of the compute, within a budget of VRAM."""

from __future__ import annotations

import torch
from torch import nn

from lib_async_mover import errors
from lib_async_mover.device import backend_for
from lib_async_mover.device.backend import Backend
from lib_async_mover.errors import UnsupportedModuleError
from lib_async_mover.memory.leaf import find_leaves
from lib_async_mover.memory.pinning import ledger
from lib_async_mover.run.hooks import Hook, refuse_attached
from lib_async_mover.run.mover import Mover

__all__ = ["Mover", "attach", "detach", "errors", "mover_of"]


def attach(
    module: nn.Module,
    device: torch.device | str = "cuda",
    vram_mb: float = 0,
    *,
    whole: bool = False,
    name: str | None = None,
    pin_limit_mb: float | None = None,
    backend: Backend | None = None,
) -> Mover:
    """Streams ``module``'s weights to ``device`` whenever it is called; its parameters live on the CPU otherwise.

    Nothing moves until the first forward. Attaching again only sets the budget, from the next forward on.

    For inference: parameters get no gradients, and whoever asks for one through streamed weights gets GradientError.
    A forward cannot be recorded (`torch.jit.trace`, `make_fx`, export: RecordingError). Tensors may be edited and
    replaced at any time, but for writes through ``.data``, by fused optimizers and the like, which count no version:
    `Mover.invalidate_all` afterwards; inside a forward such a write is lost. Views and tensors made in inference mode
    are replaced by others of the same values.

    Args:
        module: called as a whole; its inputs are on ``device``.
        vram_mb: all VRAM that its weights may take, in MiB; 0 chooses the least that runs as fast as any that fits.
            One smaller than the largest layer needs is raised to that (`Mover.stats`: vram_mb asked, budget_mb used).
        whole: for a module that runs once or twice and is then released, as a text encoder: all of it is on the
            device while it runs, whatever ``vram_mb`` says, and nothing is learned from its first forward.

    These are for tinkering:

    Args:
        name: what logs call it; its class by default.
        pin_limit_mb: page-locked RAM that all movers together may take, in MiB; a share of the machine's by default.
        backend: drives the copies instead of the device's own.

    Raises:
        UnsupportedDeviceError: ``device`` has no copy stream that we can drive. Nothing was changed.
        UnsupportedModuleError: it holds tensors that cannot be packed, or no layers at all. Nothing was changed.
        AsyncMoverError: a module inside it, or one that it is part of, is attached already. Nothing was changed.
        ValueError: ``vram_mb`` is negative or not a number.
    """
    if not 0 <= vram_mb < float("inf"):
        raise ValueError(f"vram_mb: expected 0 (automatic) or a number of MiB, found {vram_mb!r}")
    ledger.set_limit_mb(pin_limit_mb)
    mover = mover_of(module)
    if mover is not None:
        mover.vram_mb = vram_mb
        return mover
    refuse_attached(module)
    name = name or type(module).__name__
    if not find_leaves(module)[0]:
        raise UnsupportedModuleError(f"{name}: found no layers in it to stream; attach the module that it is part of")
    return Mover(module, backend or backend_for(torch.device(device)), vram_mb, name, whole)


def detach(module: nn.Module) -> None:
    """Leaves the module without hooks, on the CPU, its weights as they are now. Does nothing if it is not attached.

    Raises:
        ConcurrentForwardError: it is in a forward.
    """
    mover = mover_of(module)
    if mover is not None:
        mover.close()


def mover_of(module: nn.Module) -> Mover | None:
    """The mover attached to exactly this module, if there is one."""
    owners = (hook.owner for hook in module._forward_pre_hooks.values() if isinstance(hook, Hook))
    return next((owner for owner in owners if isinstance(owner, Mover) and owner.root is module), None)
