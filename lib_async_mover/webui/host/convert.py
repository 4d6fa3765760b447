"""A live model changes hands: from stock's lowvram, medvram or plain residency to the mover, and back.

All or nothing: whatever fails half-way is undone before the error goes on.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from modules import devices, lowvram, shared
from torch import nn

from lib_async_mover import attach, detach
from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.plan.workload import MIB
from lib_async_mover.webui.host import stock
from lib_async_mover.webui.host.choice import ALL_OPTION, option
from lib_async_mover.webui.host.component import Component
from lib_async_mover.webui.host.conversion import CONVERSIONS, Conversion
from lib_async_mover.webui.host.guard import Guard, Recover
from lib_async_mover.webui.host.guests import GUESTS
from lib_async_mover.webui.host.orders import kept_order
from lib_async_mover.webui.host.pressure import give_way
from lib_async_mover.webui.host.residency import Stage
from lib_async_mover.webui.host.stages import StageSpec, bytes_of, related, text_stages, unet_stage, vae_stage
from lib_async_mover.webui.host.state import STATE
from lib_async_mover.webui.host.stock import Placed, StockLayout

WORDS = {"unet": "UNet", "text": "text encoder", "vae": "VAE"}


def convert(sd_model: Any, vram_mb: float, device: torch.device, recover: Recover) -> Conversion:
    """Let the mover stream `sd_model`: its UNet through `vram_mb` megabytes of VRAM on `device` (0: automatic), its
    text encoders and VAE one after the other, each as a whole.

    A model that streams already gets the new size. Raises what `attach` raises; the model is as before then.
    """
    with CONVERSIONS.lock:
        conversion = CONVERSIONS.of(sd_model)
        if conversion is not None:
            _resize(conversion, vram_mb)
            return conversion
        lowvram.send_everything_to_cpu()
        conversion = _convert(sd_model, vram_mb, device, recover)
        CONVERSIONS.add(sd_model, conversion)
        STATE.say(
            f"UNet of {conversion.name} ({bytes_of(sd_model.model.diffusion_model) / MIB:.0f} MiB) streams through "
            f"{_size(vram_mb)} of {device}; turn it off in the accordion"
        )
        return conversion


def restore(sd_model: Any) -> None:
    """Give `sd_model` back to stock: to what the webui's own flags say, or to how it was found."""
    with CONVERSIONS.lock:
        conversion = discard(sd_model)
        if conversion is None:
            return
        lowvram.send_everything_to_cpu()
        layout = hold_as_stock(sd_model, conversion.found, stock.stock_hooks(sd_model), conversion.hook)
        STATE.say(f"{conversion.name} is in stock's hands again ({layout.value})")


def discard(sd_model: Any) -> Conversion | None:
    """Everything of ours goes, and page-locked RAM with it. Nothing holds the UNet then: its weights are on the CPU.

    Returns what it had been; None for a model that does not stream. Raises ConcurrentForwardError if it is in a
    forward, and nothing was done.
    """
    with CONVERSIONS.lock:
        conversion = CONVERSIONS.of(sd_model)
        if conversion is None:
            return None
        if conversion.busy:
            raise ConcurrentForwardError(f"{conversion.name} is in a forward")
        CONVERSIONS.remove(sd_model)
        conversion.undo()
        return conversion


def hold_as_stock(sd_model: Any, found: StockLayout, elsewhere: list[Placed], hook: stock.Hook | None) -> StockLayout:
    """Put a model whose UNet has no hooks into the layout that the webui's flags ask for.

    Set-up by us at load finds WHOLE where the user said --lowvram: that becomes BLOCKS, if it is built of blocks.

    Args:
        elsewhere: stock's hooks on text encoders, VAE and others, which are moved by them.
        hook: stock's closure, for the UNet.
    """
    wrapper, unet = sd_model.model, sd_model.model.diffusion_model
    if found is StockLayout.RESIDENT or hook is None:
        sd_model.lowvram = False
        shared.parallel_processing_allowed = not lowvram.is_needed(sd_model)
        sd_model.to(shared.device)
        return StockLayout.RESIDENT
    for placed in elsewhere:
        placed.module.to(devices.cpu)
    blocks = stock.blocks_of(unet)
    by_blocks = bool(blocks) and (found is StockLayout.BLOCKS or shared.cmd_opts.lowvram)
    pieces = blocks if by_blocks else [wrapper]
    stock.put_on(Placed(piece, hook) for piece in pieces)
    stock.move_except(wrapper, set(pieces), shared.device)
    return StockLayout.BLOCKS if by_blocks else StockLayout.WHOLE


def _convert(sd_model: Any, vram_mb: float, device: torch.device, recover: Recover) -> Conversion:
    found, taken, elsewhere = stock.layout_of(sd_model)
    conversion = Conversion(_name(sd_model), found, taken, vram_mb)
    with ExitStack() as undo:
        undo.callback(_hold_as_found, sd_model, conversion)
        stock.take_off(taken)
        undo.callback(conversion.undo)
        others = (*text_stages(sd_model), vae_stage(sd_model)) if option(ALL_OPTION, True) else ()
        for spec in (unet_stage(sd_model), *others):
            if spec is not None:
                _take_stage(conversion, spec, elsewhere, device)
        _place_rest(sd_model, conversion, elsewhere, device)
        for owner, name in _guarded(sd_model):
            guard = Guard(owner, name, recover, give_way)
            guard.install()
            conversion.guards.append(guard)
        sd_model.lowvram = True
        shared.parallel_processing_allowed = False
        undo.pop_all()
    if found is StockLayout.RESIDENT:
        devices.torch_gc()
    return conversion


def _take_stage(conversion: Conversion, spec: StageSpec, elsewhere: list[Placed], device: torch.device) -> None:
    """Attach a stage. Text encoders and VAE of a build that the mover cannot take stay in stock's hands."""
    unet = spec.name == "unet"
    components, redirected = [], []
    with ExitStack() as undo:
        try:
            for one in spec.components:
                undo.callback(detach, one.module)
                one.module.to(devices.cpu)
                name = f"{_title(one.key)} of {conversion.name}"
                mover = attach(one.module, device, conversion.vram_mb if unet else 0, whole=not unet, name=name)
                components.append(Component(one, mover))
                # With the model, not with the first image
                if order := kept_order(one.module) if unet else []:
                    mover.pack(order)
                elif one.key.startswith(("text", "vae_decoder")):
                    mover.pack()
            stage = Stage(spec.name, components, GUESTS.invite if unet else None)
            for placed in elsewhere:
                if related(placed.module, spec):
                    entry = stock.redirect(placed, stage.occupant)
                    if entry is None:
                        raise RuntimeError("this host's lowvram holds text encoders and VAE in a way of its own")
                    undo.callback(stock.undo_redirect, entry)
                    redirected.append(entry)
            undo.callback(stage.unhook)
            stage.hook()
            undo.pop_all()
        except Exception as error:
            if unet:
                raise
            STATE.say(f"the {_title(spec.name)} of {conversion.name} stays with stock: {error}")
            return
    conversion.stages.append(stage)
    conversion.redirected += redirected


def _hold_as_found(sd_model: Any, conversion: Conversion) -> None:
    """Undo of a conversion that failed: the hooks go back on what they were on."""
    stock.put_on(conversion.taken)
    wrapper = sd_model.model
    if conversion.found is StockLayout.RESIDENT:
        sd_model.lowvram = False
        sd_model.to(shared.device)
    else:
        stock.move_except(wrapper, {placed.module for placed in conversion.taken}, shared.device)


def _place_rest(sd_model: Any, conversion: Conversion, elsewhere: list[Placed], device: torch.device) -> None:
    """What does not stream is on the GPU for good, as with stock, but for what stock moves by itself."""
    streamed = {component.module for component in conversion.components}
    redirected = {entry.module for entry in conversion.redirected}
    stocks = {placed.module for placed in elsewhere} - redirected
    stock.move_except(sd_model, streamed | stocks, device)


def _guarded(sd_model: Any) -> list[tuple[nn.Module, str]]:
    vae = sd_model.first_stage_model
    calls = (sd_model.model, "forward"), (vae, "encode"), (vae, "decode"), (sd_model, "get_learned_conditioning")
    return [(owner, name) for owner, name in calls if hasattr(owner, name)]


def _resize(conversion: Conversion, vram_mb: float) -> None:
    if conversion.vram_mb == vram_mb:
        return
    for component in conversion.components:
        if component.key == "unet":
            component.mover.vram_mb = vram_mb
    conversion.vram_mb = vram_mb
    STATE.say(f"buffer of {conversion.name} is now {_size(vram_mb)}")


def _size(vram_mb: float) -> str:
    return f"{vram_mb} MB" if vram_mb else "an automatic buffer"


def _title(key: str) -> str:
    """vae_decoder: VAE decoder; text_2: text encoder 2."""
    return " ".join(WORDS.get(word, word) for word in key.split("_"))


def _name(sd_model: Any) -> str:
    info = getattr(sd_model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", None) or "the model")
