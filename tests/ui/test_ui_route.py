"""The routes, the settings, the API's arguments and the X/Y/Z axis, without a page."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

fastapi = pytest.importorskip("fastapi")
testclient = pytest.importorskip("fastapi.testclient")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client(webui):
    webui.start()
    return client_of(webui)


def client_of(webui, **attributes):
    app = fastapi.FastAPI()
    for name, value in attributes.items():
        setattr(app, name, value)
    for name in ("ui_settings", "before_ui"):
        for callback in webui.callbacks.callbacks.get(name, []):
            callback()
    for callback in webui.callbacks.callbacks["app_started"]:
        callback(None, app)  # as with --nowebui
    return testclient.TestClient(app)


def status(client, **headers):
    answer = client.get("/async-lowvram/status", headers=headers)
    assert answer.status_code == 200
    return answer.json()


def test_memory_has_the_names_of_the_hosts_own_api(client):
    answer = status(client)
    assert set(answer["ram"]) == {"free", "used", "total"}
    assert answer["cuda"] == {"error": "unavailable"}
    assert answer["async_lowvram"]["state"] == "off"
    assert answer["async_lowvram"]["model"] is None


def test_a_card_in_use_is_read_without_touching_it(webui, monkeypatch):
    webui.start()
    from lib_async_mover.webui.page import memory

    keys = ("active_bytes", "allocated_bytes", "reserved_bytes", "inactive_split_bytes")
    stats = {f"{key}.all.{when}": 7 for key in keys for when in ("current", "peak")}
    card = SimpleNamespace(is_initialized=lambda: False)
    card.memory_stats = lambda device: {**stats, "num_ooms": 1}
    card.mem_get_info = lambda device: (30, 100)
    monkeypatch.setattr(torch, "cuda", card)
    assert memory.memory(torch.device("cuda"))["cuda"] == {"error": "not used yet"}
    card.is_initialized = lambda: True
    found = memory.memory(torch.device("cuda"))["cuda"]
    assert found["system"] == {"free": 30, "used": 70, "total": 100}
    assert found["active"] == {"current": 7, "peak": 7} and found["events"] == {"retries": 0, "oom": 1}


def test_it_tells_of_a_model_that_streams(webui, client):
    webui.load_model()
    webui.txt2img(True, 64, steps=12)
    answer = status(client)["async_lowvram"]
    assert answer["model"] == "sd1-1" and answer["state"] == "streaming" and not answer["sampling"]
    assert answer["buffer_mb"] == 64 and answer["forwards"] == 12
    deadline = time.monotonic() + 10
    while status(client)["async_lowvram"]["revision"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    details = client.get("/async-lowvram/details").json()
    assert details["revision"] >= 1 and details["curve"] and len(details["blocks"]) > 5
    webui.txt2img(False, 64)
    assert status(client)["async_lowvram"]["state"] == "off"


def test_a_call_takes_no_longer_than_a_millisecond(webui, client):
    webui.load_model()
    webui.txt2img(True, 64, steps=12)
    from lib_async_mover.webui.page.readout import READOUT

    times = []
    for _ in range(60):
        start = time.perf_counter()
        READOUT.status()
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 1e-3


def test_a_model_being_converted_is_no_reason_to_wait(webui, client):
    taken, go_on = threading.Event(), threading.Event()

    def convert():
        with webui.conversions.lock:
            taken.set()
            go_on.wait(10)

    thread = threading.Thread(target=convert)
    thread.start()
    taken.wait(10)
    assert status(client)["async_lowvram"]["state"] == "busy"
    go_on.set()
    thread.join()


def test_an_error_is_shown_until_the_next_image(webui, client):
    from lib_async_mover.webui.host.state import STATE

    STATE.warn("no room")
    assert status(client)["async_lowvram"]["last_error"] == "no room"
    webui.load_model()
    webui.txt2img(True, 64)
    assert status(client)["async_lowvram"]["last_error"] is None


def test_an_error_of_one_model_does_not_outlive_the_images_of_another(webui, client):
    """Nobody looked between the error and now."""
    from lib_async_mover.webui.host.state import STATE

    webui.load_model()
    webui.txt2img(True, 64)
    STATE.warn("no room")
    webui.load_model("sd1", 2)
    webui.txt2img(True, 64)
    assert status(client)["async_lowvram"]["last_error"] is None


def basic(text):
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_who_may_ask(webui):
    webui.start()
    login = {"auth": {"ann": "secret"}, "tokens": {"cookie": "ann"}}
    from lib_async_mover.webui.page.access import PAGE_KEY, PAGE_KEY_HEADER

    page = {PAGE_KEY_HEADER: PAGE_KEY}
    cookies = {"access-token-unsecure": "cookie"}
    cases = [  # gradio's login, --api-auth, headers, cookies, allowed
        (None, None, {}, {}, True),
        (login, None, {}, {}, False),
        (login, None, page, {}, False),
        (login, None, {}, {"access-token": "stale"}, False),
        (login, None, {}, cookies, True),
        (None, "a:b,c:d", {}, {}, False),
        (None, "a:b,c:d", basic("c:d"), {}, True),
        (None, "a:b,c:d", basic("c:x"), {}, False),
        (None, "a:b", {"authorization": "Basic %%%"}, {}, False),
        (None, "a:b", page, {}, True),
        (None, "a:b", {PAGE_KEY_HEADER: "guess"}, {}, False),
        (login, "a:b", page, {}, False),
        (login, "a:b", basic("a:b"), {}, True),
        (login, "a:b", {}, cookies, True),
    ]
    for auth, api_auth, headers, jar, allowed in cases:
        webui.shared.cmd_opts.api_auth = api_auth
        client = client_of(webui, **(auth or {}))
        client.cookies.update(jar)
        for path in ("status", "details"):
            code = client.get(f"/async-lowvram/{path}", headers=headers).status_code
            assert code == (200 if allowed else 401), (auth, api_auth, headers, jar)
        code = client.post("/async-lowvram/choice", json={}, headers=headers).status_code
        assert code == (200 if allowed else 401)


def test_the_choice_is_kept_with_the_settings_unless_they_say_no(webui, client):
    webui.shared.opts.data["async_lowvram_remember"] = False
    client.post("/async-lowvram/choice", json={"enabled": True, "buffer_mb": 512})
    assert status(client)["async_lowvram"]["choice"] == {"enabled": True, "buffer_mb": 512}
    assert not Path(webui.shared.config_filename).exists()
    webui.shared.opts.data["async_lowvram_remember"] = True
    client.post("/async-lowvram/choice", json={"buffer_mb": 640.0})
    kept = json.loads(Path(webui.shared.config_filename).read_text())
    assert (kept["async_lowvram_enabled"], kept["async_lowvram_buffer_mb"]) == (True, 640)
    answer = client.post("/async-lowvram/choice", json={"enabled": False}).json()
    assert answer["async_lowvram"]["choice"] == {"enabled": False, "buffer_mb": 640}, "the status as it is now"
    for nonsense in ([], "x", {"buffer_mb": "much"}, {"buffer_mb": 1e9}, {"size": 1}, {"enabled": "false"}):
        refused = client.post("/async-lowvram/choice", json=nonsense)
        assert refused.status_code == 422 and "allowed are" in refused.json()["detail"]


def test_settings_decide_how_it_starts(webui):
    webui.shared.opts.data.update(async_lowvram_enabled=True, async_lowvram_buffer_mb=320)
    webui.start()
    enabled, buffer_mb = webui.script.ui(False)
    assert (enabled.value, buffer_mb.value) == (True, 320)
    assert enabled.do_not_save_to_config and buffer_mb.do_not_save_to_config
    from lib_async_mover.webui import status as facts

    assert (facts()["enabled"], facts()["buffer_mb"]) == (True, 320)


def test_the_flag_wins_over_a_choice_to_be_off(webui):
    webui.shared.opts.data["async_lowvram_enabled"] = False
    webui.start("--async-lowvram")
    assert webui.script.ui(False)[0].value is True


def test_the_settings_are_in_one_of_the_hosts_categories(webui, client):
    ours = {key: info for key, info in webui.shared.opts.data_labels.items() if key.startswith("async_lowvram")}
    assert len(ours) == 6 and {info.category_id for info in ours.values()} == {"system"}


def test_the_limit_of_page_locked_ram(webui, client):
    from lib_async_mover.memory.pinning import PinLedger, ledger

    webui.shared.opts.set("async_lowvram_pin_limit_mb", 100)
    assert ledger.limit_bytes == 100 << 20
    webui.shared.opts.set("async_lowvram_pin_limit_mb", 0)
    assert ledger.limit_bytes == PinLedger().limit_bytes


@pytest.mark.parametrize("args", [[True, 96], [{"enabled": True, "buffer_mb": 96}]])
def test_the_api_takes_positions_or_one_dictionary(webui, client, args):
    webui.load_model()
    filled = [*args, 0][:2]  # the host fills up with defaults
    webui.txt2img(*filled)
    assert status(client)["async_lowvram"]["buffer_mb"] == 96
    webui.txt2img({"enabled": False}, 0)
    assert status(client)["async_lowvram"]["enabled"] is False


def test_the_readmes_request_is_what_the_script_takes(webui, client):
    (block,) = re.findall(r"```json\n(\{.*?alwayson_scripts.*?\})\n```", (ROOT / "README.md").read_text(), re.S)
    request = json.loads(block)
    ((name, script),) = request["alwayson_scripts"].items()
    assert name == webui.script.title().lower()
    webui.load_model()
    webui.txt2img(*[*script["args"], 0][:2])
    asked = script["args"][0]
    facts = status(client)["async_lowvram"]
    assert (facts["enabled"], facts["buffer_mb"]) == (asked["enabled"], asked["buffer_mb"])


def test_an_axis_of_the_plot(webui):
    class AxisOption:
        def __init__(self, label, type, apply, format_value=None, confirm=None):
            self.label, self.type, self.apply = label, type, apply
            self.format_value, self.confirm = format_value, confirm

    grid = SimpleNamespace(__name__="xyz_grid.py", axis_options=[], AxisOption=AxisOption)
    others = SimpleNamespace(__name__="x.py")
    webui.scripts.scripts_data[:] = [SimpleNamespace(module=module) for module in (others, grid)]
    webui.start()
    client_of(webui)
    client = client_of(webui)
    (axis,) = grid.axis_options
    assert axis.label == "[Async lowvram] Buffer size"
    axis.confirm(None, [-1, 0, 256])
    for x in (-2, 7, 99999):
        with pytest.raises(RuntimeError, match=f"{x} is no buffer size"):
            axis.confirm(None, [x])
    assert [axis.format_value(None, axis, x).split(": ")[1] for x in (-1, 0, 256)] == ["off", "auto", "256 MB"]
    webui.load_model()
    for x, expected in ((256, (True, 256)), (-1, (False, 0)), (0, (True, 0))):
        p = SimpleNamespace(sd_model=webui.shared.sd_model)
        axis.apply(p, x, [x])
        webui.script.process_before_every_sampling(p, False, 512)
        facts = status(client)["async_lowvram"]
        assert (facts["enabled"], facts["buffer_mb"]) == expected


def test_no_infotext_is_written(webui, client):
    webui.load_model()
    p = SimpleNamespace(sd_model=webui.shared.sd_model, extra_generation_params={})
    webui.script.process_before_every_sampling(p, True, 64)
    assert p.extra_generation_params == {}


@pytest.mark.parametrize("everything", [True, False])
def test_text_encoders_and_vae_stream_if_wanted(webui, client, everything):
    webui.shared.opts.set("async_lowvram_all_stages", everything)
    webui.load_model()
    webui.txt2img(True, 64)
    from lib_async_mover.webui import status as facts

    (model,) = facts()["models"]
    assert (set(model["stages"]) == {"unet"}) is not everything
