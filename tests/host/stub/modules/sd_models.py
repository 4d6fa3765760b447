"""How models come and go."""

from __future__ import annotations

from modules import devices, lowvram, shared


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


def reload_weights_in_place(m, state_dict):
    send_model_to_cpu(m)
    m.load_state_dict(state_dict)
    if not m.lowvram:
        m.to(devices.device)
