"""What the host does to models between images: loads, reloads, keeps, switches, changes in place, throws away."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from webui_stub import streams


def weights(kind, seed):
    import tiny_models

    return tiny_models.build(kind, seed).state_dict()


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()])
def test_a_model_that_is_thrown_away_gives_its_pages_back(webui, stock_image, pinned, flags):
    webui.start(*flags)
    first = webui.load_model("sd1")
    webui.txt2img(True, 0)
    held = pinned()
    assert held > 0
    webui.switch_to("sdxl", 2)
    assert next(first.parameters()).is_meta
    assert all(not part._forward_pre_hooks or part is first for part in first.model.diffusion_model.modules())
    assert torch.equal(webui.txt2img(True, 0), stock_image("sdxl", 2))
    assert [model for model, _ in webui.conversions.items()] == [webui.shared.sd_model]
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    webui.switch_to("sd1", 1)
    webui.txt2img(True, 0)
    gc.collect()
    assert pinned() == held


@pytest.mark.parametrize("flags", [("--async-lowvram",), (), ("--medvram",)])
def test_several_models_are_kept_loaded(webui, stock_image, flags):
    webui.start(*flags)
    webui.load_model("sd1", 1)
    for enabled in (True, False, True):
        for kind, seed in (("sd1", 1), ("sd1", 2), ("sdxl", 3), ("sd1", 2)):
            model = webui.switch_to(kind, seed, limit=3)
            assert torch.equal(webui.txt2img(enabled, 0), stock_image(kind, seed)), (enabled, kind, seed)
            assert streams(model) is enabled
    assert len(webui.sd_models.loaded) == 3


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sd3"])
def test_another_checkpoint_into_the_live_model(webui, stock_image, kind):
    webui.start("--async-lowvram")
    model = webui.load_model(kind, 1)
    for seed in (2, 3, 1):
        webui.txt2img(True, 0)
        webui.sd_models.reload_weights_in_place(model, weights(kind, seed))
        assert torch.equal(webui.txt2img(True, 0), stock_image(kind, seed))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("flags", [("--async-lowvram",), ()])
def test_another_vae_into_the_live_model(webui, stock_image, kind, flags):
    import tiny_models

    webui.start(*flags)
    model = webui.load_model(kind, 1)
    own = stock_image(kind, 1)
    other = tiny_models.build(kind, 9).first_stage_model.state_dict()
    assert torch.equal(webui.txt2img(True, 0), own)
    webui.sd_models.reload_vae(model, other)
    changed = webui.txt2img(True, 0)
    assert not torch.equal(changed, own)
    assert torch.equal(webui.txt2img(False, 0), changed)
    webui.sd_models.reload_vae(model, tiny_models.build(kind, 1).first_stage_model.state_dict())
    assert torch.equal(webui.txt2img(True, 0), own)


@pytest.mark.parametrize("flags", [("--async-lowvram",), (), ("--medvram",)])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_refiner_comes_between_two_steps(webui, stock_image, flags, kind):
    """A checkpoint that is loaded in the middle of sampling streams too, whatever the flags."""

    def refine(step):
        if step == 1:
            webui.switch_to(kind, 7, limit=2)
            webui.shared.sd_model.get_learned_conditioning(torch.arange(5)[None])

    webui.start(*flags)
    webui.load_model("sd1", 1)
    expected = []
    for enabled in (False, True, True):
        webui.switch_to("sd1", 1, limit=2)
        expected.append(webui.txt2img(enabled, 0, between=refine if kind == "sd1" else None, steps=3))
        if enabled and kind == "sd1":
            assert streams(webui.shared.sd_model) and webui.shared.sd_model.lowvram
    assert torch.equal(expected[0], expected[1]) and torch.equal(expected[0], expected[2])


def cast_in(module, args):
    module.to(torch.float32)


def cast_back(module, args, output):
    module.to(torch.float8_e4m3fn)


def to_fp8(model):
    """The host's fp8 storage, with the `manual_cast` that goes with it where autocast is not to be had."""
    for part in model.model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.fp16_weight = part.weight.data.clone().half()
            part.to(torch.float8_e4m3fn)
            if not getattr(part, "casts", None):
                part.casts = [part.register_forward_pre_hook(cast_in), part.register_forward_hook(cast_back)]


def from_fp8(model):
    for part in model.model.modules():
        if getattr(part, "casts", None):
            for handle in part.casts:
                handle.remove()
            del part.casts, part.fp16_weight
            part.to(torch.float32)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
def test_fp8_storage_on_and_off(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model("sd1", 1)
    plain = webui.txt2img(True, 0)
    webui.sd_models.reload_weights_in_place(model, weights("sd1", 1), to_fp8)
    images = [webui.txt2img(enabled, 0) for enabled in (True, True, True, False, True)]
    assert all(torch.equal(image, images[3]) for image in images)
    assert not torch.equal(images[0], plain)
    assert model.model.diffusion_model.out[2].weight.dtype == torch.float8_e4m3fn
    from_fp8(model)
    webui.sd_models.reload_weights_in_place(model, weights("sd1", 1))
    assert torch.equal(webui.txt2img(True, 0), plain)


@pytest.mark.parametrize(
    "change", [lambda m: m.to(memory_format=torch.channels_last), lambda m: m.double().float(), lambda m: None]
)
def test_strides_and_storages_change_on_a_reload(webui, stock_image, change):
    webui.start("--async-lowvram")
    model = webui.load_model("sd1", 1)
    webui.txt2img(True, 0)
    webui.sd_models.reload_weights_in_place(model, weights("sd1", 2), change)
    images = [webui.txt2img(enabled, 0) for enabled in (True, True, False, True)]
    assert all(torch.equal(image, images[2]) for image in images)
    assert torch.allclose(images[0], stock_image("sd1", 2), atol=1e-5)


def test_a_module_injected_into_the_unet_streams_too(webui, stock_image):
    """AnimateDiff puts motion modules between the blocks' layers."""

    class Motion(nn.Module):
        def __init__(self, around):
            super().__init__()
            self.around, self.mix = around, nn.Conv2d(8, 8, 1)

        def forward(self, *args):
            return self.mix(self.around(*args))

    webui.start("--async-lowvram")
    model = webui.load_model()
    unet = model.model.diffusion_model
    plain = webui.txt2img(True, 0)
    unet.middle_block = Motion(unet.middle_block)
    webui.txt2img(True, 0)
    images = [webui.txt2img(enabled, 0) for enabled in (True, False, True)]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    unet.middle_block = unet.middle_block.around
    assert torch.equal(webui.txt2img(True, 0), plain)


def test_unload_and_load_again_by_the_settings_page(webui, stock_image):
    for flags in ((), ("--async-lowvram",)):
        webui.start(*flags)
        model = webui.load_model()
        webui.txt2img(True, 0)
        webui.sd_models.unload_model_weights()
        webui.sd_models.send_model_to_device(model)
        assert streams(model) and model.lowvram
        assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_unload_while_an_image_is_made(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    for name in ("middle_block", "out"):
        unload = lambda *_: webui.sd_models.unload_model_weights()
        handle = getattr(model.model.diffusion_model, name).register_forward_hook(unload)
        assert torch.equal(webui.txt2img(True, 0), stock_image())
        handle.remove()


def test_the_extension_is_disabled_and_the_ui_reloaded(webui, stock_image, pinned):
    for flags in ((), ("--async-lowvram",)):
        webui.start(*flags)
        model = webui.load_model()
        webui.txt2img(True, 0)
        lifecycle = webui.namespace.lifecycle
        webui.callbacks.script_unloaded_callback()
        assert streams(model), "a reload is not a farewell"
        lifecycle.leave()  # what the timer does after a while
        assert not streams(model) and pinned() == 0
        assert model.lowvram is bool(flags)
        assert torch.equal(webui.txt2img(), stock_image())
        webui.load_scripts()
        lifecycle.leave()  # the timer of an earlier reload
        assert torch.equal(webui.txt2img(True, 0), stock_image())
        assert streams(model)
        lifecycle.leave()
        assert streams(model), "armed again: nobody leaves"
        webui.txt2img(False, 0)
