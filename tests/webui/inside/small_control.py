"""Laid into the webui as an extension: lets ControlNet and AnimateDiff take a model as small as the checkpoint under
test, and writes such models, with random weights. Without it they know the widths of the real ones only.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modules import script_callbacks, shared
from safetensors.torch import save_file

REAL_WIDTH = 320  # of SD1, on which both extensions count


def randomise(state: dict[str, torch.Tensor], seed: int, gain: float = 1.0) -> dict[str, torch.Tensor]:
    """Also what starts as zeros: a control that adds nothing would show nothing."""
    dice = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in sorted(state.items()):
        if tensor.ndim >= 2 and not name.endswith(".pe"):
            made[name] = torch.randn(tensor.shape, generator=dice) * gain / math.sqrt(tensor[0].numel())
        else:
            made[name] = tensor.float().clone().contiguous()
    return made


def unet() -> Any:
    return shared.sd_model.model.diffusion_model


def fit_control() -> Any:
    """ControlNet's module that knows the widths, made to know the loaded model's."""
    guess = sys.modules["scripts.controlnet_model_guess"]
    if hasattr(unet(), "label_emb"):
        attention = unet().input_blocks[8][1]
        guess.controlnet_sdxl_mid_config.update(
            model_channels=unet().model_channels,
            attention_resolutions=[2, 4],
            transformer_depth=[0, len(unet().input_blocks[5][1].transformer_blocks), len(attention.transformer_blocks)],
            transformer_depth_middle=len(unet().middle_block[1].transformer_blocks),
            num_head_channels=unet().num_head_channels,
            context_dim=attention.transformer_blocks[0].attn2.to_k.in_features,
            adm_in_channels=unet().label_emb[0][0].in_features,
        )
        return guess
    guess.controlnet_default_config.update(
        model_channels=unet().model_channels,
        num_heads=unet().num_heads,
        context_dim=unet().input_blocks[1][1].transformer_blocks[0].attn2.to_k.in_features,
    )
    return guess


def write_control(folder: Path, name: str = "smallcontrol", seed: int = 3) -> None:
    guess = fit_control()
    config = guess.controlnet_sdxl_mid_config if hasattr(unet(), "label_emb") else guess.controlnet_default_config
    network = guess.PlugableControlModel(config | {"hint_channels": 3, "use_fp16": False})
    state = randomise(network.control_model.state_dict(), seed)
    save_file({f"control_model.{name}": value for name, value in state.items()}, folder / f"{name}.safetensors")


def write_adapter(folder: Path) -> None:
    """A T2I adapter, for images in colour."""
    guess, width = sys.modules["scripts.controlnet_model_guess"], unet().model_channels
    widths = [width, 2 * width, 4 * width, 4 * width]
    adapter = guess.Adapter(cin=3 * 64, channels=widths, nums_rb=2, ksize=1, sk=True, use_conv=False, is_sdxl=False)
    save_file(randomise(adapter.state_dict(), seed=8), folder / "smalladapter.safetensors")


def write_control_lora(folder: Path) -> None:
    """Low-rank weights beside the UNet's own, and weights of its own where the UNet has none."""
    guess = fit_control()
    names = {name for name, _ in unet().named_parameters()}
    control = guess.PlugableControlModel(guess.controlnet_default_config | {"hint_channels": 3, "use_fp16": False})
    dice, made = torch.Generator().manual_seed(4), {"lora_controlnet": torch.zeros(1)}
    for name, tensor in randomise(control.control_model.state_dict(), seed=5).items():
        owner, _, kind = name.rpartition(".")
        if name in names and kind == "weight" and tensor.ndim >= 2:
            rest = math.prod(tensor.shape[1:])
            made[f"{owner}.up"] = torch.randn(tensor.shape[0], 2, generator=dice) / 2
            made[f"{owner}.down"] = torch.randn(2, rest, generator=dice) / math.sqrt(rest)
        elif name in names:
            made[name] = dict(unet().named_parameters())[name].detach().float().cpu().clone()
        else:
            made[name] = tensor
    save_file(made, folder / "smallcontrollora.safetensors")


def write_ip_adapter(folder: Path) -> None:
    """Keys and values of image tokens for each cross-attention: of the way down, the way up, and the middle."""
    blocks = [*unet().input_blocks, *unet().output_blocks, unet().middle_block]
    heads = [part.attn2 for block in blocks for part in block.modules() if hasattr(part, "attn2")]
    dice, width = torch.Generator().manual_seed(6), heads[0].to_k.in_features
    made = {
        "image_proj.proj.weight": torch.randn(4 * width, 16, generator=dice) / 4,
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    for number, attention in enumerate(heads):
        for kind in ("k", "v"):
            made[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(
                attention.to_k.out_features, width, generator=dice
            ) / math.sqrt(width)
    save_file(made, folder / "ip-adapter_small.safetensors")


def fit_motion() -> Any:
    """AnimateDiff's module of layers, made to build them as wide as the loaded model."""
    motion = sys.modules["motion_module"]
    if not hasattr(motion, "real_motion_module"):
        motion.real_motion_module = real = motion.MotionModule
        motion.MotionModule = lambda width, *args, **kwargs: real(
            width * unet().model_channels // REAL_WIDTH, *args, **kwargs
        )
    return motion


def write_motion(folder: Path) -> None:
    motion = fit_motion()
    wrapper = motion.MotionWrapper("small", "", motion.MotionModuleType.AnimateDiffV3)
    save_file(randomise(wrapper.state_dict(), seed=7), folder / "smallmotion.safetensors")


def routes(_: Any, app: Any) -> None:
    @app.post("/probe/small-control")
    def small_control(body: dict) -> dict:
        """Writes what is not in the folder yet."""
        folder = Path(body["folder"])
        writers = {}
        if "scripts.controlnet_model_guess" in sys.modules:
            fit_control()
            xl = hasattr(unet(), "label_emb")
            writers |= {"smallcontrolxl": partial(write_control, name="smallcontrolxl")} if xl else {
                "smallcontrol": write_control, "smallcontrol2": partial(write_control, name="smallcontrol2", seed=13),
                "smalladapter": write_adapter, "smallcontrollora": write_control_lora,
                "ip-adapter_small": write_ip_adapter,
            }  # fmt: skip
        if "motion_module" in sys.modules:
            fit_motion()
            shared.opts.data["animatediff_model_path"] = str(folder)
            writers["smallmotion"] = write_motion
        for name, write in writers.items():
            if not (folder / f"{name}.safetensors").exists():
                write(folder)
        if "scripts.global_state" in sys.modules:
            sys.modules["scripts.global_state"].update_cn_models()
        return {"written": sorted(writers)}


script_callbacks.on_app_started(routes)
