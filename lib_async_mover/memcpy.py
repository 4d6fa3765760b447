"""One host-to-device copy in one call: the driver's own, through ctypes.

`Tensor.copy_` takes about 20 µs of CPU time to issue an asynchronous copy and wants the copy stream to be current;
the driver's call takes five and names its stream. Where a step is bound by its launches, that is what a unit costs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch

from .errors import AsyncMoverError

Memcpy = Callable[[int, int, int, int], None]  # (device address, host address, bytes, stream handle)


def driver_memcpy() -> Memcpy | None:
    """CUDA's `cuMemcpyHtoDAsync_v2`; None where there is no such driver (ROCm, XPU, CPU).

    The calling thread's current CUDA context must be the stream's, as it is once torch has used the device there.
    Raises AsyncMoverError, from the copy, with the driver's error number.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        function = driver.cuMemcpyHtoDAsync_v2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    function.restype = ctypes.c_int

    def memcpy(target: int, source: int, count: int, stream: int) -> None:
        result = function(target, source, count, stream)
        if result != 0:
            raise AsyncMoverError(f"the CUDA driver refused a copy of {count} bytes: CUresult {result}; start again")

    return memcpy
