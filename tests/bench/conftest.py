"""What the benchmark's tests share."""

from __future__ import annotations

import dataclasses

import pytest

from lib_async_mover.bench import measure
from lib_async_mover.bench.shapes import SHAPES, TINY


@pytest.fixture
def small_and_quick(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's `tiny` is smaller still, and timed in two rounds."""
    small = dataclasses.replace(TINY, multipliers=(1, 2), transformer_depths=(0, 1), res_blocks=1)
    monkeypatch.setitem(SHAPES, "tiny", small)
    monkeypatch.setattr(measure, "ROUNDS", 2)
