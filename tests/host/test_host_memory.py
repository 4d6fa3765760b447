"""Memory runs out in one of a model's stages: weights give way, the call is made again, the pixels are the same."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from webui_stub import unet_mover

from lib_async_mover.device.cpu import CpuBackend
from lib_async_mover.run import buffer

OOM = torch.cuda.OutOfMemoryError
TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB"


def movers(webui, model):
    return {component.key: component.mover for component in webui.conversions.of(model).components}


def retries(webui, model) -> int:
    return webui.conversions.of(model).oom_retries


def fail_while(module, condition, error=OOM):
    """Each call of `module` raises while `condition()`; the list has one entry for each."""
    raised = []

    def before(*_):
        if condition():
            raised.append(1)
            raise error(TEXT)

    handle = module.register_forward_pre_hook(before)
    return raised, handle


@pytest.fixture
def running(webui, small_buffer):
    """A model that streams through a small buffer, and its mover."""
    webui.start("--async-lowvram")
    small_buffer(16)
    model = webui.load_model()
    webui.txt2img(True, 0)
    return model, unet_mover(model)


def leaves(model):
    return [leaf.module for leaf in unet_mover(model).placement.store.order]


@pytest.mark.parametrize("number", range(0, 43, 7))
@pytest.mark.parametrize("error", [OOM, RuntimeError])
def test_a_step_is_done_again(webui, stock_image, running, caplog, number, error):
    model, mover = running
    held = mover.placement.plan.budget_bytes
    raised, handle = fail_while(leaves(model)[number], lambda: mover.placement.held_bytes > 0.6 * held, error)
    before = torch.get_rng_state()
    assert torch.equal(webui.txt2img(True, 0, steps=4), stock_image(steps=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(raised) == 1 == retries(webui, model) == mover.stats()["oom_retries"]
    assert "trying again" in caplog.text and "the mover failed" not in caplog.text
    handle.remove()
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert mover.placement.plan.budget_bytes <= 0.6 * held
    assert torch.equal(webui.txt2img(True, 0, hires=True), stock_image(hires=True))
    assert mover.placement.plan.budget_bytes <= 0.6 * held, "one run: a larger buffer for another size is not due yet"


def test_another_size_has_the_whole_buffer_in_the_next_image(webui, running):
    model, mover = running
    held = mover.placement.plan.budget_bytes
    _, handle = fail_while(model.model.diffusion_model.out[2], lambda: mover.placement.held_bytes > 0.6 * held)
    webui.txt2img(True, 0)
    handle.remove()
    with torch.no_grad():
        for size, expected in ((12, held), (8, held // 2), (12, held)):
            webui.before_sampling(True, 0)
            model.apply_model(torch.ones(1, 4, size, size), torch.ones(1), torch.ones(1, 5, 6))
            assert mover.placement.plan.budget_bytes == pytest.approx(expected, abs=256)
            webui.lowvram.send_everything_to_cpu()


def test_when_nothing_can_give_way_the_error_goes_on(webui, stock_image, running, caplog):
    """As in stock; and the next image is made."""
    model, mover = running
    raised, handle = fail_while(model.model.diffusion_model.middle_block.conv, lambda: True)
    with pytest.raises(OOM, match="Tried to allocate"):
        webui.txt2img(True, 0)
    assert len(raised) == 1 + retries(webui, model) and retries(webui, model) > 0
    assert "the mover failed" not in caplog.text and "no room in VRAM" not in caplog.text
    handle.remove()
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert unet_mover(model) is mover, "it still streams"


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_is_not_memory_is_not_tried_again(webui, running, monkeypatch, error):
    model, mover = running
    monkeypatch.setitem(globals(), "TEXT", "out of luck")
    raised, handle = fail_while(model.model.diffusion_model.middle_block.conv, lambda: True, error)
    with pytest.raises(error, match="out of luck"):
        webui.txt2img(True, 0)
    assert len(raised) == 1 and retries(webui, model) == 0
    handle.remove()


def test_a_load_on_demand_that_finds_no_room_is_no_failure_of_the_mover(webui, running, monkeypatch, caplog):
    model, mover = running
    from lib_async_mover.run import on_demand

    def no_room(*_):
        raise OOM(TEXT)

    monkeypatch.setattr(on_demand, "uploaded", no_room)
    model.model.diffusion_model.out[2].weight.data = model.model.diffusion_model.out[2].weight.data.clone()
    with pytest.raises(OOM):
        webui.txt2img(True, 0)
    assert "the mover failed" not in caplog.text


def test_random_numbers_are_drawn_again_from_where_they_were(webui, stock_image, running):
    """ControlNet's reference mode draws noise within the UNet's forward."""
    model, mover = running

    def noisy(unet):
        forward = unet.forward
        unet.forward = lambda x, *rest, **named: forward(x + 0.01 * torch.randn_like(x), *rest, **named)

    noisy(model.model.diffusion_model)
    torch.manual_seed(3)
    expected = webui.txt2img(True, 0)
    after = torch.get_rng_state()
    held = mover.placement.plan.budget_bytes
    raised, _ = fail_while(model.model.diffusion_model.out[2], lambda: mover.placement.held_bytes > 0.6 * held)
    torch.manual_seed(3)
    assert torch.equal(webui.txt2img(True, 0), expected) and raised
    assert torch.equal(torch.get_rng_state(), after)


def test_activations_of_the_failed_step_are_gone_before_it_is_done_again(webui, running, monkeypatch):
    model, mover = running
    seen, alive = [], []
    held = mover.placement.plan.budget_bytes
    late = model.model.diffusion_model.out[2]

    def before(_, args):
        alive.append(sum(reference() is not None for reference in seen))
        if mover.placement.held_bytes > 0.6 * held:
            seen.append(weakref.ref(args[0]))
            raise OOM(TEXT)

    early = model.model.diffusion_model.input_blocks[0]
    early.register_forward_pre_hook(lambda *_: alive.append(sum(reference() is not None for reference in seen)))
    late.register_forward_pre_hook(before)
    gc.collect()
    gc.disable()
    webui.txt2img(True, 0)
    gc.enable()
    assert len(seen) == 1 and not any(alive)


@pytest.mark.parametrize(
    ("kind", "key"), [("sd1", "vae_decoder"), ("sd2", "text"), ("sdxl", "text_2"), ("sd3", "text_3")]
)
def test_text_encoders_and_vae_stream_where_memory_runs_out(webui, stock_image, kind, key):
    webui.start("--async-lowvram")
    model = webui.load_model(kind)
    webui.txt2img(True, 0)
    mover = movers(webui, model)[key]
    leaf = mover.placement.store.order[1].module
    everything = mover.placement.plan.arena_bytes + mover.placement.store.standing_bytes
    raised, handle = fail_while(leaf, lambda: mover.placement.held_bytes >= everything)
    for _ in range(4):
        assert torch.equal(webui.txt2img(True, 0), stock_image(kind))
    assert 0 < len(raised) <= 4 and not mover.whole, "for each length of the prompt, and each encoder on the GPU"
    handle.remove()
    assert torch.equal(webui.txt2img(True, 0), stock_image(kind))


def test_what_other_stages_hold_goes_first(webui, stock_image, caplog):
    """SDXL's encoders are on the GPU together: while the second fails, the first's weights go, and nothing streams."""
    webui.start("--async-lowvram")
    model = webui.load_model("sdxl")
    webui.txt2img(True, 0)
    first, second = (movers(webui, model)[key] for key in ("text", "text_2"))
    failures = iter((True,))
    caplog.set_level(logging.INFO, "async_lowvram")
    raised, _ = fail_while(second.placement.store.order[-1].module, lambda: next(failures, False))
    assert torch.equal(webui.txt2img(True, 0), stock_image("sdxl"))
    assert len(raised) == 1 == retries(webui, model)
    assert first.whole and second.whole and "were given back" in caplog.text


def test_where_memory_runs_out_outside_of_all_modules(webui, running):
    """There is an end to it."""
    model, _ = running
    forward = model.model.forward.original()

    def fail(*args, **kwargs):
        forward(*args, **kwargs)
        raise OOM(TEXT)

    model.model.forward._previous = fail
    with pytest.raises(OOM):
        webui.txt2img(True, 0)
    assert retries(webui, model) > 1


def test_stages_that_do_not_fit_stream_from_the_start(webui, stock_image, monkeypatch):
    """Decided from free memory, before the device refuses."""
    monkeypatch.setattr(buffer, "RESERVE_BYTES", 0)
    monkeypatch.setattr(buffer, "RESERVE_SHARE", 0)
    monkeypatch.setattr(CpuBackend, "free_bytes", lambda self: 1500)
    webui.start("--async-lowvram")
    model = webui.load_model("sdxl")
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), stock_image("sdxl"))
        assert torch.equal(webui.img2img(True, 0), stock_image("sdxl", verb="img2img"))
    whole = {key: mover.whole for key, mover in movers(webui, model).items()}
    assert not whole["vae_decoder"] and not whole["vae_encoder"]
    assert all(mover.stats()["arena_mib"] == 0 for mover in movers(webui, model).values())


def test_a_stage_that_streams_keeps_its_size_when_the_unet_s_is_chosen(webui, monkeypatch):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 256)
    mover = movers(webui, model)["vae_decoder"]
    mover.give_way()
    webui.txt2img(True, 512)
    assert mover.vram_mb == 0 and movers(webui, model)["unet"].vram_mb == 512
