"""Reload UI and Reload custom script bodies execute the script again; models and their hooks stay."""

from __future__ import annotations

import torch
from webui_stub import unet_mover


def test_reload_ui_keeps_the_model_and_the_choice(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 128)
    mover = unet_mover(model)
    for reload in (webui.reload_ui, webui.reload_script_body, webui.reload_ui):
        reload()
        assert unet_mover(model) is mover
        assert torch.equal(webui.txt2img(), stock_image())
        assert torch.equal(webui.txt2img(True, 128), stock_image())
    assert torch.equal(webui.txt2img(False, 128), stock_image())
    webui.reload_ui()
    from lib_async_mover.webui import status

    assert status()["enabled"] is False, "the user's last choice stands over the flag"


def test_a_generation_in_flight_while_the_scripts_are_unloaded(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    handle = model.model.diffusion_model.middle_block.register_forward_hook(
        lambda *_: webui.callbacks.script_unloaded_callback()
    )
    image = webui.txt2img(True, 64)
    handle.remove()
    assert torch.equal(image, stock_image())
    webui.load_scripts()
    assert torch.equal(webui.txt2img(True, 64), stock_image())


def test_building_the_ui_changes_nothing(webui):
    webui.start()
    webui.load_model()
    from lib_async_mover.webui import status

    before = status()
    for _ in range(6):
        enabled, buffer_mb = webui.script.ui(False)
    assert status() == before
    assert (enabled.label, buffer_mb.label) == ("Async lowvram", "Buffer size (MB)")
    assert (enabled.value, buffer_mb.value, buffer_mb.minimum) == (False, 0, 0)
    assert enabled.elem_id == "script_txt2img_async_lowvram_enabled"


def test_the_flag_opens_the_accordion(webui):
    webui.start("--async-lowvram")
    enabled, _ = webui.script.ui(False)
    assert enabled.value is True
