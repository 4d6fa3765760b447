"""The image is made even if the mover fails: the call is made once more, on stock's mechanism.

Hooks cannot swallow an exception, so a guard stands one level above what streams: in `forward` of the UNet's *wrapper*
(ldm's DiffusionWrapper, sgm's OpenAIWrapper, SD3's BaseModel), since the UNet's own is left to the extensions that
replace it; in `encode` and `decode` of the VAE; in `get_learned_conditioning` of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.webui import standin
from lib_async_mover.webui.standin import Standin

ENGINE = str(Path(__file__).resolve().parents[1])

Recover = Callable[["Guard", Exception], None]


class Guard(Standin):
    """`recover(guard, error)` must leave the owner able to run without the mover, and without this guard."""

    def __init__(self, owner: nn.Module, name: str, recover: Recover) -> None:
        super().__init__(owner, name)
        self._recover = recover

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.original()(*args, **kwargs)
        except Exception as error:
            if isinstance(error, ConcurrentForwardError) or not is_ours(error):
                raise
            self._recover(self, error)
        again = self.owner if self.name == "forward" else getattr(self.owner, self.name)  # stock hooks the wrapper
        return again(*args, **kwargs)


PASSES_CALLS_ON = (standin.__file__, __file__, str(Path(__file__).with_name("part.py")))


def is_ours(error: BaseException) -> bool:
    """Was it raised below our code? The model's own code never runs below it: hooks return first."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(ENGINE) and name not in PASSES_CALLS_ON:
            return True
        trace = trace.tb_next
    return False
