"""Stock lowvram's mechanism, written anew as the baseline that the mover is measured against.

The webui hooks `time_embed`, every input block, the middle block and every output block. Whichever is entered
first sends the block before it back to the CPU, and then itself to the device: two pageable, blocking copies,
with the device idle meanwhile. `out` and `label_emb` stay on the device.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .unet import UNet
from .weights import weight_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

CPU = torch.device("cpu")


class StockLowvram:
    """Runs a UNet the way stock `--lowvram` does, from entering the context until leaving it.

    With `bus_gbps` (GB/s) each move also takes at least as long as a bus of that speed would need for it. That is
    kinder than a real slow bus, on which pageable copies fall short of its full speed.
    """

    def __init__(self, unet: UNet, device: torch.device, bus_gbps: float | None = None) -> None:
        self.unet = unet
        self.device = device
        self.bus_gbps = bus_gbps
        self.moved_bytes = 0
        self._on_device: nn.Module | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self.unet.to(CPU)
        self.unet.out.to(self.device)
        if self.unet.shape.label_channels is not None:
            self.unet.label_emb.to(self.device)
        for block in self.blocks():
            self._handles.append(block.register_forward_pre_hook(self._enter_block))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._on_device = None
        self.unet.to(CPU)

    def blocks(self) -> list[nn.Module]:
        """What moves, each as one, in execution order."""
        return [self.unet.time_embed, *self.unet.input_blocks, self.unet.middle_block, *self.unet.output_blocks]

    def _enter_block(self, block: nn.Module, _args: object) -> None:
        if block is self._on_device:
            return
        if self._on_device is not None:
            self._move(self._on_device, CPU)
        self._move(block, self.device)
        self._on_device = block

    def _move(self, block: nn.Module, device: torch.device) -> None:
        started_s = time.perf_counter()
        block.to(device)
        size_bytes = weight_bytes(block)
        self.moved_bytes += size_bytes
        if self.bus_gbps is not None:
            left_s = size_bytes / (self.bus_gbps * 1e9) - (time.perf_counter() - started_s)
            if left_s > 0:
                time.sleep(left_s)
