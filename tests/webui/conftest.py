"""Real webuis, one at a time, each started once for all the tests that want the same flags."""

from __future__ import annotations

import pytest
from lora_file import PROMPT, keep_lora
from real_webui import KINDS, one_at_a_time, webui_dir


def pytest_collection_modifyitems(items):
    reason = "" if webui_dir() else "set WEBUI_DIR to a stable-diffusion-webui 1.10 to run these"
    for item in items:
        if "real_webui" in getattr(item, "fixturenames", ()) or "stock" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.webui)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_webui(tmp_path_factory):
    with one_at_a_time(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def stock(real_webui):
    """Pixels of stock `--lowvram`, without the extension."""
    server = real_webui("--lowvram", extension=False)
    pixels = {kind: server.image(kind) for kind in KINDS}
    if keep_lora(server):
        pixels["lora"] = server.image(prompt=PROMPT)
    return pixels
