"""The arena: one allocation on the device, the whole VRAM cost of the weights."""

from __future__ import annotations

import torch

from lib_async_mover.errors import ArenaAllocationError


class Arena:
    """One block of device memory that can be given back and taken again under all the views that were cut from it.

    Resizing the storage to zero keeps every view valid as an object, so the GPU twins are built once per plan. FSDP
    frees its gathered parameters in the same way (torch/distributed/fsdp, `_free_storage`). Memory under a view that
    somebody else holds must not go like that: `uses` tells.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        """Takes ``count`` bytes. Raises ArenaAllocationError if the device has no room for them."""
        self.bytes = count
        self.device = device
        with torch.inference_mode(False):
            empty = torch.empty(0, dtype=torch.uint8, device=device)
            self._storage = empty.untyped_storage()
            self.allocate()
            self.raw = empty.new_empty(0).set_(self._storage, 0, (count,), (1,))  # shape (count,), uint8

    @property
    def allocated(self) -> bool:
        return self._storage.nbytes() > 0 or self.bytes == 0

    def allocate(self) -> None:
        """Takes the memory, unless it is held already: resizing to the same size would allocate and copy.

        Raises ArenaAllocationError if the device has no room for it.
        """
        if self._storage.nbytes() == self.bytes:
            return
        try:
            self._storage.resize_(self.bytes)
        except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one
            raise ArenaAllocationError(
                f"the weight buffer of {self.bytes >> 20} MiB did not fit on {self.device}: choose a smaller buffer, "
                "or close other programs that use the graphics card"
            ) from error

    def uses(self) -> int:
        """How many tensors lie in it: ours, and those of whoever else made a view."""
        return int(torch._C._storage_Use_Count(self._storage._cdata))

    def free(self) -> None:
        """Gives the memory back to torch's allocator. Whoever calls has ordered copies and compute before it."""
        self._storage.resize_(0)

    def view(self, like: torch.Tensor, strides: tuple[int, ...], offset: int) -> torch.Tensor:
        """Of ``like``'s shape and dtype, ``strides`` in elements, at byte ``offset`` (a multiple of `ALIGN`)."""
        itemsize = like.element_size()
        empty = torch.empty(0, dtype=like.dtype, device=self.device)
        return empty.set_(self._storage, offset // itemsize, like.shape, strides)
