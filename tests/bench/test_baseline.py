"""The baseline moves what stock lowvram moves, in stock's order, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from lib_async_mover.bench.baseline import stock_lowvram
from lib_async_mover.bench.inputs import make_inputs
from lib_async_mover.bench.shapes import SDXL, TINY
from lib_async_mover.bench.weights import random_unet, weight_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TARGET = torch.device("cpu", 0)  # the same memory, told apart by its index
LABELLED = dataclasses.replace(
    SDXL, name="labelled", channels=32, head_channels=16, label_channels=24, context_channels=40,
    transformer_depths=(0, 1, 1), middle_depth=1, parameters=None,
)  # fmt: skip


@pytest.fixture(params=[TINY, LABELLED], ids=lambda shape: shape.name)
def unet(request):
    return random_unet(request.param, CPU, torch.float32, seed=0)


def run(unet, seed=1):
    with torch.no_grad():
        return make_inputs(unet.shape, 1, 32, CPU, torch.float32, seed).run(unet)


def test_blocks_move_one_at_a_time_in_stock_order(unet, monkeypatch):
    blocks = [unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks]
    moves = []
    original = torch.nn.Module.to

    def recorded(module, *args, **kwargs):
        moves.append((module, args[0]))
        return original(module, *args, **kwargs)

    with stock_lowvram(unet, TARGET):
        monkeypatch.setattr(torch.nn.Module, "to", recorded)
        run(unet)
        first, moves[:] = list(moves), []
        run(unet)
        monkeypatch.undo()
    expected = [(blocks[0], TARGET)]
    for before, block in zip(blocks, blocks[1:], strict=False):
        expected += [(before, "cpu"), (block, TARGET)]
    assert first == expected
    assert moves == [(blocks[-1], "cpu"), *expected]


def test_outputs_stay_the_same_and_hooks_go(unet):
    before = run(unet)
    with stock_lowvram(unet, CPU):
        assert torch.equal(run(unet), before)
    assert torch.equal(run(unet), before)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_hooks_go_after_an_error(unet):
    with pytest.raises(RuntimeError, match="mid-forward"), stock_lowvram(unet, CPU):
        raise RuntimeError("mid-forward")
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_a_played_bus_takes_its_time_in_and_out(unet):
    still = [unet.out] + ([unet.label_emb] if unet.shape.label_channels else [])
    moving = weight_bytes(unet) - sum(weight_bytes(module) for module in still)
    with stock_lowvram(unet, CPU, bus_gbps=1.0):
        run(unet)
        started_s = time.perf_counter()
        run(unet)
        assert time.perf_counter() - started_s >= 2 * moving / 1e9
