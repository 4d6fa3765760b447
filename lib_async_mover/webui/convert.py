"""A live model changes hands: from stock's lowvram, medvram or plain residency to the mover, and back.

All or nothing: whatever fails half-way is undone before the error goes on.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from modules import lowvram, shared
from torch import nn

from lib_async_mover import attach, detach
from lib_async_mover.webui import stock
from lib_async_mover.webui.guard import Guard, Recover
from lib_async_mover.webui.residency import Stage
from lib_async_mover.webui.state import STATE
from lib_async_mover.webui.stock import Layout, Placed

MIB = 1024 * 1024


class Conversion:
    """What was done to one model, and what is needed to undo it. Holds parts of the model, never the model itself."""

    def __init__(self, name: str, found: Layout, taken: list[Placed], vram_mb: int) -> None:
        self.name = name
        self.found = found
        self.taken = taken
        self.vram_mb = vram_mb
        self.stages: list[Stage] = []
        self.guard: Guard | None = None


def convert(sd_model: Any, vram_mb: int, device: torch.device, recover: Recover) -> Conversion:
    """Let the mover stream `sd_model`'s UNet through `vram_mb` megabytes of VRAM on `device`.

    A model that streams already gets the new size. Raises what `attach` raises; the model is as before then.
    """
    with STATE.lock:
        conversion = STATE.conversion_of(sd_model)
        if conversion is not None:
            _resize(conversion, vram_mb, device)
            return conversion
        lowvram.send_everything_to_cpu()
        conversion = _convert(sd_model, vram_mb, device, recover)
        STATE.conversions[sd_model] = conversion
        STATE.say(
            f"UNet of {conversion.name} ({_mib(sd_model.model.diffusion_model):.0f} MiB) streams through "
            f"{vram_mb} MB of {device}; turn it off in the accordion"
        )
        return conversion


def restore(sd_model: Any) -> None:
    """Give `sd_model` back to stock: to what the webui's own flags say, or to how it was found."""
    with STATE.lock:
        conversion = STATE.conversions.pop(sd_model, None)
        if conversion is None:
            return
        if conversion.guard is not None:
            conversion.guard.remove()
        for stage in conversion.stages:
            if stage.on_gpu:
                lowvram.module_in_gpu = None
            stage.unhook()
            detach(stage.module)
        hook = conversion.taken[0].hook if conversion.taken else None
        layout = hold_as_stock(sd_model, conversion.found, hook)
        STATE.say(f"UNet of {conversion.name} is in stock's hands again ({layout.value})")


def hold_as_stock(sd_model: Any, found: Layout, hook: stock.Hook | None) -> Layout:
    """Put a UNet that has no hooks into the layout that the webui's flags ask for; `hook` is stock's closure.

    Set-up by us at load finds WHOLE where the user said --lowvram: that becomes BLOCKS, if it is built of blocks.
    """
    wrapper, unet = sd_model.model, sd_model.model.diffusion_model
    if found is Layout.RESIDENT or hook is None:
        wrapper.to(shared.device)
        return Layout.RESIDENT
    blocks = stock.blocks_of(unet)
    by_blocks = bool(blocks) and (found is Layout.BLOCKS or shared.cmd_opts.lowvram)
    pieces = blocks if by_blocks else [wrapper]
    stock.put_on(Placed(piece, hook) for piece in pieces)
    stock.move_except(wrapper, set(pieces), shared.device)
    return Layout.BLOCKS if by_blocks else Layout.WHOLE


def layout_of(sd_model: Any) -> tuple[Layout, list[Placed]]:
    """How stock holds the UNet now, and by which hooks."""
    taken = stock.stock_hooks(sd_model.model)
    if not taken:
        return Layout.RESIDENT, []
    return (Layout.WHOLE if taken[0].module is sd_model.model else Layout.BLOCKS), taken


def _convert(sd_model: Any, vram_mb: int, device: torch.device, recover: Recover) -> Conversion:
    wrapper, unet = sd_model.model, sd_model.model.diffusion_model
    found, taken = layout_of(sd_model)
    conversion = Conversion(_name(sd_model), found, taken, vram_mb)
    with ExitStack() as undo:
        undo.callback(stock.move_except, wrapper, {placed.module for placed in taken}, shared.device)
        undo.callback(stock.put_on, taken)
        stock.take_off(taken)
        undo.callback(detach, unet)
        mover = attach(unet, device=device, vram_mb=vram_mb, name=f"UNet of {conversion.name}")
        stage = Stage("unet", unet, mover)
        undo.callback(stage.unhook)
        stage.hook()
        stock.move_except(wrapper, {unet}, device)
        conversion.stages.append(stage)
        conversion.guard = Guard(wrapper, recover)
        conversion.guard.install()
        undo.pop_all()
    return conversion


def _resize(conversion: Conversion, vram_mb: int, device: torch.device) -> None:
    if conversion.vram_mb == vram_mb:
        return
    for stage in conversion.stages:
        stage.mover = attach(stage.module, device=device, vram_mb=vram_mb)
    conversion.vram_mb = vram_mb
    STATE.say(f"buffer of {conversion.name} is now {vram_mb} MB")


def _name(sd_model: Any) -> str:
    info = getattr(sd_model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", None) or "the model")


def _mib(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / MIB
