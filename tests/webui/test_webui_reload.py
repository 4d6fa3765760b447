"""The extension is disabled in a real webui with its page, and the UI reloaded: nothing of it stays on the model."""

from __future__ import annotations

import time

import pytest

LEAVES_WITHIN_S = 40


@pytest.mark.parametrize("flags", [("--lowvram",), ("--medvram",), ()], ids=["lowvram", "medvram", "resident"])
def test_disabled_and_reloaded(stock, real_webui, flags):
    server = real_webui(*flags, page=True)
    assert server.image(script=[True, 16]) == stock["txt2img"]
    assert len(server.probe()["models"]) == 1
    for disabled, expected in (([], 1), (["async-lowvram"], 0), ([], 0)):
        server.call("/sdapi/v1/options", {"disabled_extensions": disabled})
        server.reload_ui()
        titles = [info["name"] for info in server.call("/sdapi/v1/script-info")]
        assert ("async lowvram" in titles) is not bool(disabled)
        assert server.image() == stock["txt2img"]
        limit = time.monotonic() + LEAVES_WITHIN_S
        while len(server.probe()["models"]) != expected and time.monotonic() < limit:
            time.sleep(1)
        assert len(server.probe()["models"]) == expected
        assert server.image() == stock["txt2img"]
    assert server.image(script=[True, 16]) == stock["txt2img"]
    assert len(server.probe()["models"]) == 1, "enabled again"
    assert server.probe()["last_error"] is None
    assert "Traceback" not in server.log()
