"""The probe on a stub of the host and of CUDA: a smaller card refuses and reports as one of that size."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lib_async_mover.bench.webui.server import PROBE, PROBE_PATH, SETTINGS_VARIABLE

GIB = 2**30


@pytest.fixture
def cuda(monkeypatch):
    """80 GiB, of which 70 are free and this process has reserved 3."""
    card = SimpleNamespace(free=70 * GIB, reserved=3 * GIB, fraction=None, resets=0)
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda: "NVIDIA X",
        "get_device_properties": lambda device: SimpleNamespace(total_memory=80 * GIB),
        "set_per_process_memory_fraction": lambda fraction: setattr(card, "fraction", fraction),
        "mem_get_info": lambda device=None: (card.free, 80 * GIB),
        "memory_reserved": lambda device=None: card.reserved,
        "memory_stats": lambda: {"allocated_bytes.all.peak": 2 * GIB, "reserved_bytes.all.peak": 3 * GIB},
        "reset_peak_memory_stats": lambda: setattr(card, "resets", card.resets + 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.memory, "mem_get_info", torch.cuda.mem_get_info)
    return card


@pytest.fixture
def load(monkeypatch):
    pytest.importorskip("psutil")
    pytest.importorskip("fastapi")
    host = ModuleType("modules")
    host.devices = SimpleNamespace(torch_gc=lambda: None)
    host.script_callbacks = SimpleNamespace(on_app_started=lambda routes: None)
    host.scripts = SimpleNamespace(Script=object, AlwaysVisible=True)
    host.shared = SimpleNamespace(sd_model=SimpleNamespace(is_sdxl=True))
    monkeypatch.setitem(sys.modules, "modules", host)

    def load(settings):
        monkeypatch.setenv(SETTINGS_VARIABLE, settings)
        spec = importlib.util.spec_from_file_location("probe_under_test", PROBE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_smaller_card(cuda, load):
    probe = load('{"vram_gb": 4, "bus_gbps": null}')
    assert probe.FAILED is None and cuda.fraction == pytest.approx(4 / 80)
    assert torch.cuda.mem_get_info() == torch.cuda.memory.mem_get_info(0) == (1 * GIB, 4 * GIB)
    cuda.free = GIB // 2  # others have taken the rest
    assert torch.cuda.mem_get_info()[0] == GIB // 2
    facts = probe.answer(vram_gb=2, reset=True)
    assert facts["error"] is None and facts["vram_gb"] == 2 and cuda.resets == 1
    assert cuda.fraction == pytest.approx(2 / 80)
    assert torch.cuda.mem_get_info() == (0, 2 * GIB)  # more is reserved than such a card has
    assert (facts["gpu"], facts["own_px"], facts["peak_mib"], facts["reserved_mib"]) == ("NVIDIA X", 1024, 2048, 3072)
    probe.answer(vram_gb=100)
    assert cuda.fraction == 1.0 and torch.cuda.mem_get_info() == (GIB // 2, 80 * GIB)


def test_the_card_as_it_is(cuda, load):
    before = torch.cuda.mem_get_info
    probe = load("{}")
    assert probe.PATH == PROBE_PATH and probe.SETTINGS_VARIABLE == SETTINGS_VARIABLE
    assert torch.cuda.mem_get_info is before and cuda.fraction is None
    assert probe.facts()["peak_rss_mib"] >= probe.facts()["rss_mib"] * 0.9 > 0


def test_what_it_cannot_do_it_says(load):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    probe = load('{"vram_gb": 2}')
    assert "CUDA alone" in probe.FAILED
    assert "CUDA alone" in probe.answer()["error"] and "CUDA alone" in probe.answer(vram_gb=4)["error"]


def test_movers_of_all_models_count(cuda, load, monkeypatch):
    stages = {"text": {"oom_retries": 1, "h2d_gbps": None}, "unet": {"oom_retries": 2, "h2d_gbps": 25.0}}
    webui = SimpleNamespace(status=lambda: {"models": [{"stages": stages}, {"stages": {"unet": {"h2d_gbps": 9.0}}}]})
    monkeypatch.setitem(sys.modules, "lib_async_mover.webui", webui)
    facts = load("{}").facts()
    assert facts["oom_retries"] == 3 and facts["h2d_gbps"] == 25.0
