"""Each test gets a host of its own: the stub's `modules`, and the adapter imported anew against them."""

from __future__ import annotations

import gc
import importlib
import sys

import pytest
from webui_stub import STUB, Webui

import lib_async_mover
from tests.host_reads import host_reads_raise  # noqa: F401


def _purge() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "modules" or name.startswith("lib_async_mover.webui"):
            del sys.modules[name]
    vars(lib_async_mover).pop("webui", None)  # `from lib_async_mover import webui` looks here first


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch):
    """A stub webui, not started. The CPU backend is forced; `monkeypatch.delenv` undoes that."""
    _purge()
    monkeypatch.syspath_prepend(str(STUB))
    monkeypatch.setenv("ASYNC_LOWVRAM_BACKEND", "cpu")
    if importlib.util.find_spec("gradio") is None:
        monkeypatch.setitem(sys.modules, "gradio", importlib.import_module("modules.gradio_stub"))
    yield Webui()
    _purge()


@pytest.fixture
def stock_image(webui: Webui):
    """What plain computing makes of (kind, seed): the pixels every test compares with."""
    import tiny_models

    def image(kind: str = "sd1", seed: int = 1, verb: str = "txt2img", **kwargs):
        live, webui.shared.sd_model = webui.shared.sd_model, tiny_models.build(kind, seed)
        webui.shared.sd_model.lowvram = False
        tiny_models.hijack(webui.shared.sd_model)
        try:
            return getattr(webui, verb)(**kwargs)
        finally:
            webui.shared.sd_model = live

    return image


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch):
    """`small_buffer(kib)`, once the webui was started: UNets get so small a buffer, for which the API has no number."""

    def set_size(kib: float) -> None:
        from lib_async_mover.webui.host import convert

        original = convert.attach

        def attach(module, device, _, **rest):
            return original(module, device, kib / 1024, **rest)

        monkeypatch.setattr(convert, "attach", attach)

    return set_size


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch):
    """Page-locked bytes by the ledger; the CPU backend plays a driver that locks whatever it is asked to."""
    from lib_async_mover.device.cpu import CpuBackend
    from lib_async_mover.memory.pinning import ledger

    monkeypatch.setattr(CpuBackend, "page_lock", staticmethod(lambda address, count: lambda: None))
    gc.collect()
    before = ledger.pinned_bytes
    return lambda: ledger.pinned_bytes - before
