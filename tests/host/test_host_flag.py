"""`--async-lowvram`: from the first model load on, and stock's pixels."""

from __future__ import annotations

import pytest
import torch
from webui_stub import streams, unet_mover

KINDS = ["sd1", "sdxl", "sd3"]


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_stock_s(webui, stock_image, kind):
    webui.start("--async-lowvram")
    assert webui.shared.cmd_opts.lowvram is True
    model = webui.load_model(kind)
    assert model.lowvram is True
    assert streams(model)
    for kwargs in ({}, {"hires": True}, {"preview": True}):
        assert torch.equal(webui.txt2img(True, 0, **kwargs), stock_image(kind, **kwargs)), kwargs
    assert torch.equal(webui.img2img(True, 0), stock_image(kind, verb="img2img"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_streams_before_any_generation_hook_has_run(webui, stock_image, kind):
    webui.start("--async-lowvram")
    webui.load_model(kind)
    assert torch.equal(webui.txt2img(), stock_image(kind))
    from lib_async_mover.webui import status

    (entry,) = status()["models"]
    assert entry["name"] == f"{kind}-1"
    assert entry["stages"]["unet"]["weights_mib"] > 0


def test_the_mover_is_at_work_not_stepped_around(webui):
    webui.start("--async-lowvram")
    model = webui.load_model()
    seen = []
    model.model.diffusion_model.middle_block.conv.register_forward_hook(
        lambda module, args, output: seen.append(module.weight.data_ptr())
    )
    parked = model.model.diffusion_model.middle_block.conv.weight.data_ptr()
    webui.txt2img(True, 0)
    assert seen and parked not in seen, "the weights computed with were not the parked ones"


@pytest.mark.parametrize(("kind", "buffer_kib"), [("sd1", 24), ("sdxl", 24), ("sd3", 6)])
def test_with_a_buffer_smaller_than_the_model(webui, stock_image, small_buffer, kind, buffer_kib):
    webui.start("--async-lowvram")
    small_buffer(buffer_kib)
    webui.load_model(kind)
    for kwargs in ({}, {"hires": True, "steps": 4}, {"preview": True}):
        assert torch.equal(webui.txt2img(True, 0, **kwargs), stock_image(kind, **kwargs)), kwargs
    assert unet_mover(webui.shared.sd_model).stats()["ring_mib"] > 0


def test_without_the_flag_the_host_keeps_its_own_lowvram(webui, stock_image):
    webui.start("--lowvram")
    model = webui.load_model()
    assert not streams(model)
    assert torch.equal(webui.txt2img(False, 0), stock_image())


def test_an_sd3_that_stock_lowvram_crashes_on(webui, stock_image):
    webui.start("--lowvram")
    with pytest.raises(AttributeError, match="input_blocks"):
        webui.load_model("sd3")


def test_a_failing_set_up_leaves_stock_lowvram(webui, stock_image, monkeypatch):
    webui.start("--async-lowvram")
    from lib_async_mover.webui.host import convert, stock

    monkeypatch.setattr(convert, "attach", lambda *args, **kwargs: 1 / 0)
    model = webui.load_model()
    assert not streams(model)
    hooked = {placed.module for placed in stock.stock_hooks(model.model)}
    assert hooked == set(stock.blocks_of(model.model.diffusion_model)), "the user asked for lowvram, not medvram"
    assert torch.equal(webui.txt2img(), stock_image())


def test_the_flag_s_model_goes_to_stock_lowvram_when_toggled_off(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    assert torch.equal(webui.txt2img(False, 0), stock_image())
    from lib_async_mover.webui.host import stock

    assert not streams(model)
    assert {p.module for p in stock.stock_hooks(model.model)} == set(stock.blocks_of(model.model.diffusion_model))


def test_an_sd3_loads_under_the_flag_even_when_toggled_off(webui, stock_image):
    webui.start("--async-lowvram")
    webui.load_model()
    webui.txt2img(False, 0)
    model = webui.load_model("sd3")
    assert not streams(model)
    assert torch.equal(webui.txt2img(False, 0), stock_image("sd3"))
    assert torch.equal(webui.txt2img(True, 0), stock_image("sd3"))


def test_enabled_in_the_settings_streams_from_the_first_load_on(webui, stock_image):
    webui.shared.opts.data["async_lowvram_enabled"] = True
    webui.start()
    model = webui.load_model()
    assert streams(model)
    assert torch.equal(webui.txt2img(), stock_image())
    assert torch.equal(webui.txt2img(False, 0), stock_image())
    assert model.lowvram is False
