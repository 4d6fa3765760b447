"""The engine breaks in a real webui: the image is made all the same, and the next one streams again."""

from __future__ import annotations

import pytest
from real_webui import KINDS

INSIDE = ("faults", "locking")
FAULTS = {
    "no room": "no room in VRAM even for the least buffer",
    "a bug before a forward": "the mover failed",
    "a bug in a forward": "the mover failed",
    "a bug after a forward": "the mover failed",
}


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "resident"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_whole_generation_is_stock_s(stock, real_webui, flags, fault):
    server = real_webui(*flags, inside=INSIDE)
    assert server.image(script=[True, 16]) == stock["txt2img"]
    assert server.unet()["streamed_units"] > 0
    for kind in KINDS:
        before = len(server.log())
        server.call("/probe/fault", {"kind": fault})
        assert server.image(kind, script=[True, 16]) == stock[kind], kind
        said = server.log()[before:]
        assert said.count(FAULTS[fault]) == 1, "once, not once more in every step"
        assert said.count("Traceback") == (0 if fault == "no room" else 1)
        assert not server.streams
        server.call("/probe/fault", {"kind": ""})
        assert server.image(script=[True, 16]) == stock["txt2img"]
        assert server.unet()["streamed_units"] > 0, "the next generation tries again"


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "resident"])
def test_pages_that_cannot_be_locked_cost_speed_only(stock, real_webui, flags):
    server = real_webui(*flags, inside=INSIDE)
    assert server.image(script=[False, 16]) == stock["txt2img"]
    assert server.call("/probe/held")["pinned"] == 0
    server.call("/probe/lock", {"refused": True})
    for kind in KINDS:
        assert server.image(kind, script=[True, 16]) == stock[kind]
    assert server.unet()["pageable_mib"] == server.unet()["weights_mib"] > 0
    assert server.call("/probe/held")["pinned"] == 0
    assert "weights could not be locked" in server.log()
    assert server.image(script=[False, 16]) == stock["txt2img"]
    server.call("/probe/lock", {"refused": False})
    assert server.image(script=[True, 16]) == stock["txt2img"]
    assert server.image(script=[True, 16]) == stock["txt2img"]
    assert server.unet()["pageable_mib"] == 0
    assert server.call("/probe/held")["pinned"] >= server.unet()["weights_mib"] * 2**20
