"""Checkpoints of architectures that this webui has no file for: a stub that names the architecture, beside a
configuration that makes it small; weights, tokens and small text encoders come from `inside/small_architectures.py`."""

from __future__ import annotations

import re
from pathlib import Path

from tensor_file import Dice, Values, write_tensors

PREFIX = "undertest-"
WIDTH = 64  # of the text encoders

UNET = "model.diffusion_model."
SMALLER = [
    (r"model_channels: \d+", "model_channels: 32"), (r"num_head_channels: \d+", "num_head_channels: 16"),
    (r"context_dim: \d+", f"context_dim: {WIDTH}"), (r"context_dim: \[.*\]", f"context_dim: {[WIDTH] * 4}"),
    (r"transformer_depth: 4", "transformer_depth: 2"), (r" ch: \d+", " ch: 32"),
    (r"adm_in_channels: 2560", f"adm_in_channels: {WIDTH + 5 * 256}"),
    (r"arch: .*", "arch: undertest-open"), (r"version: .*", "version: none"),
    (r"( +)layer: \"penultimate\"", r'\1layer: "penultimate"\n\1arch: undertest-open\n\1version: none'),
]  # fmt: skip


def _sd2(dice: Dice) -> dict[str, Values]:
    """Whose text encoder is OpenCLIP's."""
    return {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": dice.normal(3 * WIDTH, WIDTH)}


def _refiner(dice: Dice) -> dict[str, Values]:
    query = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"  # without it, SSD-1B
    return {"conditioner.embedders.0.model.ln_final.weight": dice.normal(WIDTH), query: dice.normal(128, 128)}


def _sd3(dice: Dice, depth: int = 4) -> dict[str, Values]:
    """The webui takes the transformer's size from these, and wants every text encoder to be in the file."""
    hidden, text = 64 * depth, "text_encoders.clip_{}.transformer.text_model.embeddings.position_embedding.weight"
    return {
        f"{UNET}x_embedder.proj.weight": dice.normal(hidden, 16, 2, 2),
        f"{UNET}pos_embed": dice.normal(1, 32 * 32, hidden),
        f"{UNET}y_embedder.mlp.0.weight": dice.normal(hidden, 2 * WIDTH),
        f"{UNET}context_embedder.weight": dice.normal(hidden, 4096),
        text.format("l"): dice.normal(77, WIDTH),
        text.format("g"): dice.normal(77, WIDTH),
        "text_encoders.t5xxl.transformer.encoder.embed_tokens.weight": dice.normal(512, 4096, scale=0.1),
    }


REPOSITORIES = "repositories/stable-diffusion-stability-ai/configs/stable-diffusion", "repositories/generative-models"
KINDS = {
    "sd2": (_sd2, f"{REPOSITORIES[0]}/v2-inference.yaml"),
    "refiner": (_refiner, f"{REPOSITORIES[1]}/configs/inference/sd_xl_refiner.yaml"),
    "sd3": (_sd3, "configs/sd3-inference.yaml"),
}


def write_checkpoint(webui: Path, kind: str, folder: Path) -> Path:
    """One of `KINDS`, into `folder`; it works where `small_architectures` runs inside the webui."""
    make, config = KINDS[kind]
    text = (webui / config).read_text(encoding="utf-8")
    for pattern, small in SMALLER:
        text = re.sub(pattern, small, text)
    file = folder / f"{PREFIX}{kind}.safetensors"
    file.with_suffix(".yaml").write_text(text, encoding="utf-8")
    write_tensors(file, make(Dice()))
    return file
