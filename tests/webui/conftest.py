"""Real webuis, one at a time, each started once for all the tests that want the same flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_file import PROMPT, keep_lora
from real_webui import KINDS, RealWebui, webui_dir


def pytest_collection_modifyitems(items):
    reason = "" if webui_dir() else "set WEBUI_DIR to a stable-diffusion-webui 1.10 to run these"
    for item in items:
        if "real_webui" in getattr(item, "fixturenames", ()) or "stock" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.webui)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_webui(tmp_path_factory):
    """`real_webui("--flag", …)` is a running webui with the extension; the one before it is stopped."""
    running: dict[tuple, RealWebui] = {}

    def start(
        *flags: str,
        extension: bool = True,
        backend: str = "cpu",
        others: tuple[Path, ...] = (),
        inside: tuple[str, ...] = (),
        page: bool = False,
    ) -> RealWebui:
        key = (flags, extension, backend, others, inside, page)
        if key not in running:
            for server in running.values():
                server.stop()
            running.clear()
            env = {"ASYNC_LOWVRAM_BACKEND": backend}
            data_dir = tmp_path_factory.mktemp("webui")
            running[key] = RealWebui(
                data_dir, flags, extension=extension, env=env, page=page, others=others, inside=inside
            )
        return running[key]

    yield start
    for server in running.values():
        server.stop()


@pytest.fixture(scope="session")
def stock(real_webui):
    """Pixels of stock `--lowvram`, without the extension."""
    server = real_webui("--lowvram", extension=False)
    pixels = {kind: server.image(kind) for kind in KINDS}
    if keep_lora(server):
        pixels["lora"] = server.image(prompt=PROMPT)
    return pixels
