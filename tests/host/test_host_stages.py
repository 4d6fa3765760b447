"""Text encoders, VAE and UNet all stream, one stage on the GPU at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import KINDS

from lib_async_mover.errors import ArenaAllocationError
from lib_async_mover.memory.arena import Arena

STAGES = {
    "sd1": {"unet", "text", "vae_encoder", "vae_decoder"},
    "sd2": {"unet", "text", "vae_encoder", "vae_decoder"},
    "sdxl": {"unet", "text", "text_2", "vae_encoder", "vae_decoder"},
    "sd3": {"unet", "text", "text_2", "text_3", "vae_encoder", "vae_decoder"},
}


def movers(webui, model):
    return {component.key: component.mover for component in webui.conversions.of(model).components}


def held(webui, model) -> set[str]:
    """Which components have VRAM."""
    return {key for key, mover in movers(webui, model).items() if mover.stats()["arena_mib"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [("--async-lowvram",), (), ("--medvram",), ("--lowvram",)])
def test_everything_streams_however_the_model_was_loaded(webui, stock_image, kind, flags):
    if kind == "sd3" and flags == ("--lowvram",):
        pytest.skip("stock cannot load it")
    webui.start(*flags)
    model = webui.load_model(kind)
    for _ in range(2):
        assert torch.equal(webui.txt2img(True, 0, hires=True), stock_image(kind, hires=True))
        assert torch.equal(webui.img2img(True, 0), stock_image(kind, verb="img2img"))
    found = movers(webui, model)
    assert set(found) == STAGES[kind]
    for key, mover in found.items():
        assert mover.forwards > 0, key
        # CLIP's last norm is called from outside of its forward.
        expected = key == "unet" or (key == "text" and kind in ("sd1", "sdxl"))
        assert expected or mover.stats()["on_demand_loads"] == 0, key
        assert mover.whole is (key != "unet")
    assert held(webui, model) == set()
    assert model.lowvram is True
    assert webui.shared.parallel_processing_allowed is False


@pytest.mark.parametrize("kind", KINDS)
def test_one_stage_at_a_time(webui, kind):
    webui.start("--async-lowvram")
    model = webui.load_model(kind)
    webui.img2img(True, 0)
    seen = []
    for component in webui.conversions.of(model).components:
        for leaf in component.module.modules():
            if isinstance(leaf, torch.nn.Linear | torch.nn.Conv2d | torch.nn.LayerNorm):
                leaf.register_forward_hook(lambda *_, key=component.key: seen.append((key, held(webui, model))))
    webui.img2img(True, 0)
    for key, beside in seen:
        together = {"text", "text_2"} if kind == "sdxl" and key.startswith("text") else {key}
        assert key in beside and beside <= together, (key, beside)
    assert {key for key, _ in seen} == STAGES[kind]


def test_textual_inversion_calls_an_embedding_from_outside(webui):
    webui.start("--async-lowvram")
    for kind in ("sd1", "sd2"):
        model = webui.load_model(kind)
        expected = model.cond_stage_model.encode_embedding_init_text().clone()
        webui.txt2img(True, 0)
        assert torch.equal(model.cond_stage_model.encode_embedding_init_text(), expected)


def test_stock_s_wraps_stay_for_those_who_wrapped_them(webui, stock_image):
    """An extension that wrapped `decode` before us calls stock's closure, which must find its place taken."""
    webui.start("--lowvram")
    model = webui.load_model()
    inner, calls = model.first_stage_model.decode, []

    def theirs(z):
        image = inner(z)
        calls.append(type(webui.lowvram.module_in_gpu).__name__)
        return image

    model.first_stage_model.decode = theirs
    for enabled in (True, True, False, True, False):
        assert torch.equal(webui.txt2img(enabled, 0), stock_image())
        assert model.first_stage_model.decode is theirs or enabled
    assert calls == ["Occupant", "Occupant", "VAE", "Occupant", "VAE"]


def test_a_closure_that_this_host_built_differently_keeps_text_and_vae(webui, stock_image, monkeypatch):
    webui.start("--lowvram")
    model = webui.load_model()
    from lib_async_mover.webui.host import stock

    monkeypatch.setattr(stock, "redirect", lambda *_: None)
    for enabled in (True, False, True):
        assert torch.equal(webui.txt2img(enabled, 0), stock_image())
    assert set(movers(webui, model)) == {"unet"}


def test_a_vae_of_another_build_streams_as_a_whole(webui, stock_image):
    webui.start()
    model = webui.load_model()
    vae = model.first_stage_model
    vae.front, vae.back = vae.encoder, vae.decoder
    del vae.encoder, vae.decoder
    cls = type(vae)
    vae.__class__ = type(
        "Other",
        (cls,),
        {
            "encode": lambda self, x: self.quant_conv(self.front(x)),
            "decode": lambda self, z: self.back(self.post_quant_conv(z)),
        },
    )
    for enabled in (True, True, False, True):
        assert torch.equal(webui.txt2img(enabled, 0), stock_image())
        assert torch.equal(webui.img2img(enabled, 0), stock_image(verb="img2img"))
    mover = movers(webui, model)["vae"]
    assert mover.forwards == 3 and mover.stats()["on_demand_loads"] == 0


def test_a_copy_of_the_components_does_not_stream(webui):
    webui.start("--async-lowvram")
    for kind in ("sd1", "sd2"):
        model = webui.load_model(kind)
        webui.txt2img(True, 0)
        text, vae = copy.deepcopy(model.cond_stage_model), copy.deepcopy(model.first_stage_model)
        before = {key: mover.forwards for key, mover in movers(webui, model).items()}
        with torch.no_grad():
            x, tokens = torch.ones(1, 4, 8, 8), torch.arange(5)[None]
            copied = vae.decode(x), text(tokens)
            assert {key: mover.forwards for key, mover in movers(webui, model).items()} == before
            assert torch.equal(copied[0], model.first_stage_model.decode(x))
            assert torch.equal(copied[1], model.cond_stage_model(tokens))


@pytest.mark.parametrize("where", ["text", "vae_decoder"])
def test_no_room_for_a_stage_is_stock_s(webui, stock_image, monkeypatch, caplog, where):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    (stage,) = [stage for stage in webui.conversions.of(model).stages if where.startswith(stage.name)]
    allocate = Arena.allocate

    def no_room(self):
        if webui.lowvram.module_in_gpu is stage.occupant:
            raise ArenaAllocationError("no room")
        allocate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Arena, "allocate", no_room)
        assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert "no room in VRAM" in caplog.text
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert webui.conversions.of(model) is not None
