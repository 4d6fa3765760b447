"""Text encoders, VAE and UNet all stream, one stage on the GPU at a time, and what comes next is uploaded ahead."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import KINDS

STAGES = {
    "sd1": {"unet", "text", "vae_encoder", "vae_decoder"},
    "sd2": {"unet", "text", "vae_encoder", "vae_decoder"},
    "sdxl": {"unet", "text", "text_2", "vae_encoder", "vae_decoder"},
    "sd3": {"unet", "text", "text_2", "text_3", "vae_encoder", "vae_decoder"},
}


def conversion_of(model):
    from lib_async_mover.webui.state import STATE

    return STATE.conversion_of(model)


def movers(model):
    return {part.root.key: part.mover for part in conversion_of(model).parts}


def held(model) -> set[str]:
    """Which parts have VRAM."""
    return {key for key, mover in movers(model).items() if mover.stats()["arena_mib"]}


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
    found = movers(model)
    assert set(found) == STAGES[kind]
    for key, mover in found.items():
        assert mover.forwards > 0, key
        # CLIP's last norm is called from outside of its forward
        assert key == "unet" or mover.visits.count == 0 or (key == "text" and kind in ("sd1", "sdxl")), key
        assert mover.whole is (key != "unet")
    assert held(model) == set()
    assert model.lowvram is True
    assert webui.shared.parallel_processing_allowed is False


@pytest.mark.parametrize("kind", KINDS)
def test_one_stage_at_a_time(webui, kind):
    webui.start("--async-lowvram")
    model = webui.load_model(kind)
    webui.img2img(True, 0)
    seen = []
    for part in conversion_of(model).parts:
        for leaf in part.module.modules():
            if isinstance(leaf, torch.nn.Linear | torch.nn.Conv2d | torch.nn.LayerNorm):
                leaf.register_forward_hook(lambda *_, key=part.root.key: seen.append((key, held(model))))
    webui.img2img(True, 0)
    for key, beside in seen:
        together = {"text", "text_2"} if kind == "sdxl" and key.startswith("text") else {key}
        ahead = {"unet"} if key.startswith("text") else {"vae_decoder"} if key == "unet" else set()
        assert key in beside and beside <= together | ahead, (key, beside)
    assert any(key == "unet" and "vae_decoder" in beside for key, beside in seen), "the VAE is uploaded ahead"
    assert kind == "sd3" or any(key.startswith("text") and "unet" in beside for key, beside in seen)


def test_nothing_is_uploaded_ahead_where_vram_is_short(webui, stock_image, monkeypatch):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    for mover in movers(model).values():
        monkeypatch.setattr(mover.backend, "free_bytes", lambda: 200 << 20)
    seen = []
    model.model.diffusion_model.out[2].register_forward_hook(lambda *_: seen.append(held(model)))
    model.cond_stage_model.wrapped.transformer.mix.register_forward_hook(lambda *_: seen.append(held(model)))
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert seen == [{"text"}, {"text"}, {"unet"}, {"unet"}]


def test_what_was_uploaded_for_nothing_goes_back(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    with torch.no_grad():
        model.get_learned_conditioning(torch.arange(5)[None])
    assert held(model) == {"text", "unet"}
    with torch.no_grad():
        model.encode_first_stage(torch.zeros(1, 3, 8, 8))
    assert held(model) == {"vae_encoder"}
    with torch.no_grad():
        model.get_learned_conditioning(torch.arange(5)[None])
    webui.lowvram.send_everything_to_cpu()
    assert held(model) == set()
    assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_a_bug_in_uploading_ahead_costs_the_favour_only(webui, stock_image, monkeypatch, caplog):
    webui.start("--async-lowvram")
    webui.load_model()
    webui.txt2img(True, 0)
    from lib_async_mover import Mover

    monkeypatch.setattr(Mover, "prefetch", lambda self: 1 / 0)
    for _ in range(2):
        assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert [bool(r.exc_info) for r in caplog.records if "uploading ahead" in r.getMessage()] == [True]
    assert conversion_of(webui.shared.sd_model)


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
    from lib_async_mover.webui import stock

    monkeypatch.setattr(stock, "redirect", lambda *_: None)
    for enabled in (True, False, True):
        assert torch.equal(webui.txt2img(enabled, 0), stock_image())
    assert set(movers(model)) == {"unet"}


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
    assert movers(model)["vae"].forwards == 3 and movers(model)["vae"].visits.count == 0


def test_a_copy_of_the_parts_does_not_stream(webui):
    webui.start("--async-lowvram")
    for kind in ("sd1", "sd2"):
        model = webui.load_model(kind)
        webui.txt2img(True, 0)
        text, vae = copy.deepcopy(model.cond_stage_model), copy.deepcopy(model.first_stage_model)
        before = {key: mover.forwards for key, mover in movers(model).items()}
        with torch.no_grad():
            x, tokens = torch.ones(1, 4, 8, 8), torch.arange(5)[None]
            copied = vae.decode(x), text(tokens)
            assert {key: mover.forwards for key, mover in movers(model).items()} == before
            assert torch.equal(copied[0], model.first_stage_model.decode(x))
            assert torch.equal(copied[1], model.cond_stage_model(tokens))


@pytest.mark.parametrize("where", ["text", "vae_decoder"])
def test_no_room_for_a_stage_is_stock_s(webui, stock_image, monkeypatch, caplog, where):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    from lib_async_mover.errors import ArenaAllocationError
    from lib_async_mover.loadout import Loadout

    def no_room(self, *args):
        if self is None or self is movers_before[where].holdings.loadout:
            raise ArenaAllocationError("no room")
        return ensure(self)

    ensure, movers_before = Loadout.ensure, movers(model)
    with monkeypatch.context() as patch:
        patch.setattr(Loadout, "ensure", no_room)
        assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert conversion_of(model) is not None
