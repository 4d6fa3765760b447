"""A script that generates in inference mode, where a checkpoint of another architecture is loaded: its weights count no
versions, and stay after the script."""

from __future__ import annotations

import pytest
from real_webui import SMALL, RealWebui, checkpoints, sdxl_of

WITHIN = {"script_name": "inference mode"}


def every(server: RealWebui, **always) -> list[str]:
    sdxl, first = sdxl_of(server), checkpoints(server)[0]
    if sdxl is None or sdxl == first:
        pytest.skip("needs a checkpoint of SDXL, and another one loaded")
    other = {"settings": {"sd_model_checkpoint": sdxl}}
    bodies: list[dict] = [{}, other | WITHIN, other, other | WITHIN, other, WITHIN, {}, WITHIN, {}]
    return [server.image(**SMALL, **always, **body) for body in bodies]


@pytest.fixture(scope="module")
def expected(real_webui):
    found = every(real_webui("--lowvram", extension=False, inside=("passes",)))
    assert set(found[:1] + found[5:]) == {found[0]} and set(found[1:5]) == {found[1]}
    return found


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "toggled"])
def test_images_afterwards_are_stock_s(expected, real_webui, flags):
    server = real_webui(*flags, inside=("passes",))
    for enabled in (True, False, True):
        assert every(server, script=[enabled, 16]) == expected
        assert server.streams is enabled
        server.check_quiet()
