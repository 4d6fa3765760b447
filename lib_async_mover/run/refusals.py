"""What a streamed module cannot do, refused in words before anything goes wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode
from torch.utils._pytree import tree_flatten

from lib_async_mover.errors import ConcurrentForwardError, GradientError, RecordingError


def refuse_thread(name: str) -> None:
    """Raises ConcurrentForwardError."""
    raise ConcurrentForwardError(
        f"{name}: a second thread began a forward while one was running; its weights serve one at a time, so run them "
        "one after the other"
    )


def refuse_recording(name: str) -> None:
    """Raises RecordingError if this thread's operations are recorded as a program."""
    if torch._C._get_tracing_state() is not None or get_innermost_proxy_mode() is not None:
        raise RecordingError(
            f"{name}: torch.jit.trace, make_fx, an export and the like would record passing GPU memory as its weights; "
            "detach it first, and attach it again afterwards"
        )


def refuse_gradients(name: str, result: Any) -> None:
    """Whoever goes back from ``result``, which a forward through slots returned, gets GradientError.

    The slots have other weights by then. A graph of which ``result`` knows nothing is autograd's to refuse: reuse of a
    slot counts as a write to what it saved (`Binding.count_write`).
    """
    if torch.is_grad_enabled():
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor) and value.requires_grad:
                value.register_hook(partial(_refuse_gradient, name))


def _refuse_gradient(name: str, grad: torch.Tensor) -> None:
    raise GradientError(
        f"{name}: a gradient was asked for, but its weights were streamed through a buffer and have gone on; give it a "
        "buffer for all of them (vram_mb), or detach it first"
    )
