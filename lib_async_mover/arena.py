"""The arena: one allocation on the device, the whole VRAM cost of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .errors import ArenaAllocationError

_use_count = getattr(torch._C, "_storage_Use_Count", None)  # which CUDA graphs in torch go by, too

CHUNK_BYTES = 16 << 20  # what is moved at a time where source and target overlap


class Arena:
    """One block of device memory that can be given back and taken again under all the views that were cut from it.

    Resizing the storage to zero keeps every view valid as an object, so the GPU twins are built once per plan. FSDP
    frees its gathered parameters in the same way (torch/distributed/fsdp, `_free_storage`).
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.bytes = count
        self.device = device
        with torch.inference_mode(False):
            self.raw = torch.empty(0, dtype=torch.uint8, device=device)
            self._storage = self.raw.untyped_storage()
            self.allocate()
            self.raw = self.raw.new_empty(0).set_(self._storage, 0, (count,), (1,))

    @property
    def allocated(self) -> bool:
        return self._storage.nbytes() > 0 or self.bytes == 0

    @property
    def references(self) -> int | None:
        """How many tensors lie in it; one less for each that was given another storage. None where torch cannot say."""
        return _use_count(self._storage._cdata) if _use_count is not None else None

    def allocate(self) -> None:
        """Takes the memory, unless it is held already: resizing to the same size would allocate and copy.

        Raises:
            ArenaAllocationError: the device has no room for it.
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

    def free(self) -> None:
        """Gives the memory back to torch's allocator. Whoever calls has ordered copies and compute before it."""
        self._storage.resize_(0)

    def rearrange(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Moves bytes within the arena, in order with the compute. Whoever calls has ordered copies before it.

        Args:
            moves: (from, to, bytes), ascending in both; what is moved to does not overlap.
        """
        # First all to the left as far as they go, then from the last one to their places: none overwrites another.
        position, packed = 0, []
        for source, target, count in moves:
            self._shift(source, position, count)
            packed.append((position, target, count))
            position += count
        for source, target, count in reversed(packed):
            self._shift(source, target, count)

    def _shift(self, source: int, target: int, count: int) -> None:
        if source == target:
            return
        overlap = abs(source - target) < count
        starts = range(0, count, CHUNK_BYTES if overlap else count)
        for start in starts if target < source else reversed(starts):
            size = min(starts.step, count - start)
            chunk = self.raw[source + start : source + start + size]
            self.raw[target + start : target + start + size] = chunk.clone() if overlap else chunk

    def view(self, like: torch.Tensor, strides: tuple[int, ...], offset: int) -> torch.Tensor:
        """A tensor of ``like``'s shape and dtype, ``strides`` in elements, at byte ``offset``, a multiple of 256."""
        itemsize = like.element_size()
        empty = torch.empty(0, dtype=like.dtype, device=self.device)
        return empty.set_(self._storage, offset // itemsize, like.shape, strides)
