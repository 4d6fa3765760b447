"""Where the extension steps aside it says so in one line, accepts its flag, and changes nothing."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from webui_stub import ROOT


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def forge(webui, monkeypatch):
    fake = ModuleType("modules_forge")
    fake.__spec__ = importlib.util.spec_from_loader("modules_forge", loader=None)
    monkeypatch.setitem(sys.modules, "modules_forge", fake)
    return webui


@pytest.fixture
def stub_lowvram(webui, monkeypatch):
    for name in ("module_in_gpu", "apply"):
        monkeypatch.delattr(webui.lowvram, name)
    return webui


@pytest.fixture
def no_gpu(webui, monkeypatch):
    monkeypatch.delenv("ASYNC_LOWVRAM_BACKEND")
    return webui


@pytest.fixture
def directml(webui, monkeypatch):
    monkeypatch.setattr(webui.devices, "device", torch.device("privateuseone"))
    return webui


@pytest.fixture
def old_webui(webui, monkeypatch):
    monkeypatch.delattr(webui.scripts.Script, "process_before_every_sampling")
    return webui


CASES = {
    "forge": "Forge moves models itself",
    "stub_lowvram": "lacks lowvram.module_in_gpu",
    "no_gpu": "no CUDA or XPU device",
    "directml": "DirectML has no copy streams",
    "old_webui": "lacks Script.process_before_every_sampling",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("flags", [(), ("--async-lowvram",)])
def test_one_line_and_nothing_changed(request, case, flags, caplog):
    caplog.set_level("INFO", "async_lowvram")
    host = request.getfixturevalue(case)
    before = {name: dict(vars(getattr(host, name))) for name in ("lowvram", "devices")}
    host.start(*flags)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "async_lowvram"]
    assert CASES[case] in line
    assert ("--async-lowvram is ignored" in line) == bool(flags)
    assert host.shared.cmd_opts.lowvram is False
    assert {name: dict(vars(getattr(host, name))) for name in before} == before
    assert host.script.ui(False) == [], "the reason, and no control"


def test_a_webui_is_taken(webui):
    webui.start()
    assert webui.script.show(True) is webui.scripts.AlwaysVisible
    assert webui.script.title() == "Async lowvram"
    from lib_async_mover.webui import status

    assert status()["supported"] is True
    assert status()["device"] == "cpu"


def test_the_flag_is_an_ordinary_switch():
    parser = argparse.ArgumentParser()
    load("preload").preload(parser)
    assert parser.parse_args([]).async_lowvram is False
    assert parser.parse_args(["--async-lowvram"]).async_lowvram is True


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (["modules/launch_utils.py", "modules/lowvram.py"], None),
        (["modules/launch_utils.py", "modules_forge/x.py"], "Forge"),
        (["installer.py"], "SD.Next"),
        (["modules/launch_utils.py", "modules/dml/x.py"], "DirectML"),
    ],
)
def test_the_installer_names_hosts_it_steps_aside_on(tmp_path, present, said):
    for name in present:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    reason = load("install").unsupported_host(str(tmp_path))
    assert reason is None if said is None else said in reason
