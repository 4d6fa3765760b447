"""LoRAs for other architectures: for OpenCLIP's attention, edited as one module, and for SD3's joint q, k and v."""

from __future__ import annotations

from pathlib import Path

from lora_file import METADATA, NAME
from lora_kinds import plain
from small_models import UNET, WIDTH
from tensor_file import Dice, Values, shapes_of, write_tensors

Tensors = dict[str, Values]
QUERY = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"
OPEN_CLIP = ".attn.out_proj.weight"


def write_lora_for(kind: str, checkpoint: Path, folder: Path) -> str:
    """Write one for `kind`, which `checkpoint` is; returns what activates it in a prompt, but for the weight."""
    shapes, dice = shapes_of(checkpoint), Dice()
    if kind == "sd3":
        tensors = _sd3(dice, shapes[f"{UNET}x_embedder.proj.weight"][0])
    else:
        tensors = _unet_and_open_clip(kind, dice, shapes)
    write_tensors(folder / f"{NAME}-{kind}.safetensors", tensors, METADATA)
    return f"<lora:{NAME}-{kind}:"


def _unet_and_open_clip(kind: str, dice: Dice, shapes: dict[str, list[int]]) -> Tensors:
    """kohya's names, and the host's own for the refiner's text encoder, which kohya has no name for."""
    text = {
        "sd2": "lora_te_text_model_encoder_layers_0_{}", "sdxl": "lora_te2_text_model_encoder_layers_0_{}",
        "refiner": "0_model_transformer_resblocks_0_{}",
    }[kind]  # fmt: skip
    attention, mlp = ("attn", "mlp_c_fc") if kind == "refiner" else ("self_attn", "mlp_fc1")
    width = next((shape[0] for key, shape in shapes.items() if key.endswith(OPEN_CLIP)), WIDTH)
    layers = {text.format(f"{attention}_{part}_proj"): [width, width] for part in ("q", "k", "v", "out")}
    layers[text.format(mlp)] = [4 * width, width]
    block = "mid_block_attentions_0" if kind == "sd2" else "middle_block_1"
    channels = shapes.get(QUERY, [128])[0]
    for part in ("attn1_to_q", "attn1_to_out_0"):
        layers[f"lora_unet_{block}_transformer_blocks_0_{part}"] = [channels, channels]
    return {f"{name}.{part}": v for name, shape in layers.items() for part, v in plain(dice, shape).items()}


def _sd3(dice: Dice, hidden: int) -> Tensors:
    """diffusers' names, which have no alpha; and the host's own for a text encoder's layer."""
    block = "transformer.transformer_blocks.{}.attn.{}"
    sizes = {block.format(number, part): hidden for number in (0, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    sizes["clip_l_transformer_text_model_encoder_layers_0_self_attn_q_proj"] = WIDTH
    tensors = {}
    for name, size in sizes.items():
        made = plain(dice, [size, size])
        tensors |= {f"{name}.lora_A.weight": made["lora_down.weight"], f"{name}.lora_B.weight": made["lora_up.weight"]}
    return tensors
