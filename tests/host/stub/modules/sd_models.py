"""How models come and go."""

from __future__ import annotations

import tiny_models
import torch

from modules import devices, lowvram, shared

loaded = []  # `model_data.loaded_sd_models`


def model_target_device(m):
    return devices.cpu if lowvram.is_needed(m) else devices.device


def send_model_to_device(m):
    lowvram.apply(m)
    if not m.lowvram:
        m.to(shared.device)


def send_model_to_cpu(m):
    if m is not None:
        if m.lowvram:
            lowvram.send_everything_to_cpu()
        else:
            m.to(devices.cpu)
    devices.torch_gc()


def send_model_to_trash(m):
    m.to(device="meta")
    devices.torch_gc()


def unload_model_weights(sd_model=None, info=None):
    send_model_to_cpu(sd_model or shared.sd_model)


def load_model(kind, seed):
    model = tiny_models.build(kind, seed)
    model.to(model_target_device(model))
    send_model_to_device(model)
    tiny_models.hijack(model)
    shared.sd_model = model
    loaded.insert(0, model)
    model.empty_prompt = model.get_learned_conditioning(torch.zeros(1, 1, dtype=torch.long))
    return model


def reload_weights_in_place(m, state_dict, change=None):
    """Another checkpoint of the same architecture, into the live model. `change` is what fp8 and the like do to it."""
    send_model_to_cpu(m)
    tiny_models.undo_hijack(m)
    m.load_state_dict(state_dict)
    if change is not None:
        change(m)
    tiny_models.hijack(m)
    if not m.lowvram:
        m.to(devices.device)


def reload_vae(m, state_dict):
    """Another VAE, into the live model."""
    if m.lowvram:
        lowvram.send_everything_to_cpu()
    else:
        m.to(devices.cpu)
    tiny_models.undo_hijack(m)
    m.first_stage_model.load_state_dict(state_dict)
    tiny_models.hijack(m)
    if not m.lowvram:
        m.to(devices.device)


def switch_to(kind, seed, limit=1):
    """`reload_model_weights` for a checkpoint (kind, seed), with `limit` models kept loaded."""
    name = f"{kind}-{seed}"
    live = shared.sd_model
    if live.sd_checkpoint_info.name_for_extra == name:
        return live
    send_model_to_cpu(live)
    kept = next((m for m in loaded if m.sd_checkpoint_info.name_for_extra == name), None)
    if kept is not None:
        send_model_to_device(kept)
        loaded.remove(kept)
        loaded.insert(0, kept)
        shared.sd_model = kept
        return kept
    if len(loaded) >= limit:
        oldest = loaded[-1]
        if type(oldest) is tiny_models.KINDS[kind]:
            loaded.remove(oldest)
            fresh = tiny_models.build(kind, seed)
            reload_weights_in_place(oldest, fresh.state_dict())
            oldest.sd_checkpoint_info = fresh.sd_checkpoint_info
            shared.sd_model = oldest
            loaded.insert(0, oldest)
            return oldest
        send_model_to_trash(loaded.pop())
    return load_model(kind, seed)
