"""The forward scope: whether a forward is running, in which thread, how deeply nested, and whether it ever ended."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import FrameType

import torch

Signature = tuple


def signature_of(args: tuple, kwargs: dict) -> Signature:
    """Shapes and dtypes of the tensors a forward was called with: equal ones take equal time."""
    values = [*args, *kwargs.values()]
    return tuple((value.shape, value.dtype) for value in values if isinstance(value, torch.Tensor))


@dataclass
class ForwardTimes:
    """CPU time of one forward, and what of it was ours."""

    ready_s: float = field(default_factory=lambda: time.perf_counter())  # when the weights were ready to go
    fetch_s: float = 0.0  # CPU time that went into load hooks
    fetches: int = 0
    on_demand: bool = False  # a leaf was loaded on demand
    unexpected: bool = False  # one was that is not in the recorded order


class ForwardScope:
    """Opened by the first forward, closed by the last of those that nest in it.

    torch calls no hook after a BaseException (the host's InterruptedException is one), so a scope may stay open. It
    keeps the frame that opened it: a frame that can be cleared does not run any more.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._frame: FrameType | None = None
        self._thread = 0

    @property
    def open(self) -> bool:
        """Opened and not closed; perhaps cut off."""
        return self._depth > 0

    @property
    def running(self) -> bool:
        """Open, and the forward that opened it really runs."""
        if not self._depth:
            return False
        try:
            if self._frame is not None:
                self._frame.clear()
        except RuntimeError:
            return True
        return False

    @property
    def mine(self) -> bool:
        """Opened by the calling thread."""
        return self._thread == threading.get_ident()

    def push(self, frame: FrameType | None) -> None:
        """Opens the scope for ``frame``, or nests in it."""
        if not self._depth:
            self._thread, self._frame = threading.get_ident(), frame
        self._depth += 1

    def pop(self) -> bool:
        """Whether the outermost forward is over: then `close` is due."""
        if self._depth > 1:
            self._depth -= 1
            return False
        return self._depth == 1

    def close(self) -> None:
        """No forward is running."""
        self._depth, self._frame = 0, None
