"""Several requests at once, while the page asks how it goes and the buffer changes: stock's pixels."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from real_webui import SMALL

BUFFERS_MB = (16, 0, 24, 64, 20, 16)
BODIES = [SMALL | {"seed": seed, "steps": 6, "width": 64 + 64 * (seed % 2)} for seed in range(len(BUFFERS_MB))]


@pytest.fixture(scope="module")
def expected(real_webui):
    server = real_webui("--lowvram", extension=False)
    found = [server.image(**body) for body in BODIES]
    assert len(set(found)) == len(found)
    return found


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "toggled"])
def test_six_requests_while_the_page_asks(expected, real_webui, flags):
    server = real_webui(*flags)
    over, seen = threading.Event(), []

    def ask() -> None:
        while not over.wait(0.01):
            seen.append(server.call("/async-lowvram/status")["async_lowvram"])
            server.call("/async-lowvram/details")

    def make(number: int) -> str:
        server.call("/async-lowvram/choice", {"enabled": True, "buffer_mb": BUFFERS_MB[number]})
        return server.image(**BODIES[number], script=[True, BUFFERS_MB[number]])

    with ThreadPoolExecutor(4) as threads:
        asking = threads.submit(ask)
        try:
            assert list(threads.map(make, range(len(BODIES)))) == expected
        finally:
            over.set()
        asking.result()
    assert {status["last_error"] for status in seen} == {None}
    assert len({status["budget_mb"] for status in seen}) > 2, "the size did change"
    assert any(status["sampling"] for status in seen)
    assert server.streams
    server.check_quiet()
