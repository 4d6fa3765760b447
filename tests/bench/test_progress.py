"""Progress: a bar on a terminal that has tqdm, log lines everywhere else."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from lib_async_mover.bench.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def measure_something():
    with progress("sd15: resident", 10) as advance:
        advance(3)
        advance(7)


def test_a_bar_on_a_terminal(monkeypatch, caplog):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, "async_lowvram"):
        measure_something()
    assert "sd15: resident" in terminal.getvalue() and not caplog.messages


@pytest.mark.parametrize("case", ["no terminal", "no tqdm"])
def test_a_line_instead(case, monkeypatch, caplog):
    if case == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal() if case == "no tqdm" else io.StringIO())
    with caplog.at_level(logging.INFO, "async_lowvram"):
        measure_something()
    assert caplog.messages == ["sd15: resident ..."]
