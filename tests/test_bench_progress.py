"""Progress: a bar on a terminal that has tqdm, log lines everywhere else."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace

import pytest

from lib_async_mover.bench import progress as progress_module
from lib_async_mover.bench.progress import LogHandler, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bar:
    last: Bar

    def __init__(self, total, **_):
        self.total, self.n, self.closed = total, 0, False
        Bar.last = self

    def set_description(self, text):
        self.text = text

    def refresh(self):
        pass

    def close(self):
        self.closed = True

    @staticmethod
    def write(text, file):
        file.write(text + "\n")


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    # Not sys.stderr itself: pytest puts its own back between set-up and test.
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=Bar))
    return terminal


def test_bar(terminal):
    with Progress(phases=2, forwards=10) as progress:
        progress.begin("first")
        progress.advance(3)
        assert (Bar.last.total, Bar.last.n, Bar.last.text) == (20, 3, "first")
        progress.advance(30)
        assert Bar.last.n == 10, "a phase never takes more than its share"
        progress.end()
        progress.begin("second")
        progress.advance()
        assert Bar.last.n == 11
    assert Bar.last.closed


def record(text):
    return logging.LogRecord("async_lowvram", logging.INFO, __file__, 1, text, (), None)


def test_log_lines_go_above_the_bar(terminal):
    LogHandler(terminal).emit(record("packed"))
    assert terminal.getvalue() == "packed\n"


@pytest.mark.parametrize("case", ["no terminal", "no tqdm"])
def test_lines_instead_of_a_bar(case, terminal, monkeypatch, caplog):
    if case == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    else:
        monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=io.StringIO()))
    with caplog.at_level(logging.INFO, "async_lowvram"), Progress(phases=1, forwards=1) as progress:
        progress.begin("first")
        progress.advance()
        progress.end()
    assert caplog.messages == ["first ..."]
    LogHandler(terminal).emit(record("packed"))
    assert terminal.getvalue() == "packed\n"
