"""The forward scope: whether a forward is running, in which thread, how deeply nested, and whether it ever ended."""

from __future__ import annotations

import sys
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


def call_frame() -> FrameType:
    """The frame in which torch calls a module, seen from one of its hooks; else the caller's caller's."""
    start = frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back  # type: ignore[assignment]
    return frame or start


@dataclass
class ForwardTimes:
    """CPU time of one forward, and what of it was ours."""

    by_leaf: bool = False  # its first leaf's call was what brought the weights
    ready_s: float = field(default_factory=lambda: time.perf_counter())  # when the weights were ready to go
    fetch_s: float = 0.0  # CPU time that went into load hooks
    fetches: int = 0
    on_demand: bool = False  # a leaf was loaded on demand
    unexpected: bool = False  # one was that is not in the recorded order


class ForwardScope:
    """Opened by the first forward, closed by the last of those that nest in it.

    torch calls no hook after a BaseException (the host's InterruptedException is one), so a scope may stay open. It
    keeps the frames of the calls: one that can be cleared does not run any more. And torch calls `always_call` hooks
    of a call that was refused before it began, in this thread or another: its frame is none of these.
    """

    def __init__(self) -> None:
        self._frames: list[FrameType] = []
        self._thread = 0

    @property
    def open(self) -> bool:
        """Opened and not closed; perhaps cut off."""
        return bool(self._frames)

    @property
    def running(self) -> bool:
        """Open, and the forward that opened it really runs."""
        try:
            for frame in self._frames[:1]:
                frame.clear()
        except RuntimeError:
            return True
        return False

    @property
    def mine(self) -> bool:
        """Opened by the calling thread."""
        return self._thread == threading.get_ident()

    def push(self, frame: FrameType) -> None:
        """Opens the scope for the call in ``frame``, or nests in it."""
        if not self._frames:
            self._thread = threading.get_ident()
        self._frames = [*self._frames, frame]

    def pop(self, frame: FrameType) -> bool:
        """The call in ``frame`` is over: whether it is the outermost. Then `close` is due."""
        depth = max((i for i, known in enumerate(self._frames) if known is frame), default=-1)
        if depth > 0:
            self._frames = self._frames[:depth]
        return depth == 0

    def close(self) -> None:
        """No forward is running."""
        self._frames = []
