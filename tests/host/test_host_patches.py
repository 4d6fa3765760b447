"""Every replacement is put in once, keeps the original's face, and comes out without a trace."""

from __future__ import annotations

import pytest
import torch

PATCHED = [("lowvram", "setup_for_low_vram"), ("lowvram", "send_everything_to_cpu"), ("devices", "torch_gc")]


def functions(webui):
    return {f"{owner}.{name}": getattr(getattr(webui, owner), name) for owner, name in PATCHED}


def test_nothing_is_patched_without_flag_and_toggle(webui):
    before = functions(webui)
    webui.start()
    webui.load_model()
    webui.txt2img(False, 0)
    assert functions(webui) == before
    assert webui.shared.cmd_opts.lowvram is False


def test_the_flag_patches_when_the_script_loads_and_unloading_undoes_it(webui):
    before = functions(webui)
    webui.start("--async-lowvram")
    patched = functions(webui)
    assert all(patched[name] is not before[name] for name in before)
    assert patched["lowvram.setup_for_low_vram"].__name__ == "setup_for_low_vram"
    assert patched["lowvram.setup_for_low_vram"].__wrapped__ is before["lowvram.setup_for_low_vram"]
    webui.load_scripts()  # again: nothing on top of itself
    webui.reload_script_body()
    assert functions(webui) == patched
    webui.callbacks.script_unloaded_callback()
    assert functions(webui) == before


def test_the_toggle_patches_too(webui):
    before = functions(webui)
    webui.start()
    webui.load_model()
    webui.txt2img(True, 64)
    assert all(functions(webui)[name] is not before[name] for name in before)
    webui.callbacks.script_unloaded_callback()
    assert functions(webui) == before


def test_a_wrapper_that_others_put_around_ours_is_left_alone(webui):
    stock = webui.devices.torch_gc
    webui.start("--async-lowvram")
    ours = webui.devices.torch_gc

    def theirs():
        ours()

    webui.devices.torch_gc = theirs
    webui.callbacks.script_unloaded_callback()
    assert webui.devices.torch_gc is theirs
    calls = webui.devices.gc_calls
    webui.devices.torch_gc()
    assert webui.devices.gc_calls == calls + 1
    webui.load_scripts()  # ours wakes up under theirs
    assert webui.devices.torch_gc is theirs
    webui.devices.torch_gc = stock


def test_all_or_none_when_a_patch_fails(webui, monkeypatch):
    before = functions(webui)
    webui.start()
    from lib_async_mover.webui.host.patches import Patch, Patches

    install = Patch.install
    monkeypatch.setattr(Patch, "install", lambda self: 1 / 0 if self.name == "train_embedding" else install(self))
    with pytest.raises(ZeroDivisionError):
        Patches(lambda stock, *args: stock(*args)).install()
    assert functions(webui) == before


def test_a_name_that_another_module_imported_before_us(webui):
    webui.start()
    from modules import api
    from modules.textual_inversion import textual_inversion

    stock = api.train_embedding
    webui.load_model()
    expected = api.train_embedding(2)
    for _ in range(2):
        webui.txt2img(True, 0)
        assert api.train_embedding is textual_inversion.train_embedding is not stock
        assert torch.equal(api.train_embedding(2), expected)
        webui.callbacks.script_unloaded_callback()
        assert api.train_embedding is textual_inversion.train_embedding is stock
