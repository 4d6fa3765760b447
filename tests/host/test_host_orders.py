"""A UNet's order is kept over a restart, so its weights are packed when it is loaded."""

from __future__ import annotations

import importlib

import pytest
import torch
from webui_stub import unet_mover


def state(webui, key="unet"):
    from lib_async_mover.webui import status

    return status()["models"][-1]["stages"][key]["state"]


def test_after_a_restart_the_first_image_packs_nothing(webui):
    webui.start("--async-lowvram")
    webui.load_model()
    assert (state(webui), state(webui, "vae_decoder")) == ("tracing", "packed")
    first = webui.txt2img(True, 0)
    (kept,) = importlib.import_module("modules.cache").caches["async-lowvram"].values()
    webui.shared.sd_model = None
    model = webui.load_model()
    assert state(webui) == "packed" and unet_mover(model).order == []
    before = [parameter.data_ptr() for parameter in model.model.diffusion_model.parameters()]
    assert torch.equal(webui.txt2img(True, 0), first)
    assert unet_mover(model).order == kept
    assert [parameter.data_ptr() for parameter in model.model.diffusion_model.parameters()] == before


@pytest.mark.parametrize("harm", ["another order", "no cache", "a damaged file"])
def test_a_kept_order_is_a_hint_alone(webui, monkeypatch, harm):
    webui.start("--async-lowvram")
    webui.load_model()
    first = webui.txt2img(True, 0)
    cache = importlib.import_module("modules.cache")
    kept = cache.caches["async-lowvram"]
    if harm == "another order":
        for key in kept:
            kept[key] = ["no such layer", *reversed(kept[key])]
    elif harm == "no cache":
        monkeypatch.delattr(cache, "cache")
    else:
        monkeypatch.setattr(cache, "cache", lambda _: 1 / 0)
    model = webui.load_model()
    for _ in range(2):
        assert torch.equal(webui.txt2img(True, 0), first)
    assert unet_mover(model).order != list(reversed(unet_mover(model).order))
