"""The image is made even if the mover fails: the UNet's forward runs once more, on stock's mechanism.

Hooks cannot swallow an exception, so the guard stands in the `forward` of the UNet's *wrapper* (ldm's
DiffusionWrapper, sgm's OpenAIWrapper, SD3's BaseModel). The UNet's own `forward` is left to the extensions that
replace it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType, TracebackType
from typing import Any

from torch import nn

from lib_async_mover.errors import ConcurrentForwardError

ENGINE = str(Path(__file__).resolve().parents[1])
ADAPTER = str(Path(__file__).resolve().parent)

Recover = Callable[["Guard", Exception], None]


class Guard:
    """`recover(guard, error)` must leave the wrapper able to run without the mover, and without this guard."""

    def __init__(self, wrapper: nn.Module, recover: Recover) -> None:
        self.wrapper = wrapper
        self._recover = recover
        self._previous = vars(wrapper).get("forward")

    def install(self) -> None:
        self.wrapper.forward = self

    def remove(self) -> None:
        if vars(self.wrapper).get("forward") is not self:
            return  # somebody replaced ours: then it only passes calls on
        if self._previous is None:
            del self.wrapper.forward
        else:
            self.wrapper.forward = self._previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._previous or MethodType(type(self.wrapper).forward, self.wrapper)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            if isinstance(error, ConcurrentForwardError) or not is_ours(error):
                raise
            self._recover(self, error)
        return self.wrapper(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model does not stream and needs no guard."""
        return MethodType(type(self.wrapper).forward, memo.get(id(self.wrapper), self.wrapper))


def is_ours(error: BaseException) -> bool:
    """Was it raised below the engine's code? The model's own code never runs below it: hooks return first."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(ENGINE) and not name.startswith(ADAPTER):
            return True
        trace = trace.tb_next
    return False
