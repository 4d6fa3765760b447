"""The extension is disabled in a real webui with its page, and the UI reloaded: nothing of it stays on the model."""

from __future__ import annotations

import time

import pytest

LEAVES_WITHIN_S = 40


@pytest.mark.parametrize("flags", [("--lowvram",), ("--medvram",), ()], ids=["lowvram", "medvram", "resident"])
def test_disabled_and_reloaded(stock, real_webui, flags):
    server = real_webui(*flags, page=True)
    streaming = {"script": [True, 16]}
    for disabled in (False, True, False):
        assert server.image(**streaming) == stock["txt2img"]
        assert server.stages()
        server.call("/sdapi/v1/options", {"disabled_extensions": ["async-lowvram"] if disabled else []})
        server.reload_ui()
        titles = [info["name"] for info in server.call("/sdapi/v1/script-info")]
        assert ("async lowvram" in titles) is not disabled
        if disabled:
            assert server.image() == stock["txt2img"], "while it is still on its way out"
            limit = time.monotonic() + LEAVES_WITHIN_S
            while server.streams and time.monotonic() < limit:
                time.sleep(1)
            assert not server.streams
            assert server.image() == stock["txt2img"]
            server.call("/sdapi/v1/options", {"disabled_extensions": []})
            server.reload_ui()
    assert server.image(**streaming) == stock["txt2img"]
    assert server.stages()
    server.check_quiet()
