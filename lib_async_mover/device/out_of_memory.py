"""Out of memory on the device: how to tell, and how to let go of what the error itself keeps there."""

from __future__ import annotations

import traceback

import torch

# Of errors that are plain RuntimeErrors, from the libraries and drivers below torch. What only may mean it ("unable to
# find an engine", "not supported") is not here, nor is RAM ("DefaultCPUAllocator", "OUT_OF_HOST_MEMORY").
TEXTS = (
    "CUDA out of memory", "HIP out of memory", "XPU out of memory",
    "CUDA error: out of memory", "HIP error: out of memory", "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED", "CUSPARSE_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED", "miopenStatusAllocFailed",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "PI_ERROR_OUT_OF_RESOURCES",
    "UR_RESULT_ERROR_OUT_OF_RESOURCES", "Allocation is out of device memory",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no room for what was asked of it."""
    # XPU raises CUDA's class, which is torch.OutOfMemoryError under its older name.
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
    )


def drop_locals(error: BaseException) -> None:
    """Calls that the error ended, and those that ended in what it was raised from, hold no tensors any more."""
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            links += [link.__context__, link.__cause__]
