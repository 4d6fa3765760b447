"""One generation: its toggle, its failures, its interruption. After a failure the whole of it is stock's."""

from __future__ import annotations

import pytest
import torch
from webui_stub import streams

from lib_async_mover import Mover
from lib_async_mover.device.cpu import CpuBackend


class Interrupted(BaseException):
    """The host's InterruptedException is a BaseException too."""


@pytest.mark.parametrize("flags", [("--async-lowvram",), (), ("--medvram",), ("--lowvram",)])
def test_after_a_failure_the_whole_generation_is_stock_s(webui, stock_image, monkeypatch, caplog, flags):
    webui.start(*flags)
    model = webui.load_model()
    webui.txt2img(True, 0)
    held, failures = [], []

    def fail(*_):
        failures.append(1)
        return 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "use_current_stream", fail)
        image = webui.txt2img(True, 0, hires=True, between=lambda step: held.append(streams(webui.shared.sd_model)))
        assert torch.equal(image, stock_image(hires=True))
    assert not any(held) and len(failures) == 1
    assert len([r for r in caplog.records if "the mover failed" in r.getMessage()]) == 1
    assert not streams(model)
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert streams(model), "the next generation tries again"


def test_a_checkpoint_that_comes_after_a_failure_is_stock_s_too(webui, stock_image, monkeypatch):
    webui.start("--async-lowvram")
    webui.load_model()

    def refine(step):
        if step == 1:
            monkeypatch.undo()
            webui.switch_to("sd1", 4, limit=2)
            assert not streams(webui.shared.sd_model)

    expected = webui.txt2img(False, 0, steps=3)
    monkeypatch.setattr(Mover, "enter_forward", lambda *_: 1 / 0)
    webui.txt2img(True, 0, steps=3, between=refine)
    webui.switch_to("sd1", 1, limit=2)
    assert torch.equal(webui.txt2img(True, 0, steps=3), expected)
    assert streams(webui.shared.sd_model)


@pytest.mark.parametrize("error", [Interrupted, torch.cuda.OutOfMemoryError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["between", "unet", "text", "vae"])
def test_an_interruption_anywhere_leaves_the_next_image_clean(webui, stock_image, caplog, error, where):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)

    def interrupt(*_):
        raise error("stop")

    leaf = {
        "unet": model.model.diffusion_model.middle_block.conv,
        "text": model.cond_stage_model.wrapped.transformer.mix,
        "vae": model.first_stage_model.decoder[2],
    }.get(where)
    handle = leaf.register_forward_hook(interrupt) if leaf else None
    with pytest.raises(error):
        webui.txt2img(True, 0, between=interrupt if where == "between" else None)
    if handle:
        handle.remove()
    assert streams(model), "not the mover's fault"
    assert not [r for r in caplog.records if "the mover failed" in r.getMessage()]
    webui.lowvram.send_everything_to_cpu()
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert not any(mover.busy or mover.stats()["arena_mib"] for mover in webui.conversions.movers())
    for _ in range(2):
        assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_pages_that_cannot_be_locked_cost_speed_only(webui, stock_image, monkeypatch, caplog):
    monkeypatch.setattr(CpuBackend, "page_lock", staticmethod(lambda address, count: None))
    webui.start("--async-lowvram")
    webui.load_model()
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), stock_image())
    lines = [r.getMessage() for r in caplog.records if "page-locked RAM" in r.getMessage()]
    assert len(lines) == len(set(lines)) or all("limit" in line for line in lines)


def test_the_choice_survives_hires_batches_and_nested_passes(webui, stock_image):
    webui.start()
    model = webui.load_model()
    assert torch.equal(webui.txt2img(True, 0, hires=True), stock_image(hires=True))
    for _ in range(3):  # img2img batch: a generation per image, the same arguments
        assert torch.equal(webui.img2img(True, 0), stock_image(verb="img2img"))
    assert torch.equal(webui.txt2img(), stock_image()), "ADetailer's pass runs no hook of ours"
    assert streams(model)
    webui.before_sampling()
    assert streams(model)
    assert torch.equal(webui.txt2img(False, 0), stock_image())
    assert torch.equal(webui.txt2img(), stock_image())
    assert not streams(model)


def test_the_toggle_counts_before_the_checkpoint_that_a_request_loads(webui, stock_image):
    """`override_settings` loads a checkpoint after `before_process`, before anything of it is computed."""
    webui.start()
    webui.load_model()
    from types import SimpleNamespace

    webui.script.before_process(SimpleNamespace(sd_model=None), True, 0)
    model = webui.switch_to("sdxl", 2)
    assert streams(model), "parked from the start: it never was on the GPU as a whole"
    assert torch.equal(webui.txt2img(True, 0), stock_image("sdxl", 2))


def test_off_means_what_the_flags_say(webui, stock_image):
    for flags, lowvram in (((), False), (("--medvram",), True)):
        webui.start(*flags)
        model = webui.load_model()
        for _ in range(2):
            webui.txt2img(True, 0)
            assert model.lowvram and not webui.shared.parallel_processing_allowed
            assert torch.equal(webui.txt2img(False, 0), stock_image())
            assert model.lowvram is lowvram and webui.shared.parallel_processing_allowed is not lowvram
