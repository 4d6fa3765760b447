"""Stock lowvram's mechanism, written anew as the baseline that the mover is measured against.

The webui hooks `time_embed`, every input block, the middle block and every output block. Whichever is entered
first sends the block before it back to the CPU, and then itself to the device: two pageable, blocking copies,
with the device idle meanwhile. `out` and `label_emb` stay on the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib_async_mover.bench.unet import UNet
from lib_async_mover.bench.weights import weight_bytes


@contextmanager
def stock_lowvram(unet: UNet, device: torch.device, bus_gbps: float | None = None) -> Iterator[None]:
    """Inside, the UNet runs the way stock `--lowvram` does; it is on the CPU afterwards.

    With `bus_gbps` (GB/s) each move also takes at least as long as a bus of that speed would need for it. That is
    kinder than a real slow bus, on which pageable copies fall short of its full speed.
    """
    on_device: nn.Module | None = None

    def move(block: nn.Module, target: torch.device | str) -> None:
        until_s = time.perf_counter() + (0.0 if bus_gbps is None else weight_bytes(block) / (bus_gbps * 1e9))
        block.to(target)
        time.sleep(max(0.0, until_s - time.perf_counter()))

    def enter(block: nn.Module, _args: object) -> None:
        nonlocal on_device
        if block is not on_device:
            if on_device is not None:
                move(on_device, "cpu")
            move(block, device)
            on_device = block

    unet.to("cpu")
    unet.out.to(device)
    if unet.shape.label_channels is not None:
        unet.label_emb.to(device)
    blocks = [unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks]
    handles = [block.register_forward_pre_hook(enter) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        unet.to("cpu")
