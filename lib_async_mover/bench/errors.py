"""What the benchmark refuses, with what to do about it."""

from __future__ import annotations

from lib_async_mover.errors import AsyncMoverError


class BenchError(AsyncMoverError):
    """The benchmark was asked for something it cannot measure. The message says what to change."""
