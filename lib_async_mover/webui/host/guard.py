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

import lib_async_mover
from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.webui.host import component, method_patch

# As the interpreter writes them into tracebacks: a path that is not resolved, if it leads through a link
OURS = str(Path(lib_async_mover.__file__).parent)
PASSES_CALLS_ON = (method_patch.__file__, component.__file__, __file__)

Recover = Callable[["Guard", Exception], None]


class Guard(method_patch.MethodPatch):
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


def is_ours(error: BaseException) -> bool:
    """Was it raised below our code? The model's own code never runs below it: hooks return first."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(OURS) and name not in PASSES_CALLS_ON:
            return True
        trace = trace.tb_next
    return False
