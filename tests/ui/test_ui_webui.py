"""The page of a real webui: set WEBUI_DIR, and what tests/webui/real_webui.py reads besides."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from real_webui import one_at_a_time, webui_dir

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.webui,
    pytest.mark.skipif(webui_dir() is None, reason="set WEBUI_DIR to a stable-diffusion-webui 1.10 to run these"),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`real("--flag", …)` is a running webui with its page."""
    with one_at_a_time(tmp_path_factory) as start:
        yield partial(start, page=True)


def make_image(one, steps=24):
    for name, value in (("width", 256), ("height", 256), ("steps", steps)):
        field = one.page.locator(f"#txt2img_{name} input[type=number]")
        field.fill(str(value))
        field.blur()
    one.page.locator("#txt2img_generate").click()


def test_the_way_of_a_new_user(real, visit):
    """Box, Generate, button, Generate. On a CPU there is no bus to judge: a size is given for the sentence to find."""
    server = real("--lowvram", "--async-lowvram")
    server.call("/async-lowvram/choice", {"enabled": False, "buffer_mb": 33})
    one = visit(server.url)
    one.says(one.part("switch"), "Off")
    clicks = [one.box(), one.page.locator("#txt2img_generate"), one.part("do"), one.page.locator("#txt2img_generate")]
    clicks[0].click()
    one.size().wait_for(state="visible")
    clicks[1].click()
    one.says(one.part("do"), "Use", 120_000)
    text = one.part("sentence").text_content()
    clicks[2].click()
    size = one.size().input_value()
    assert f"{size} MB would" in text and one.part("do").is_hidden()
    clicks[3].click()
    deadline = time.monotonic() + 120
    while server.unet()["vram_mb"] != int(size) and time.monotonic() < deadline:
        one.rest(300)
    assert server.unet()["vram_mb"] == int(size)
    one.errors.clear()


def test_from_the_first_image_to_another_size(real, visit):
    server = real("--lowvram")
    one = visit(server.url)
    one.says(one.readout(), "")
    one.box().click()
    one.says(one.part("sentence"), "On from the next image on")
    one.size().fill("16")  # of 32 MB of weights; without a card, auto takes what it likes
    one.size().blur()
    make_image(one)
    one.says(one.readout(), "it/s", 60_000)
    one.says(one.part("sentence"), "it/s", 60_000)
    one.unfold()
    svg = one.part("curve-svg")
    box = svg.bounding_box()
    svg.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.5})
    assert int(one.size().input_value()) > 16
    one.says(one.part("sentence"), "from the next image on: about")
    one.errors.clear()  # of the webui's own scripts, which log some at a first image


def test_folding_the_hosts_own_accordion_switches_nothing(real, visit):
    one = visit(real("--lowvram").url)
    one.enable()
    header = one.accordion().locator(".label-wrap")
    header.click()
    one.size().wait_for(state="hidden")
    one.rest(1000)
    assert one.box().is_checked() and one.part("switch").inner_text() == "On"
    one.box().click()
    one.box().click()
    one.size().wait_for(state="visible")
    one.errors.clear()


@pytest.mark.parametrize("width", [1400, 380])
def test_the_hosts_own_header_holds_ours(real, visit, width):
    one = visit(real("--lowvram").url, width=width)
    one.says(one.readout(), "")
    header = one.accordion().locator(".label-wrap")
    inside, arrow = one.accordion().bounding_box(), header.locator("> span").last.bounding_box()
    shown = one.part("switch").bounding_box()
    for box in (arrow, shown):
        assert inside["x"] <= box["x"] and box["x"] + box["width"] < inside["x"] + inside["width"]
    one.errors.clear()


CATEGORY = """(section) => {
    let one = section;
    while (one && !one.classList.contains('settings-category')) {
        one = one.previousElementSibling;
    }
    return one && one.textContent;
}"""


def test_settings_axis_and_choice_are_there(real, visit):
    server = real("--lowvram")
    one = visit(server.url)
    one.says(one.part("switch"), "On")
    assert one.box().is_checked(), "the choice of the tests before"
    one.page.locator("#tabs > .tab-nav button", has_text="Settings").click()
    section = one.page.locator("#settings .tab-nav button", has_text="Async lowvram")
    one.page.locator(".settings-category").first.wait_for(state="attached")
    category = section.evaluate(CATEGORY)
    assert category == "System"
    section.click()
    assert one.page.locator("#setting_async_lowvram_enabled input").is_checked()
    labels = server.call("/config")["components"]
    axes = next(c["props"]["choices"] for c in labels if c["props"].get("elem_id") == "script_txt2img_xyz_plot_x_type")
    assert any("[Async lowvram] Buffer size" in str(axis) for axis in axes)
    kept = json.loads((server.data_dir / "config.json").read_text())
    assert kept["async_lowvram_enabled"] is True
    assert "async_lowvram.py" not in (server.data_dir / "ui-config.json").read_text()


def test_the_readmes_request(real):
    server = real("--lowvram")
    (block,) = re.findall(r"```json\n(\{.*?alwayson_scripts.*?\})\n```", (ROOT / "README.md").read_text(), re.S)
    request = {**json.loads(block), "width": 128, "height": 128, "steps": 1}
    info = json.loads(server.call("/sdapi/v1/txt2img", request)["info"])
    assert "lowvram" not in info["infotexts"][0].lower(), "no infotext"
    status = server.call("/async-lowvram/status")
    assert (status["async_lowvram"]["enabled"], status["async_lowvram"]["buffer_mb"]) == (True, 512)
    assert set(status["ram"]) == set(server.call("/sdapi/v1/memory")["ram"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["false", 64], "enabled is 'false'"),
        ([True, -3], "buffer_mb is -3"),
        ([{"enable": True}], "'enable' is no setting"),
    ],
)
def test_a_request_that_is_wrong_is_answered_with_what_is_allowed(real, args, message):
    server = real("--lowvram")
    request = {"steps": 1, "width": 128, "height": 128, "alwayson_scripts": {"async lowvram": {"args": args}}}
    with pytest.raises(urllib.error.HTTPError, match="422") as refused:
        server.call("/sdapi/v1/txt2img", request)
    answer = json.loads(refused.value.read())
    assert message in answer["detail"] and "allowed are" in answer["detail"]


def test_a_page_without_queue_with_login_and_on_a_bare_host(real, visit):
    server = real("--no-gradio-queue", "--gradio-auth", "ann:secret", "--async-lowvram", backend="")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.url}config", timeout=10)
    one = visit(server.url, login=("ann", "secret"))
    refused = one.page.locator("#script_txt2img_async_lowvram_refused")
    refused.locator(".label-wrap").click()
    one.says(refused, "no CUDA or XPU device")
    assert one.polls == 0
    one.errors.clear()


def test_a_login_guards_the_status(real, visit):
    server = real("--no-gradio-queue", "--gradio-auth", "ann:secret")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.call("/async-lowvram/status")
    one = visit(server.url, login=("ann", "secret"))
    one.enable()
    one.says(one.part("sentence"), "next image")
    one.errors.clear()
