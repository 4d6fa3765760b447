"""What a GPU would refuse is found on a CPU: a forward that computes with weights in RAM, or asks where one is.

There the device of a tensor never differs, and a packed host tensor has the right values, so nothing else would tell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lib_async_mover
from lib_async_mover.memory.host_store import Span
from lib_async_mover.run.mover import Mover

COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
DEVICE = torch.Tensor.device.__get__
ENGINE = str(Path(lib_async_mover.__file__).parent)


class HostReadError(AssertionError):
    """A forward computes with a packed host tensor, or is told that it lies in RAM."""


class _Watched:
    """All spans and movers that there are."""

    def __init__(self) -> None:
        self.spans: WeakSet[Span] = WeakSet()
        self.movers: WeakSet[Mover] = WeakSet()

    def refuse(self, value: Any, what: str) -> None:
        """Raises if ``value`` is a packed tensor and a model's code uses it inside a forward."""
        if isinstance(value, torch.Tensor) and value.numel() and self._packed(value) and self._by_a_model():
            raise HostReadError(f"{what} a packed host tensor of shape {tuple(value.shape)} inside a forward")

    def _packed(self, tensor: torch.Tensor) -> bool:
        try:
            address = tensor.untyped_storage().data_ptr()
        except NotImplementedError:  # sparse, or batched by vmap
            return False
        return any(0 <= address - span.raw.data_ptr() < span.bytes for span in self.spans)

    def _by_a_model(self) -> bool:
        if not any(mover.busy for mover in self.movers):
            return False
        frame: FrameType | None = sys._getframe(3)
        while frame is not None and frame.f_code.co_name != "_call_impl":
            if frame.f_code.co_filename.startswith(ENGINE):
                return False  # the engine's own copies; hooks return before a model computes
            frame = frame.f_back
        return frame is not None


class _Operations(TorchDispatchMode):
    def __init__(self, watched: _Watched) -> None:
        super().__init__()
        self._watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in COPIES and not func.is_view:
            for value in args:
                for one in value if isinstance(value, (list, tuple)) else (value,):
                    self._watched.refuse(one, f"{func} reads")
        return func(*args, **(kwargs or {}))


class _Questions(TorchFunctionMode):
    def __init__(self, watched: _Watched) -> None:
        super().__init__()
        self._watched = watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == DEVICE:
            self._watched.refuse(args[0], "it is asked for the device of")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Whatever this thread does meanwhile raises HostReadError instead. Modules are attached inside it."""
    watched = _Watched()

    def adding(cls: type, known: WeakSet) -> Any:
        made = cls.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            known.add(self)

        return patch.object(cls, "__init__", init)

    with adding(Span, watched.spans), adding(Mover, watched.movers), _Operations(watched), _Questions(watched):
        yield


@pytest.fixture(autouse=True)
def host_reads_raise() -> Iterator[None]:
    """For all tests of a folder whose conftest imports it."""
    with no_host_reads():
        yield
