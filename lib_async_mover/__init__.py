"""Streams the weights of a torch module from page-locked RAM, ahead of the compute, within a budget of VRAM."""

from __future__ import annotations

import torch
from torch import nn

from . import errors
from .backend import Backend, backend_for
from .leaf import find_leaves
from .mover import Mover, mover_of, refuse_nested
from .pinning import ledger

__all__ = ["Mover", "attach", "detach", "errors", "mover_of"]


def attach(
    module: nn.Module,
    device: torch.device | str = "cuda",
    vram_mb: float = 0,
    *,
    whole: bool = False,
    hold: bool = False,
    name: str | None = None,
    pin_limit_mb: float | None = None,
    bus_gbps: float | None = None,
    backend: Backend | None = None,
) -> Mover:
    """Streams ``module``'s weights to ``device`` whenever it is called; its parameters live on the CPU otherwise.

    Nothing moves until the first forward. Attaching again only sets the budget, from the next forward on.

    Args:
        module: called as a whole; its inputs are on ``device``. For inference: weights get no gradients.
        vram_mb: all VRAM that its weights may take, in MiB; 0 chooses the least that runs as fast as any that fits.
        whole: for a module that runs once or twice and is then released, as a text encoder: all of it is on the
            device while it runs, whatever ``vram_mb`` says, and nothing is learned from its first forward.

    These are for tinkering:

    Args:
        hold: once the plan has settled, what is resident stays bound between forwards too, until `Mover.release` or
            anything else that needs it in RAM. Saves CPU time for a module that is called many times in a row. Its
            parameters are on ``device`` meanwhile. Experimental: edits of weights inside and between forwards were
            once seen to give another result (`tests/test_hold.py`, by dice), so only for weights that nobody edits.
        name: what logs call it; its class by default.
        pin_limit_mb: page-locked RAM that all movers together may take, in MiB; a share of the machine's by default.
        bus_gbps: plays a slower bus, in 1e9 bytes per second.
        backend: drives the copies instead of the device's own.

    Raises:
        UnsupportedDeviceError: ``device`` has no copy stream that we can drive. Nothing was changed.
        UnsupportedModuleError: the module holds tensors that cannot be packed. Nothing was changed.
        AsyncMoverError: a module inside it is attached already. Nothing was changed.
        ValueError: ``vram_mb`` is negative or not a number.
    """
    if not 0 <= vram_mb < float("inf"):
        raise ValueError(f"vram_mb: expected 0 (automatic) or a number of MiB, found {vram_mb!r}")
    ledger.set_limit_mb(pin_limit_mb)
    mover = mover_of(module)
    if mover is not None:
        mover.vram_mb = vram_mb
        return mover
    refuse_nested(module)
    find_leaves(module)  # refuses before anything is made
    backend = backend or backend_for(torch.device(device), bus_gbps)
    return Mover(module, backend, vram_mb, name or type(module).__name__, whole, hold)


def detach(module: nn.Module) -> None:
    """Leaves the module without hooks, on the CPU, its weights as they are now. Does nothing if it is not attached.

    Raises:
        ConcurrentForwardError: it is in a forward.
    """
    mover = mover_of(module)
    if mover is not None:
        mover.close()
