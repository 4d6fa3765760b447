"""The real sd-webui-controlnet beside ours: its models stream with the UNet, and the pixels are stock `--lowvram`'s.

Where and with what it runs: see `test_webui_extensions`.
"""

from __future__ import annotations

from typing import Any

import pytest
from lora_file import PROMPT
from real_webui import RealWebui, sdxl_of
from test_webui_extensions import CONTROLNET, Beside, Requests, check, control, models  # noqa: F401

LEAST = [True, 16]  # so small a buffer that everything streams


def units(*given: dict[str, Any]) -> dict[str, Any]:
    """Several units in one request."""
    args = [unit for one in given for unit in one["alwayson_scripts"]["controlnet"]["args"]]
    return {"alwayson_scripts": {"controlnet": {"args": args}}}


def guests(server: RealWebui) -> list[dict[str, Any]]:
    return server.unet()["guests"]


REQUESTS: Requests = {
    "a network": control("none", "smallcontrol"),
    "in low VRAM": control("none", "smallcontrol", low_vram=True, weight=0.7),
    "another network": control("none", "smallcontrol2"),
    "two networks": units(control("none", "smallcontrol2", weight=0.5), control("none", "smallcontrol")),
    "two networks in low VRAM": units(
        control("none", "smallcontrol2", weight=0.4, low_vram=True), control("none", "smallcontrol", low_vram=True)),
    "one network, twice": units(control("none", "smallcontrol", weight=0.4), control("canny", "smallcontrol")),
    "from the second step on": control("none", "smallcontrol", guidance_start=0.3) | {"steps": 5},
    "all but the last steps": control("none", "smallcontrol", guidance_end=0.3) | {"steps": 5},
    "one ends where one begins": units(
        control("none", "smallcontrol", guidance_end=0.3), control("none", "smallcontrol2", guidance_start=0.5),
    ) | {"steps": 5},
    "a preprocessor, pixel by pixel": control("canny", "smallcontrol", pixel_perfect=True),
    "an adapter": control("none", "smalladapter"),
    "an adapter in low VRAM, and a network": units(
        control("none", "smalladapter", low_vram=True), control("none", "smallcontrol", low_vram=True)),
    "beside reference mode": units(control("reference_only"), control("none", "smallcontrol2", weight=0.6)),
    "beside a control-LoRA": units(control("none", "smallcontrollora", weight=0.5), control("none", "smallcontrol")),
    "with a LoRA": control("none", "smallcontrol2") | {"prompt": PROMPT},
    "hires fix": control("none", "smallcontrol") | {"verb": "hires"},
    "hires fix in low VRAM, first pass only": control("none", "smallcontrol", low_vram=True, hr_option="Low res only")
    | {"verb": "hires"},
    "img2img": control("none", "smallcontrol") | {"verb": "img2img"},
    "a batch of images": control("none", "smallcontrol") | {"batch_size": 2, "n_iter": 2},
    "the first again": control("none", "smallcontrol", weight=1.1),
}  # fmt: skip


@pytest.fixture
def beside(real_webui, models):  # noqa: F811
    return Beside(real_webui, models, (CONTROLNET,))


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """Stock's pixels, made once, by the test that needs them first."""
    return {}


def pixels_of_stock(beside: Beside, expected: dict[str, str]) -> dict[str, str]:
    if not expected:
        stock = beside.server("--lowvram", extension=False)
        expected.update({name: stock.image(**body) for name, body in REQUESTS.items()}, plain=stock.image())
        stock.check_quiet()
        assert len(set(expected.values())) == len(expected), expected
    return expected


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "resident"])
def test_every_unit_streams(beside, expected, flags):
    known = pixels_of_stock(beside, expected)
    server = beside.server(*flags)
    check(server, REQUESTS, known, known["plain"], script=LEAST)
    assert guests(server) == [], "the last image had none"
    for name in ("a network", "in low VRAM"):
        assert server.image(**REQUESTS[name], script=LEAST) == known[name]
        (guest,) = guests(server)
        assert guest["bytes_per_step"] > 0 and guest["weights_mib"] > 0
    assert server.image(**REQUESTS["two networks"], script=LEAST) == known["two networks"]
    assert len(guests(server)) == 2 and all(guest["bytes_per_step"] > 0 for guest in guests(server))
    lines = [line for line in server.lines() if "does not stream" in line]
    assert len(lines) == 1 and "ControlLoRA" in lines[0]


def test_toggled_unloaded_reloaded(beside, expected):
    known = pixels_of_stock(beside, expected)
    server, name = beside.server(), "in low VRAM"

    def image(script: list[Any]) -> None:
        assert server.image(**REQUESTS[name], script=script) == known[name]

    for _ in range(2):
        image(LEAST)
        image([False, 16])
        assert not server.streams
        image(LEAST)
        server.call("/sdapi/v1/unload-checkpoint", {})
        server.call("/sdapi/v1/reload-checkpoint", {})
        image(LEAST)
        name = "two networks"
    assert all(guest["bytes_per_step"] > 0 for guest in guests(server)) and len(guests(server)) == 2
    server.check_quiet()


def test_sdxl_in_low_vram(beside):
    """The box moves an SDXL's control model block by block, by hooks that it registers in each step."""

    def made(server: RealWebui, script: list[Any] | None, **unit: Any) -> str:
        body = control("none", "smallcontrolxl", **unit)
        return server.image(**body, script=script, settings={"live_previews_enable": False})

    def start(*flags: str, extension: bool = True) -> RealWebui:
        server = beside.server(*flags, extension=extension)
        title = sdxl_of(server)
        if title is None:
            pytest.skip("needs an SDXL checkpoint")
        server.call("/sdapi/v1/options", {"sd_model_checkpoint": title})
        server.call("/probe/small-control", {"folder": str(beside.control_models)})
        return server

    stock = start("--lowvram", extension=False)
    known = [made(stock, None), made(stock, None, low_vram=True, weight=0.6)]
    server = start("--async-lowvram")
    for script in (LEAST, [False, 16], LEAST):  # stock's hooks are on the model when it streams again
        assert [made(server, script), made(server, script, low_vram=True, weight=0.6)] == known
    (guest,) = guests(server)
    assert guest["bytes_per_step"] > 0
    server.check_quiet()
