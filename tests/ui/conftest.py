"""Pages in headless Chromium. What this machine lacks is named, and its tests are skipped."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "host"), str(HERE.parent / "webui")]

from chromium import FLAGS, chromium  # noqa: E402
from pages import Server  # noqa: E402

GRADIO = "3.41.2"


def lacking() -> str:
    """Why there can be no page here, or ''."""
    for module in ("gradio", "playwright"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed (pip install -r tests/requirements.txt)"
    version = importlib.import_module("gradio").__version__
    if version != GRADIO:
        return f"gradio is {version}, and the webui's is {GRADIO}"
    if not hasattr(os, "fork"):
        return "the pages are forked, which this system cannot"
    return "" if chromium() else "there is no Chromium (apt-get install chromium, or name one in CHROMIUM)"


def pytest_collection_modifyitems(items: list[Any]) -> None:
    wanting = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
    reason = lacking() if wanting else ""
    for item in wanting:
        item.add_marker(pytest.mark.browser)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """`serve("--flag", …)` is a running page; the same arguments give the same one."""
    running: dict[tuple[str, ...], Server] = {}

    def start(*arguments: str) -> Server:
        if arguments not in running:
            running[arguments] = Server(*arguments)
        return running[arguments]

    yield start
    for server in running.values():
        server.stop()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(server)` is a `Visit`. At the end of the test no page may have logged an error of ours."""
    from visit import Visit

    visits: list[Visit] = []

    def open_page(url: str, **options: Any) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.close()
    assert [error for one in visits for error in one.errors] == []


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stub webui of tests/host, in this process, not started."""
    import lib_async_mover

    def purge() -> None:
        for name in list(sys.modules):
            if name.split(".")[0] == "modules" or name.startswith("lib_async_mover.webui"):
                del sys.modules[name]
        vars(lib_async_mover).pop("webui", None)

    purge()
    from webui_stub import STUB, Webui

    monkeypatch.syspath_prepend(str(STUB))
    monkeypatch.setenv("ASYNC_LOWVRAM_BACKEND", "cpu")
    made = Webui()
    made.shared.config_filename = str(tmp_path / "config.json")
    yield made
    purge()
