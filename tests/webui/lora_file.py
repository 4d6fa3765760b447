"""LoRAs for whatever SD1 checkpoint is loaded, written from the checkpoint's own header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_kinds import KINDS
from tensor_file import Dice, Values, shapes_of, write_tensors

if TYPE_CHECKING:
    from real_webui import RealWebui

NAME = "underTest"
NEW_BIAS = "new_bias"
BUNDLED = "bundled"
WORD = "undertestword"  # of the embedding that comes with a LoRA
PROMPT = f"a cat, (red:1.2) hat <lora:{NAME}:1>"
METADATA = {"ss_network_module": "networks.lora"}
UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model.encoder.layers."
EMBEDDING = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
BLOCKS = {
    "down_blocks_0_attentions_0": "input_blocks.1.1",
    "mid_block_attentions_0": "middle_block.1",
    "up_blocks_3_attentions_2": "output_blocks.11.1",
}
PARTS = [
    "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_k", "transformer_blocks.0.attn1.to_out.0",
    "transformer_blocks.0.ff.net.2", "proj_in",
]  # fmt: skip
# kohya's name, the checkpoint's name
ATTENTION = {
    f"lora_unet_{kohya}_{part.replace('.', '_')}": f"{UNET}{block}.{part}.weight"
    for kohya, block in BLOCKS.items()
    for part in PARTS
}
OTHERS = {
    "lora_unet_down_blocks_0_resnets_0_conv1": f"{UNET}input_blocks.1.0.in_layers.2.weight",
    "lora_unet_down_blocks_0_resnets_1_conv2": f"{UNET}input_blocks.2.0.out_layers.3.weight",
    "lora_unet_down_blocks_0_resnets_0_norm1": f"{UNET}input_blocks.1.0.in_layers.0.weight",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_norm2":
        f"{UNET}middle_block.1.transformer_blocks.0.norm2.weight",
}  # fmt: skip
ENCODER = {
    f"lora_te_text_model_encoder_layers_0_{part.replace('.', '_')}": f"{TEXT}0.{part}.weight"
    for part in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "layer_norm2")
}


def write_lora(
    checkpoint: Path, target: Path, kind: str = "plain", layers: dict[str, str] = ATTENTION, new_bias: bool = False,
    word: str = "",
) -> int:  # fmt: skip
    """Write `target`; returns the number of layers it changes (0: this checkpoint is no SD1).

    Args:
        new_bias: layers without a bias are the ones that get one; otherwise none does.
        word: of an embedding to bundle with it.
    """
    (make, dimensions), shapes, dice = KINDS[kind], shapes_of(checkpoint), Dice()
    tensors: dict[str, Values] = {}
    count = 0
    for name, key in layers.items():
        has_bias = key.removesuffix("weight") + "bias" in shapes
        if len(shapes.get(key, ())) not in dimensions or new_bias and has_bias:
            continue
        count += 1
        made = make(dice, shapes[key])
        tensors |= {f"{name}.{part}": made[part] for part in made if has_bias or new_bias or part != "diff_b"}
    if word and EMBEDDING in shapes:
        tensors[f"bundle_emb.{word}.string_to_param.*"] = dice.normal(2, shapes[EMBEDDING][1])
    write_tensors(target, tensors, METADATA)
    return count


def write_kinds(checkpoint: Path, folder: Path) -> list[str]:
    """A LoRA of each kind, `underTest-KIND`, for UNet and text encoder; one with new biases, and one with an embedding.
    Returns the kinds."""
    layers = ATTENTION | OTHERS | ENCODER
    write_lora(checkpoint, folder / f"{NAME}-{NEW_BIAS}.safetensors", "full", layers, new_bias=True)
    write_lora(checkpoint, folder / f"{NAME}-{BUNDLED}.safetensors", word=WORD)
    return [kind for kind in KINDS if write_lora(checkpoint, folder / f"{NAME}-{kind}.safetensors", kind, layers)]


def loaded_checkpoint(server: RealWebui) -> Path:
    loaded = server.call("/sdapi/v1/options")["sd_model_checkpoint"]
    files = {entry["title"]: entry["filename"] for entry in server.call("/sdapi/v1/sd-models")}
    return Path(files.get(loaded) or next(iter(files.values())))


def keep_lora(server: RealWebui) -> bool:
    """Put the LoRA where this webui looks for it; False for a checkpoint it cannot be made for."""
    layers = write_lora(loaded_checkpoint(server), server.data_dir / "lora" / f"{NAME}.safetensors")
    server.call("/sdapi/v1/refresh-loras", {})
    return layers > 0


def unapplied(server: RealWebui) -> list[str]:
    """What the host's Lora extension could not apply, as a webui with `--loglevel DEBUG` says. It counts a bundled
    embedding among what matched no layer."""
    lines = [line for line in server.log().splitlines() if "bundle_emb" not in line or "'lora_" in line]
    return [line[:300] for line in lines if f"Network {NAME}" in line or f"{NAME}-" in line and "didn't match" in line]
