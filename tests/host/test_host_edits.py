"""What others do to weights and forwards while they stream: LoRA, ControlNet and its relatives, hypernetworks."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from lora_stub import Lora
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize(
    ("kind", "with_bias"), [("sd1", False), ("sd1", True), ("sd2", False), ("sdxl", True), ("sd3", False)]
)
def test_a_lora_on_stronger_off_and_on_again(webui, stock_image, kind, with_bias):
    webui.start("--async-lowvram")
    model = webui.load_model(kind)
    lora = Lora(with_bias=with_bias)
    try:
        expected = {}
        for scale in (0.0, 0.02, 0.05):
            lora.scale = scale
            expected[scale] = stock_image(kind)
        assert not torch.equal(expected[0.0], expected[0.02])
        for scale in (0.0, 0.02, 0.02, 0.05, 0.0, 0.02, 0.0):
            lora.scale = scale
            for enabled in (True, False, True):
                assert torch.equal(webui.txt2img(enabled, 0), expected[scale]), (scale, enabled)
        leaf = model.model.diffusion_model.joint_blocks[0].qkv if kind == "sd3" else model.model.diffusion_model.out[2]
        assert torch.equal(leaf.weight, leaf.lora_backup[0]), "in the host store exactly once"
    finally:
        lora.remove()


def test_a_lora_is_edited_once_under_a_small_buffer(webui, stock_image, small_buffer):
    webui.start("--async-lowvram")
    small_buffer(24)
    webui.load_model()
    lora = Lora()
    try:
        for scale in (0.02, 0.0, 0.05):
            lora.scale = scale
            expected = stock_image(steps=4)
            for _ in range(3):
                assert torch.equal(webui.txt2img(True, 0, steps=4), expected)
    finally:
        lora.remove()


def test_a_forward_that_others_replace_on_the_instance(webui, stock_image):
    """HyperTile, IP-Adapter, ControlNet's reference mode, in which blocks run twice in a call."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    unet = model.model.diffusion_model
    expected = stock_image()
    block, original = unet.middle_block, unet.middle_block.forward

    def twice(*args):
        original(*args)
        return original(*args)

    unet.forward = MethodType(type(unet).forward, unet)
    block.forward = twice
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), expected)
    assert torch.equal(webui.txt2img(False, 0), expected)
    del block.forward, unet.forward


def test_a_class_that_others_swap(webui, stock_image):
    """ToMe makes the transformer blocks instances of a class of its own, and takes that back after the image."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    block = model.model.diffusion_model.middle_block
    cls = type(block)
    for _ in range(3):
        block.__class__ = type("ToMe", (cls,), {})
        assert torch.equal(webui.txt2img(True, 0), stock_image())
        block.__class__ = cls
        assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_a_control_network_that_reads_the_unet_s_weights(webui, stock_image):
    """Control-LoRA builds its layers on the UNet's own weights, read between forwards; they must be the true ones."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    conv = model.model.diffusion_model.middle_block.conv
    truth = conv.weight.detach().clone()
    seen = []

    def control(step):
        assert conv.weight.device.type == "cpu"
        seen.append(torch.equal(functional.conv2d(torch.ones(1, 8, 3, 3), conv.weight),
                                functional.conv2d(torch.ones(1, 8, 3, 3), truth)))  # fmt: skip

    assert torch.equal(webui.txt2img(True, 0, steps=4, between=control), stock_image(steps=4))
    assert seen == [True] * 4


def test_a_control_network_that_is_lowvram_itself(webui, stock_image):
    """ControlNet's low-VRAM option moves its own network in, and everything else out, inside each UNet call."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    unet = model.model.diffusion_model
    control = nn.Conv2d(4, 4, 1)
    original = type(unet).forward

    def hooked(self, x, *args, **kwargs):
        webui.lowvram.send_everything_to_cpu()
        control.to(webui.devices.device)(x)
        webui.lowvram.send_everything_to_cpu()
        return original(self, x, *args, **kwargs)

    unet.forward = MethodType(hooked, unet)
    for kwargs in ({}, {"hires": True}, {"preview": True}):
        assert torch.equal(webui.txt2img(True, 0, **kwargs), stock_image(**kwargs))
    del unet.forward


def test_interrogation_evicts_everything(webui, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    webui.txt2img(True, 0)
    with torch.no_grad():
        model.get_learned_conditioning(torch.arange(5)[None])
    webui.lowvram.send_everything_to_cpu()
    webui.devices.torch_gc()
    assert not any(mover.stats()["arena_mib"] for mover in webui.conversions.movers())
    assert all(tensor.device.type == "cpu" for tensor in model.model.state_dict().values())
    assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_tiled_vae_asks_the_decoder_where_it_is(webui, stock_image):
    """It replaces the decoder's forward, asks its first parameter for the device, and moves it there and back."""
    webui.start("--async-lowvram")
    model = webui.load_model()
    decoder = model.first_stage_model.decoder
    original = decoder.forward
    seen = []

    def tiled(x):
        device = next(decoder.parameters()).device
        decoder.to(webui.devices.device)
        try:
            seen.append(next(decoder.parameters()).data_ptr())
            return original(x)
        finally:
            decoder.to(device)

    webui.txt2img(True, 0)
    parked = next(decoder.parameters()).data_ptr()
    decoder.forward = tiled
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert parked not in seen and parked == next(decoder.parameters()).data_ptr(), "nothing is moved by hand"
    del decoder.forward
    assert torch.equal(webui.txt2img(True, 0), stock_image())


def test_training_gets_a_model_that_does_not_stream(webui, stock_image):
    webui.start()
    model = webui.load_model()
    from modules.textual_inversion import textual_inversion

    expected = textual_inversion.train_embedding(2)
    webui.txt2img(True, 0)
    assert torch.equal(textual_inversion.train_embedding(2), expected)
    assert model.lowvram is False
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert model.lowvram is True
