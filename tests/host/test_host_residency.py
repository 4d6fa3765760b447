"""One stage on the GPU at a time, whoever asks; `lowvram.module_in_gpu` says which."""

from __future__ import annotations

import torch
from webui_stub import unet_mover


def test_the_unet_holds_the_place_while_it_runs_and_the_vae_takes_it(webui):
    webui.start("--async-lowvram")
    model = webui.load_model()
    seen = []
    model.model.diffusion_model.middle_block.register_forward_hook(lambda *_: seen.append(webui.lowvram.module_in_gpu))
    decode = model.first_stage_model.decoder.register_forward_hook(lambda *_: seen.append(webui.lowvram.module_in_gpu))
    webui.txt2img(True, 0, steps=1)
    decode.remove()
    assert getattr(seen[0], "module", None) is model.model.diffusion_model
    assert seen[1].module is model.first_stage_model.encoder, "the VAE's stage"
    assert webui.lowvram.module_in_gpu is None


def test_the_arena_is_given_back_when_another_stage_comes(webui, monkeypatch):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    mover = unet_mover(model)
    model.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 5, 6))
    assert mover.stats()["arena_mib"] > 0
    model.decode_first_stage(torch.zeros(1, 4, 8, 8))
    assert mover.stats()["arena_mib"] == 0
    model.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 5, 6))
    assert mover.stats()["arena_mib"] > 0
    webui.lowvram.send_everything_to_cpu()
    assert mover.stats()["arena_mib"] == 0
    assert webui.lowvram.module_in_gpu is None


def test_controlnet_evicts_everything_inside_the_unet_s_forward(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    unet = model.model.diffusion_model
    original = unet.forward

    def hooked(*args, **kwargs):  # as ControlNet replaces it: after the root's pre-hooks
        webui.lowvram.send_everything_to_cpu()
        return original(*args, **kwargs)

    unet.forward = hooked
    image = webui.txt2img(True, 0)
    assert torch.equal(image, stock_image())
    assert unet_mover(model).stats()["arena_mib"] == 0


def test_a_stage_that_comes_inside_the_unet_s_forward(webui, stock_image):
    """ControlNet's inpaint units encode with the VAE from within the UNet's forward."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    handle = model.model.diffusion_model.input_blocks[1].register_forward_hook(
        lambda *_: (model.encode_first_stage(torch.zeros(1, 3, 8, 8)), None)[1]
    )
    image = webui.txt2img(True, 0)
    assert torch.equal(image, stock_image())
    model.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 5, 6))
    assert unet_mover(model).stats()["arena_mib"] == 0, "given back at its forward's end"
    handle.remove()
    model.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 5, 6))


def test_two_models_never_hold_the_gpu_together(webui, stock_image):
    webui.start("--async-lowvram")
    first = webui.load_model("sd1", 1)
    webui.txt2img(True, 0)
    first.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 5, 6))
    second = webui.load_model("sdxl", 2)
    assert torch.equal(webui.txt2img(True, 0), stock_image("sdxl", 2))
    second.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 5, 6), torch.zeros(1, 6))
    assert unet_mover(first).stats()["arena_mib"] == 0
    assert unet_mover(second).stats()["arena_mib"] > 0
    webui.shared.sd_model = first
    assert torch.equal(webui.txt2img(True, 0), stock_image("sd1", 1))
    assert unet_mover(second).stats()["arena_mib"] == 0


def test_torch_gc_waits_for_the_copies_first(webui, monkeypatch):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    order = []
    mover = unet_mover(model)
    monkeypatch.setattr(mover.backend, "synchronize", lambda: order.append(("sync", webui.devices.gc_calls)))
    calls = webui.devices.gc_calls
    webui.devices.torch_gc()
    assert order == [("sync", calls)]
    assert webui.devices.gc_calls == calls + 1


def test_unload_from_another_thread_while_idle(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    webui.sd_models.unload_model_weights()
    assert unet_mover(model).stats()["arena_mib"] == 0
    webui.sd_models.send_model_to_device(model)
    assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_weights_reloaded_in_place(webui, stock_image):
    import tiny_models

    webui.start("--async-lowvram")
    model = webui.load_model("sd1", 1)
    webui.txt2img(True, 0)
    webui.sd_models.reload_weights_in_place(model, tiny_models.build("sd1", 5).state_dict())
    assert torch.equal(webui.txt2img(True, 0), stock_image("sd1", 5))
