"""Stock lowvram's behaviour in words of our own: one big module on the GPU at a time, by forward pre-hooks."""

from __future__ import annotations

from collections import namedtuple

import torch

from modules import devices, shared

module_in_gpu = None
cpu = torch.device("cpu")
ModuleWithParent = namedtuple("ModuleWithParent", ["module", "parent"], defaults=["None"])


def send_everything_to_cpu():
    global module_in_gpu
    if module_in_gpu is not None:
        module_in_gpu.to(cpu)
    module_in_gpu = None


def is_needed(sd_model):
    flags = shared.cmd_opts
    return flags.lowvram or flags.medvram or flags.medvram_sdxl and hasattr(sd_model, "conditioner")


def apply(sd_model):
    needed = is_needed(sd_model)
    shared.parallel_processing_allowed = not needed
    if needed:
        setup_for_low_vram(sd_model, not shared.cmd_opts.lowvram)
    else:
        sd_model.lowvram = False


def is_enabled(sd_model):
    return sd_model.lowvram


def setup_for_low_vram(sd_model, use_medvram):
    if getattr(sd_model, "lowvram", False):
        return
    sd_model.lowvram = True
    parents = {}

    def send_me_to_gpu(module, _):
        global module_in_gpu
        target = parents.get(module, module)
        if module_in_gpu == target:
            return
        if module_in_gpu is not None:
            module_in_gpu.to(cpu)
        target.to(devices.device)
        module_in_gpu = target

    vae = sd_model.first_stage_model
    encode, decode = vae.encode, vae.decode

    def first_stage_model_encode_wrap(x):
        send_me_to_gpu(vae, None)
        return encode(x)

    def first_stage_model_decode_wrap(z):
        send_me_to_gpu(vae, None)
        return decode(z)

    if hasattr(sd_model, "medvram_fields"):
        parked = sd_model.medvram_fields()
    else:
        parked = [(sd_model, "first_stage_model"), (sd_model, "model")]
        if hasattr(sd_model, "conditioner"):
            parked.append((sd_model, "conditioner"))
        elif hasattr(sd_model.cond_stage_model, "model"):
            parked.append((sd_model.cond_stage_model, "model"))
        else:
            parked.append((sd_model.cond_stage_model, "transformer"))
    _without(parked, lambda: sd_model.to(devices.device))

    if hasattr(getattr(sd_model, "cond_stage_model", None), "medvram_modules"):
        for entry in sd_model.cond_stage_model.medvram_modules():
            module, parent = entry if isinstance(entry, ModuleWithParent) else (entry, None)
            if module:
                module.register_forward_pre_hook(send_me_to_gpu)
                if parent:
                    parents[module] = parent
    elif hasattr(sd_model, "conditioner"):
        sd_model.conditioner.register_forward_pre_hook(send_me_to_gpu)
    elif hasattr(sd_model.cond_stage_model, "model"):
        for module in (sd_model.cond_stage_model.model, sd_model.cond_stage_model.model.token_embedding):
            module.register_forward_pre_hook(send_me_to_gpu)
            parents[module] = sd_model.cond_stage_model
    else:
        sd_model.cond_stage_model.transformer.register_forward_pre_hook(send_me_to_gpu)
        parents[sd_model.cond_stage_model.transformer] = sd_model.cond_stage_model

    vae.register_forward_pre_hook(send_me_to_gpu)
    vae.encode = first_stage_model_encode_wrap
    vae.decode = first_stage_model_decode_wrap

    if use_medvram:
        sd_model.model.register_forward_pre_hook(send_me_to_gpu)
        return
    unet = sd_model.model.diffusion_model
    names = ("input_blocks", "middle_block", "output_blocks", "time_embed")
    for name in names:
        getattr(unet, name)  # stock crashes here on a UNet of another build (SD3)
    _without([(unet, name) for name in names], lambda: sd_model.model.to(devices.device))
    for block in (unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks):
        block.register_forward_pre_hook(send_me_to_gpu)


def _without(fields, action):
    stored = [getattr(owner, name, None) for owner, name in fields]
    for owner, name in fields:
        setattr(owner, name, None)
    action()
    for (owner, name), value in zip(fields, stored, strict=True):
        setattr(owner, name, value)
