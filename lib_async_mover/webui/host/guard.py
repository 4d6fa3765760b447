"""The image is made even if memory runs out, or the mover fails: the call is made once more.

Hooks cannot swallow an exception, so a guard stands one level above what streams: in `forward` of the UNet's *wrapper*
(ldm's DiffusionWrapper, sgm's OpenAIWrapper, SD3's BaseModel), since the UNet's own is left to the extensions that
replace it; in `encode` and `decode` of the VAE; in `get_learned_conditioning` of the model.

What it calls is a function of its arguments and of random numbers, which are drawn again from where they were.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

import lib_async_mover
from lib_async_mover.device.out_of_memory import drop_locals, is_out_of_memory
from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.webui.host import component, method_patch

# As the interpreter writes them into tracebacks: a path that is not resolved, if it leads through a link
OURS = str(Path(lib_async_mover.__file__).parent)
PASSES_CALLS_ON = (method_patch.__file__, component.__file__, __file__)

Recover = Callable[["Guard", Exception], None]
GiveWay = Callable[["Guard", int], bool]


class Guard(method_patch.MethodPatch):
    """Memory ran out: `give_way(guard, tries)` makes room, and the call is made again, until it returns False. The
    mover failed: `recover(guard, error)` must leave the owner able to run without it, and without this guard."""

    def __init__(self, owner: nn.Module, name: str, recover: Recover, give_way: GiveWay) -> None:
        super().__init__(owner, name)
        self._recover = recover
        self._give_way = give_way

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        random, tries = random_states(), 0
        while True:
            try:
                return self.original()(*args, **kwargs)
            except Exception as error:
                if is_out_of_memory(error):
                    drop_locals(error)  # activations
                    if not self._give_way(self, tries):
                        raise
                elif isinstance(error, ConcurrentForwardError) or not is_ours(error):
                    raise
                else:
                    self._recover(self, error)
                    break
            tries += 1  # the error is gone by now, and all that it held
            for restore, state in random:
                restore(state)
        again = self.owner if self.name == "forward" else getattr(self.owner, self.name)  # stock hooks the wrapper
        return again(*args, **kwargs)


def random_states() -> list[tuple[Callable[[torch.Tensor], None], torch.Tensor]]:
    """What sets torch's random generators, and the states that they are in: the CPU's, and those of GPUs in use."""
    used = [api for name in ("cuda", "xpu") if (api := getattr(torch, name, None)) and api.is_initialized()]
    return [(api.set_rng_state, api.get_rng_state()) for api in (torch, *used)]


def is_ours(error: BaseException) -> bool:
    """Was it raised below our code? The model's own code never runs below it: hooks return first."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(OURS) and name not in PASSES_CALLS_ON:
            return True
        trace = trace.tb_next
    return False
