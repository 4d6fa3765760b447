"""An error never leaves half a model, never a dead host: at worst the image is stock's, and a line says why."""

from __future__ import annotations

import copy

import pytest
import torch
from webui_stub import unet_mover

from lib_async_mover import Mover
from lib_async_mover.device.cpu import CpuBackend
from lib_async_mover.errors import ArenaAllocationError, UnsupportedModuleError
from lib_async_mover.memory.arena import Arena


@pytest.fixture
def running(webui):
    """A model that streams, and its mover."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 256)
    return model, unet_mover(model)


def no_room(*args, **kwargs):
    raise ArenaAllocationError("no room")


def a_bug(*args, **kwargs):
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("flags", [("--async-lowvram",), (), ("--medvram",), ("--lowvram",)])
@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_no_room_for_any_arena_is_stock_s(webui, stock_image, monkeypatch, caplog, flags, kind):
    if kind == "sd3" and flags == ("--lowvram",):
        pytest.skip("stock cannot load it")
    webui.start(*flags)
    webui.load_model(kind)
    webui.txt2img(True, 256)
    from lib_async_mover.webui import status

    with monkeypatch.context() as patch:
        patch.setattr(Arena, "allocate", no_room)
        assert torch.equal(webui.txt2img(True, 256), stock_image(kind))
        assert status()["models"] == []
        assert "close other programs" in caplog.text
    assert torch.equal(webui.txt2img(True, 256), stock_image(kind))
    assert len(status()["models"]) == 1, "the next generation tries again"


@pytest.mark.parametrize(
    ("owner", "verb"),
    [(CpuBackend, "use_current_stream"), (CpuBackend, "wait_for_copy"), (Mover, "leave_forward")],
)
def test_a_bug_in_the_mover_is_logged_with_its_traceback_and_the_image_made(
    webui, stock_image, running, monkeypatch, caplog, owner, verb
):
    """Before a forward, inside of it, and after it."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, verb, a_bug)
        assert torch.equal(webui.txt2img(True, 256), stock_image())
    assert [bool(record.exc_info) for record in caplog.records if "the mover failed" in record.getMessage()] == [True]
    assert torch.equal(webui.txt2img(True, 256), stock_image())


def test_a_copy_of_the_model_does_not_stream(webui, stock_image, running):
    model, _ = running
    twin = copy.deepcopy(model.model)
    inputs = torch.ones(1, 4, 8, 8), torch.ones(1), torch.ones(1, 5, 6)
    with torch.no_grad():
        assert torch.equal(twin(*inputs), model.model(*inputs))
    assert webui.lowvram.module_in_gpu.module is model.model.diffusion_model


def test_what_attach_refuses_is_one_line(webui, stock_image, monkeypatch, caplog):
    webui.start()
    webui.load_model()
    from lib_async_mover.webui.host import convert

    def refuse(*args, **kwargs):
        raise UnsupportedModuleError("this model is on the meta device.")

    monkeypatch.setattr(convert, "attach", refuse)
    assert torch.equal(webui.txt2img(True, 256), stock_image())
    (line,) = [record for record in caplog.records if "meta device" in record.getMessage()]
    assert not line.exc_info


def test_an_exception_in_the_unet_leaves_the_next_image_clean(webui, stock_image, running):
    model, mover = running

    def interrupt(*_):
        raise RuntimeError("out of memory, says an activation")

    handle = model.model.diffusion_model.middle_block.register_forward_pre_hook(interrupt)
    with pytest.raises(RuntimeError, match="activation"):
        webui.txt2img(True, 256)
    handle.remove()
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert torch.equal(webui.txt2img(True, 256), stock_image())
    webui.lowvram.send_everything_to_cpu()
    assert mover.stats()["arena_mib"] == 0
