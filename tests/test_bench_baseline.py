"""The baseline moves what stock lowvram moves, in stock's order, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from lib_async_mover.bench.baseline import StockLowvram
from lib_async_mover.bench.inputs import make_inputs
from lib_async_mover.bench.shapes import SDXL, TINY
from lib_async_mover.bench.unet import build_unet
from lib_async_mover.bench.weights import fill_weights, weight_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
META = torch.device("meta")
LABELLED = dataclasses.replace(
    SDXL, name="labelled", channels=32, head_channels=16, label_channels=24, context_channels=40,
    transformer_depths=(0, 1, 1), middle_depth=1, parameters=None,
)  # fmt: skip


@pytest.fixture(params=[TINY, LABELLED], ids=lambda shape: shape.name)
def unet(request):
    unet = build_unet(request.param)
    fill_weights(unet, CPU, torch.float32, seed=0)
    return unet


def run(unet, seed=1):
    with torch.no_grad():
        return make_inputs(unet.shape, 1, 32, CPU, torch.float32, seed).run(unet)


def test_blocks_move_one_at_a_time_in_stock_order(unet, monkeypatch):
    stock = StockLowvram(unet, CPU)
    blocks = stock.blocks()
    names = {id(module): name for name, module in unet.named_modules()}
    moves = []
    original = torch.nn.Module.to

    def recorded(module, *args, **kwargs):
        moves.append((names[id(module)], args[0]))
        return original(module, *args, **kwargs)

    with stock:
        monkeypatch.setattr(torch.nn.Module, "to", recorded)
        stock.device = target = torch.device("cpu", 0)  # the same memory, told apart by its index
        run(unet)
        first, moves[:] = list(moves), []
        run(unet)
        monkeypatch.undo()
    order = [names[id(block)] for block in blocks]
    assert order[0] == "time_embed" and order[-1].startswith("output_blocks.") and "middle_block" in order
    expected = []
    for before, block in zip([None, *order], order, strict=False):
        expected += ([] if before is None else [(before, CPU)]) + [(block, target)]
    assert first == expected
    assert moves == [(order[-1], CPU), *expected]


def test_outputs_stay_the_same_and_hooks_go(unet):
    before = run(unet)
    with StockLowvram(unet, CPU) as stock:
        assert torch.equal(run(unet), before)
        assert stock.moved_bytes > 0
    assert torch.equal(run(unet), before)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_hooks_go_after_an_error(unet):
    with pytest.raises(RuntimeError, match="mid-forward"), StockLowvram(unet, CPU):
        raise RuntimeError("mid-forward")
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_a_step_moves_every_block_in_and_out(unet):
    still = [unet.out] + ([unet.label_emb] if unet.shape.label_channels else [])
    moving = weight_bytes(unet) - sum(weight_bytes(module) for module in still)
    with StockLowvram(unet, CPU) as stock:
        run(unet)
        before = stock.moved_bytes
        run(unet)
        assert stock.moved_bytes - before == 2 * moving


def test_an_emulated_bus_takes_its_time(unet):
    with StockLowvram(unet, CPU, bus_gbps=1.0) as stock:
        run(unet)
        before, started_s = stock.moved_bytes, time.perf_counter()
        run(unet)
        elapsed_s = time.perf_counter() - started_s
        assert elapsed_s >= (stock.moved_bytes - before) / 1e9
