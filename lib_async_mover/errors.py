"""The project's own errors. Each message says what was expected, what was found, and what to do next."""

from __future__ import annotations


class AsyncMoverError(Exception):
    """Base of every error this package raises on purpose."""


class UnsupportedDeviceError(AsyncMoverError):
    """The device has no copy stream this package can drive. Nothing was changed."""


class UnsupportedModuleError(AsyncMoverError):
    """The module holds tensors that cannot be streamed (meta, sparse, subclass). Nothing was changed."""


class PlanError(AsyncMoverError):
    """The numbers given to the planner make no sense (negative, NaN, empty)."""


class ArenaAllocationError(AsyncMoverError):
    """The weight buffer did not fit on the device. The module is on the CPU, as outside a forward."""


class RecordingError(AsyncMoverError):
    """A forward was recorded (torch.jit.trace, make_fx, an export): passing memory would become its constants."""


class GradientError(AsyncMoverError):
    """A gradient was asked for through weights that have left the device."""


class ConcurrentForwardError(AsyncMoverError):
    """Two threads ran one module at once: its slots can serve one forward at a time."""
