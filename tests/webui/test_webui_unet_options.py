"""Another UNet in the checkpoint's place for some images, as TensorRT's: no layer of ours runs then."""

from __future__ import annotations

import pytest
from real_webui import SMALL, RealWebui

OPTIONS = ("other unet", "other unet", "None", "other unet", "other unet", "None")


def every(server: RealWebui, **always) -> list[str]:
    found = []
    for option in OPTIONS:
        server.call("/sdapi/v1/options", {"sd_unet": option})
        found.append(server.image(**SMALL | {"steps": 4}, **always))
    return found


@pytest.fixture(scope="module")
def expected(real_webui):
    found = every(real_webui("--lowvram", extension=False, inside=("other_unet",)))
    assert found[2] == found[5] and {*found[:2], *found[3:5]} == {found[0]} != {found[2]}
    return found


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "toggled"])
def test_it_comes_and_goes_between_streamed_images(expected, real_webui, flags):
    server = real_webui(*flags, inside=("other_unet",))
    for script in ([True, 16], [False, 16], [True, 0]):
        assert every(server, script=script) == expected
        assert server.streams is script[0]
        server.check_quiet()


def test_nothing_of_ours_lies_beside_it(real_webui):
    server = real_webui("--async-lowvram", inside=("other_unet",))
    server.call("/probe/other-unet", {})
    every(server, script=[True, 16])
    assert server.call("/probe/other-unet", {}) == [0] * 16
