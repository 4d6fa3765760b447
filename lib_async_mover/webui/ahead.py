"""What is uploaded before its turn: the UNet's first units while conditioning runs, the VAE's decoder while the last
step does. At most one part at a time, and only into VRAM that nobody needs now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules import shared

from lib_async_mover.webui.state import STATE

if TYPE_CHECKING:
    from lib_async_mover.webui.part import Part
    from lib_async_mover.webui.residency import Stage

RESERVE_BYTES = 256 << 20  # left to activations and to other programs

_waiting: Part | None = None  # uploaded, its stage not on the GPU yet
_broken = False


def upload(part: Part, beside_bytes: int = 0) -> None:
    """Start uploading `part`, if VRAM has room for it and `beside_bytes` more. Never raises: it is only a favour."""
    global _waiting, _broken
    if _broken or part is _waiting or part.mover.busy:
        return
    try:
        wanted = part.mover.wanted_bytes
        if not wanted or part.mover.backend.free_bytes() < wanted + beside_bytes + RESERVE_BYTES:
            return
        drop()
        part.mover.prefetch()
        _waiting = part
    except Exception as error:  # noqa: BLE001
        _broken = True
        STATE.warn("uploading ahead failed and is off until the webui restarts; images are not affected", error)


def arrived(stage: Stage) -> None:
    """`stage` takes the GPU: what waits is its own, or, unless more conditioning comes first, is in the way."""
    global _waiting
    if _waiting is None:
        return
    if _waiting in stage.parts:
        _waiting = None
    elif not stage.name.startswith("text"):
        drop()


def drop() -> None:
    """Give back what was uploaded for nothing."""
    global _waiting
    part, _waiting = _waiting, None
    if part is not None:
        part.mover.release()


def last_step() -> bool:
    """Is the sampler in its last step (or the one before it: it counts a step after computing it)?"""
    state = getattr(shared, "state", None)
    steps = getattr(state, "sampling_steps", 0)
    return bool(steps) and getattr(state, "sampling_step", 0) >= steps - 2
