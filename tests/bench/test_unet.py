"""The benchmark's UNets have the real models' names and shapes, and outputs that can tell right from wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.inputs import make_inputs
from lib_async_mover.bench.shapes import SD15, SDXL, SHAPES, TINY, UNetShape
from lib_async_mover.bench.unet import UNet, build_controlnet, build_unet
from lib_async_mover.bench.weights import random_controlnet, random_unet

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PROFILES = Path(__file__).parents[1] / "profiles"

LABELLED = dataclasses.replace(
    SDXL, name="labelled", channels=32, head_channels=16, label_channels=24, context_channels=40,
    transformer_depths=(0, 1, 2), middle_depth=2, parameters=None,
)  # fmt: skip


def filled(shape: UNetShape, seed: int = 0) -> UNet:
    return random_unet(shape, CPU, torch.float32, seed)


@pytest.mark.parametrize(("shape", "millions"), [(SD15, 859.52), (SDXL, 2567.46)])
def test_parameter_counts(shape, millions):
    unet = build_unet(shape)
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert count == shape.parameters
    assert round(count / 1e6, 2) == millions
    assert all(parameter.is_meta for parameter in unet.parameters())


def test_a_wrong_count_is_refused():
    with pytest.raises(BenchError, match="should have 859,520,964 parameters but has"):
        build_unet(dataclasses.replace(SD15, middle_depth=2))


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (
            SD15,
            {
                "time_embed.0.weight": (1280, 320),
                "time_embed.2.bias": (1280,),
                "input_blocks.0.0.weight": (320, 4, 3, 3),
                "input_blocks.1.0.in_layers.0.weight": (320,),
                "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
                "input_blocks.1.0.emb_layers.1.weight": (320, 1280),
                "input_blocks.1.0.out_layers.3.weight": (320, 320, 3, 3),
                "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
                "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
                "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
                "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.bias": (320,),
                "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
                "input_blocks.1.1.transformer_blocks.0.ff.net.2.weight": (320, 1280),
                "input_blocks.3.0.op.weight": (320, 320, 3, 3),
                "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
                "input_blocks.11.0.out_layers.0.bias": (1280,),
                "middle_block.1.norm.weight": (1280,),
                "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
                "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
                "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
                "out.0.weight": (320,),
                "out.2.weight": (4, 320, 3, 3),
            },
        ),
        (
            SDXL,
            {
                "label_emb.0.0.weight": (1280, 2816),
                "label_emb.0.2.weight": (1280, 1280),
                "input_blocks.4.1.proj_in.weight": (640, 640),
                "input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight": (1280, 2048),
                "middle_block.1.transformer_blocks.9.norm3.weight": (1280,),
                "output_blocks.8.0.in_layers.2.weight": (320, 640, 3, 3),
            },
        ),
    ],
)
def test_names_and_shapes(shape, names):
    state = build_unet(shape).state_dict()
    assert {name: tuple(state[name].shape) for name in names} == names


@pytest.mark.parametrize(
    ("shape", "recorded"), [(SD15, "profile_sd15_b2_512.json"), (SDXL, "profile_sdxl_b2_1024.json")]
)
def test_every_leaf_is_as_recorded_from_the_real_layout(shape, recorded):
    profile = json.loads((PROFILES / recorded).read_text(encoding="utf-8"))
    leaves = {}
    for name, module in build_unet(shape).named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            leaves[name] = sum(2 * parameter.numel() for parameter in own)
    assert leaves == {name: size for name, size, _ in profile["leaves"]}


@pytest.mark.parametrize("shape", [TINY, LABELLED], ids=lambda shape: shape.name)
@torch.no_grad()
def test_outputs_depend_on_every_tensor_and_input(shape):
    unet = filled(shape)
    inputs = make_inputs(shape, 1, 32, CPU, torch.float32, seed=1)
    expected = inputs.run(unet)
    assert expected.shape == (1, 4, 4, 4)
    assert torch.isfinite(expected).all()
    assert 0.1 < float(expected.std()) < 10
    for part in ("time_embed", "input_blocks", "middle_block", "output_blocks", "out"):
        for name, parameter in list(getattr(unet, part).named_parameters())[::90]:
            kept = parameter.clone()
            parameter.zero_()
            assert not torch.equal(inputs.run(unet), expected), f"{part}.{name} has no effect"
            parameter.copy_(kept)
    assert torch.equal(inputs.run(unet), expected)
    for field in ("x", "timesteps", "context", "y"):
        if getattr(inputs, field) is not None:
            changed = dataclasses.replace(inputs, **{field: getattr(inputs, field) * 0.5})
            assert not torch.equal(changed.run(unet), expected), field


def test_weights_follow_the_seed_and_are_nowhere_constant():
    first, again, other = filled(TINY, 1).state_dict(), filled(TINY, 1).state_dict(), filled(TINY, 2).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, other[name])
        assert float(tensor.std()) > 0


@pytest.mark.parametrize("shape", [SD15, SDXL], ids=lambda shape: shape.name)
def test_controlnets_are_those_that_are_published(shape):
    state = build_controlnet(shape).state_dict()
    assert state["input_hint_block.14.weight"].shape == (320, 256, 3, 3)
    assert len([name for name in state if name.startswith("zero_convs")]) == 2 * len(build_unet(shape).input_blocks)
    with pytest.raises(BenchError, match="ControlNet should have"):
        build_controlnet(dataclasses.replace(shape, middle_depth=2))


@torch.no_grad()
def test_outputs_depend_on_every_tensor_of_a_controlnet_and_on_its_hint():
    unet, controlnet = filled(TINY), random_controlnet(TINY, CPU, torch.float32, 5)
    inputs = make_inputs(TINY, 1, 32, CPU, torch.float32, seed=1)
    plain = inputs.run(unet)
    unet.controlnets = [controlnet]
    expected = inputs.run(unet)
    assert not torch.equal(expected, plain)
    assert not torch.equal(dataclasses.replace(inputs, hint=inputs.hint * 0.5).run(unet), expected)
    for name, parameter in list(controlnet.named_parameters())[::60]:
        kept = parameter.clone()
        parameter.zero_()
        assert not torch.equal(inputs.run(unet), expected), name
        parameter.copy_(kept)


def test_tiny_is_tiny():
    count = sum(parameter.numel() for parameter in build_unet(TINY).parameters())
    assert 2e6 < count < 7e6


def test_inputs_have_the_models_shapes():
    inputs = make_inputs(SDXL, 2, 1024, CPU, torch.float16, seed=3)
    assert inputs.x.shape == (2, 4, 128, 128)
    assert inputs.timesteps.shape == (2,)
    assert inputs.context.shape == (2, 77, 2048)
    assert inputs.y is not None and inputs.y.shape == (2, 2816)
    assert make_inputs(SD15, 1, 512, CPU, torch.float16, seed=3).context.shape == (1, 77, 768)


@pytest.mark.parametrize(("batch", "size"), [(1, 500), (1, 0), (1, -64), (1, 96)])
def test_inputs_that_do_not_fit_are_refused(batch, size):
    with pytest.raises(BenchError):
        make_inputs(SD15, batch, size, CPU, torch.float16, seed=0)


def test_all_models_can_be_named():
    assert set(SHAPES) == {"sd15", "sdxl", "tiny"}
