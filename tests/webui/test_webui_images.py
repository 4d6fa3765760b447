"""The real webui makes the same pixels with the extension as stock --lowvram makes without it."""

from __future__ import annotations

import pytest
from lora_file import PROMPT, keep_lora
from real_webui import KINDS


def test_with_the_flag(stock, real_webui):
    server = real_webui("--async-lowvram")
    assert any("streams through" in line for line in server.lines()), server.lines()
    for kind in KINDS:
        assert server.image(kind) == stock[kind], kind
    weights_mib = server.unet()["weights_mib"]
    for kind in KINDS:  # half of the weights must cross the bus in every step
        assert server.image(kind, script=[True, weights_mib // 2]) == stock[kind], kind
    assert server.unet()["vram_mb"] == weights_mib // 2
    assert server.unet()["ring_mib"] > 0


def test_lora_on_off_on_with_the_flag(stock, real_webui):
    server = real_webui("--async-lowvram")
    if not keep_lora(server):
        pytest.skip("the LoRA is for SD1 checkpoints")
    assert stock["lora"] != stock["txt2img"]
    for prompt, expected in ((PROMPT, "lora"), (None, "txt2img"), (PROMPT, "lora"), (None, "txt2img")):
        assert server.image(**({"prompt": prompt} if prompt else {})) == stock[expected], expected
    assert server.streams


def test_toggle_off_and_on_with_the_flag(stock, real_webui):
    server = real_webui("--async-lowvram")
    for enabled in (True, False, True):
        assert server.image(script=[enabled, 16]) == stock["txt2img"]
        assert server.streams is enabled


@pytest.mark.parametrize("flags", [(), ("--medvram",), ("--lowvram",)], ids=lambda flags: "".join(flags) or "resident")
def test_toggle_without_the_flag(stock, real_webui, flags):
    server = real_webui(*flags)
    assert server.lines() == []
    assert server.image() == stock["txt2img"]
    lora = keep_lora(server)
    for enabled, kinds in ((True, KINDS), (False, KINDS[:1]), (True, KINDS[:1]), (False, KINDS[:1])):
        for kind in kinds:
            assert server.image(kind, script=[enabled, 16]) == stock[kind], (enabled, kind)
        if lora:
            assert server.image(script=[enabled, 16], prompt=PROMPT) == stock["lora"]
        assert server.streams is enabled
    server.check_quiet()


def test_the_script_is_offered_by_the_api(real_webui):
    server = real_webui("--lowvram")
    (info,) = [
        info
        for info in server.call("/sdapi/v1/script-info")
        if info["name"] == "async lowvram" and not info["is_img2img"]
    ]
    assert [argument["label"] for argument in info["args"]] == ["Async lowvram", "Buffer size (MB)"]


def test_a_host_without_gpu_is_told_in_one_line_and_left_alone(stock, real_webui):
    server = real_webui("--async-lowvram", backend="")
    device = server.probe()["device"]
    if device != "cpu":
        pytest.skip("this webui has a GPU")
    (line,) = server.lines()
    assert "--async-lowvram is ignored" in line
    assert server.image() == stock["txt2img"]
