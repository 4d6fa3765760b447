"""Pages in headless Chromium. What this machine lacks is named, and its tests are skipped."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "webui")]

GRADIO = "3.41.2"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium() -> str | None:
    """Its program; CHROMIUM in the environment names another."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


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


class Nursery:
    """tests/ui/serve.py, which has imported what takes seconds and forks a page for whoever asks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def page(self, port: int, arguments: tuple[str, ...]) -> int:
        """Returns the process id of a page on `port`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(["--port", str(port), *arguments]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            words = line.split()
            if words[:2] == ["ready", str(port)]:
                return int(words[2])
        raise RuntimeError("the page did not start")


@lru_cache(maxsize=1)
def nursery() -> Nursery:
    made = Nursery()
    atexit.register(made.process.kill)
    return made


class Server:
    """One page in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self._pid = nursery().page(port, arguments)

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
