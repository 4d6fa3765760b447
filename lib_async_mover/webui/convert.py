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
from lib_async_mover.webui import ahead, stock
from lib_async_mover.webui.anatomy import Anatomy, related, text_stages, unet_stage, vae_stage
from lib_async_mover.webui.choice import ALL_OPTION, option
from lib_async_mover.webui.conversion import Conversion
from lib_async_mover.webui.guard import Guard, Recover
from lib_async_mover.webui.part import Part
from lib_async_mover.webui.residency import Stage
from lib_async_mover.webui.state import STATE
from lib_async_mover.webui.stock import Layout, Placed, layout_of

MIB = 1024 * 1024
TITLES = {"unet": "UNet", "text": "text encoder", "vae": "VAE", "vae_encoder": "VAE encoder",
          "vae_decoder": "VAE decoder"}  # fmt: skip


def convert(sd_model: Any, vram_mb: float, device: torch.device, recover: Recover) -> Conversion:
    """Let the mover stream `sd_model`: its UNet through `vram_mb` megabytes of VRAM on `device` (0: automatic), its
    text encoders and VAE one after the other, each as a whole.

    A model that streams already gets the new size. Raises what `attach` raises; the model is as before then.
    """
    with STATE.lock:
        conversion = STATE.conversion_of(sd_model)
        if conversion is not None:
            _resize(conversion, vram_mb)
            return conversion
        lowvram.send_everything_to_cpu()
        conversion = _convert(sd_model, vram_mb, device, recover)
        STATE.conversions[sd_model] = conversion
        STATE.say(
            f"UNet of {conversion.name} ({_mib(sd_model.model.diffusion_model):.0f} MiB) streams through "
            f"{_size(vram_mb)} of {device}; turn it off in the accordion"
        )
        return conversion


def restore(sd_model: Any) -> None:
    """Give `sd_model` back to stock: to what the webui's own flags say, or to how it was found."""
    with STATE.lock:
        conversion = STATE.conversion_of(sd_model)
        if conversion is None:
            return
        _release(sd_model, conversion)
        lowvram.send_everything_to_cpu()
        layout = hold_as_stock(sd_model, conversion.found, stock.stock_hooks(sd_model), conversion.hook)
        STATE.say(f"{conversion.name} is in stock's hands again ({layout.value})")


def forget(sd_model: Any) -> None:
    """The model is about to be thrown away: its page-locked RAM goes back first."""
    with STATE.lock:
        conversion = STATE.conversion_of(sd_model)
        if conversion is not None:
            _release(sd_model, conversion)


def _release(sd_model: Any, conversion: Conversion) -> None:
    """Everything of ours goes, and the weights are on the CPU. Raises ConcurrentForwardError, and nothing was done."""
    if any(stage.busy for stage in conversion.stages):
        raise ConcurrentForwardError(f"{conversion.name} is in a forward")
    STATE.conversions.pop(sd_model, None)
    ahead.drop()
    for guard in conversion.guards:
        guard.remove()
    for stage in conversion.stages:
        if stage.on_gpu:
            lowvram.module_in_gpu = None
        stage.unhook()
    for entry in conversion.redirected:
        stock.undo_redirect(entry)
    for stage in conversion.stages:
        for part in stage.parts:
            detach(part.module)


def hold_as_stock(sd_model: Any, found: Layout, elsewhere: list[Placed], hook: stock.Hook | None) -> Layout:
    """Put a model whose UNet has no hooks into the layout that the webui's flags ask for.

    Set-up by us at load finds WHOLE where the user said --lowvram: that becomes BLOCKS, if it is built of blocks.

    Args:
        elsewhere: stock's hooks on text encoders, VAE and others, which are moved by them.
        hook: stock's closure, for the UNet.
    """
    wrapper, unet = sd_model.model, sd_model.model.diffusion_model
    if found is Layout.RESIDENT or hook is None:
        sd_model.lowvram = False
        shared.parallel_processing_allowed = not lowvram.is_needed(sd_model)
        sd_model.to(shared.device)
        return Layout.RESIDENT
    for placed in elsewhere:
        placed.module.to(devices.cpu)
    blocks = stock.blocks_of(unet)
    by_blocks = bool(blocks) and (found is Layout.BLOCKS or shared.cmd_opts.lowvram)
    pieces = blocks if by_blocks else [wrapper]
    stock.put_on(Placed(piece, hook) for piece in pieces)
    stock.move_except(wrapper, set(pieces), shared.device)
    return Layout.BLOCKS if by_blocks else Layout.WHOLE


def _convert(sd_model: Any, vram_mb: float, device: torch.device, recover: Recover) -> Conversion:
    found, taken, elsewhere = layout_of(sd_model)
    conversion = Conversion(_name(sd_model), found, taken, vram_mb)
    with ExitStack() as undo:
        undo.callback(_hold_as_found, sd_model, conversion)
        stock.take_off(taken)
        undo.callback(_abandon, conversion)
        others = (*text_stages(sd_model), vae_stage(sd_model)) if option(ALL_OPTION, True) else ()
        for anatomy in (unet_stage(sd_model), *others):
            if anatomy is not None:
                _take_stage(conversion, anatomy, elsewhere, device)
        conversion.connect()
        _place_rest(sd_model, conversion, elsewhere, device)
        for owner, names in _guarded(sd_model):
            for name in names:
                guard = Guard(owner, name, recover)
                guard.install()
                conversion.guards.append(guard)
        sd_model.lowvram = True
        shared.parallel_processing_allowed = False
        undo.pop_all()
    if found is Layout.RESIDENT:
        devices.torch_gc()
    return conversion


def _take_stage(conversion: Conversion, anatomy: Anatomy, elsewhere: list[Placed], device: torch.device) -> None:
    """Attach a stage. Text encoders and VAE of a build that the mover cannot take stay in stock's hands."""
    unet = anatomy.name == "unet"
    stage = Stage(anatomy.name, [])
    redirected = []
    with ExitStack() as undo:
        try:
            for root in anatomy.roots:
                undo.callback(detach, root.module)
                root.module.to(devices.cpu)
                name = f"{_title(root.key)} of {conversion.name}"
                mover = attach(root.module, device, conversion.vram_mb if unet else 0, whole=not unet, name=name)
                stage.parts.append(Part(root, mover))
                if root.key == "vae_decoder":
                    mover.prepare()  # with the model, not with the first image
            for placed in elsewhere:
                if related(placed.module, anatomy):
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
            STATE.say(f"the {_title(anatomy.name)} of {conversion.name} stays with stock: {error}")
            return
    conversion.stages.append(stage)
    conversion.redirected += redirected


def _abandon(conversion: Conversion) -> None:
    for guard in conversion.guards:
        guard.remove()
    for entry in conversion.redirected:
        stock.undo_redirect(entry)
    for stage in conversion.stages:
        stage.unhook()
        for part in stage.parts:
            detach(part.module)


def _hold_as_found(sd_model: Any, conversion: Conversion) -> None:
    """Undo of a conversion that failed: the hooks go back on what they were on."""
    stock.put_on(conversion.taken)
    wrapper = sd_model.model
    if conversion.found is Layout.RESIDENT:
        sd_model.lowvram = False
        sd_model.to(shared.device)
    else:
        stock.move_except(wrapper, {placed.module for placed in conversion.taken}, shared.device)


def _place_rest(sd_model: Any, conversion: Conversion, elsewhere: list[Placed], device: torch.device) -> None:
    """What does not stream is on the GPU for good, as with stock, but for what stock moves by itself."""
    streamed = {part.module for part in conversion.parts}
    redirected = {entry.module for entry in conversion.redirected}
    stocks = {placed.module for placed in elsewhere} - redirected
    stock.move_except(sd_model, streamed | stocks, device)


def _guarded(sd_model: Any) -> list[tuple[nn.Module, tuple[str, ...]]]:
    vae = sd_model.first_stage_model
    return [
        (sd_model.model, ("forward",)),
        (vae, tuple(name for name in ("encode", "decode") if hasattr(vae, name))),
        (sd_model, ("get_learned_conditioning",) if hasattr(type(sd_model), "get_learned_conditioning") else ()),
    ]


def _resize(conversion: Conversion, vram_mb: float) -> None:
    if conversion.vram_mb == vram_mb:
        return
    for part in conversion.parts:
        if not part.mover.whole:
            part.mover.vram_mb = vram_mb
    conversion.vram_mb = vram_mb
    STATE.say(f"buffer of {conversion.name} is now {_size(vram_mb)}")


def _size(vram_mb: float) -> str:
    return f"{vram_mb} MB" if vram_mb else "an automatic buffer"


def _title(key: str) -> str:
    name, _, number = key.partition("_")
    return TITLES.get(key) or f"{TITLES.get(name, name)} {number}"


def _name(sd_model: Any) -> str:
    info = getattr(sd_model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", None) or "the model")


def _mib(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / MIB
