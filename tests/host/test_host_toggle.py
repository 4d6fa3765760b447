"""The accordion's toggle on a live model, however it was loaded; what was found is what is given back."""

from __future__ import annotations

import pytest
import torch

LOADED = [("sd1", ()), ("sd1", ("--medvram",)), ("sd1", ("--lowvram",)), ("sdxl", ()), ("sdxl", ("--medvram",)),
          ("sdxl", ("--lowvram",)), ("sd3", ()), ("sd3", ("--medvram",))]  # fmt: skip


def traces(model):
    """Everything a conversion might leave behind: hooks, names, identities, types."""
    return {
        name: (
            type(part).__name__,
            sorted(map(id, part._forward_pre_hooks.values())),
            sorted(map(id, part._forward_hooks.values())),
            {key: id(value) for key, value in part._parameters.items()},
            sorted(key for key in vars(part) if not key.startswith("_forward")),
        )
        for name, part in model.named_modules()
    }


@pytest.mark.parametrize(("kind", "flags"), LOADED)
def test_on_off_on(webui, stock_image, kind, flags):
    webui.start(*flags)
    model = webui.load_model(kind)
    keys = list(model.state_dict())
    webui.txt2img(False, 0)
    before = traces(model)
    for enabled in (True, False, True, True, False):
        assert torch.equal(webui.txt2img(enabled, 64), stock_image(kind)), enabled
        assert list(model.state_dict()) == keys
        if not enabled:
            assert traces(model) == before
    assert webui.lowvram.module_in_gpu is None or not flags


def test_the_size_may_change_between_generations(webui, stock_image):
    webui.start()
    webui.load_model()
    from lib_async_mover.webui import status

    for size, shown in ((64, 64), (0, 0), (128, 128), ("512", 512), (-3, 0), ("many", 0)):
        assert torch.equal(webui.txt2img(True, size), stock_image())
        assert status()["buffer_mb"] == shown
        (entry,) = status()["models"]
        assert entry["stages"]["unet"]["vram_mb"] == shown


def test_a_nested_pass_without_arguments_keeps_the_choice(webui, stock_image):
    webui.start()
    webui.load_model()
    webui.txt2img(True, 64)
    webui.before_sampling()
    from lib_async_mover.webui import status

    assert status()["enabled"] is True
    assert status()["models"]


def test_weights_survive_the_round_trip(webui):
    webui.start("--medvram")
    model = webui.load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for enabled in (True, False, True):
        webui.txt2img(enabled, 64)
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_conversion_that_fails_half_way_leaves_the_model_as_it_was(webui, stock_image, monkeypatch):
    webui.start("--lowvram")
    model = webui.load_model()
    webui.txt2img(False, 0)
    before = traces(model)
    from lib_async_mover.webui.host import convert

    for broken in ("attach", "Stage"):
        with monkeypatch.context() as patch:
            patch.setattr(convert, broken, lambda *args, **kwargs: 1 / 0)
            assert torch.equal(webui.txt2img(True, 64), stock_image())
            assert traces(model) == before
    assert torch.equal(webui.txt2img(True, 64), stock_image())
