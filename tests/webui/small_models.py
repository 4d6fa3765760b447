"""Checkpoints of architectures that this webui has no file for: a stub that names the architecture, beside a
configuration that makes it small; weights, tokens and small text encoders come from an extension of the test's own."""

from __future__ import annotations

import re
from pathlib import Path

from tensor_file import Dice, Values, write_tensors

PREFIX = "undertest-"
WIDTH = 64  # of the text encoders

EXTENSION = '''
"""Small models with random weights, the same ones in every process."""
import json
import math
import os
import zlib
from functools import partial

import open_clip
import torch
from modules import sd_models
from modules.models.sd3 import other_impls, sd3_cond, sd3_impls

ARCH = {"embed_dim": 64, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3}}
with open(os.path.join(os.path.dirname(__file__), "undertest-open.json"), "w") as file:
    json.dump(ARCH, file)
open_clip.add_model_config(os.path.join(os.path.dirname(__file__), "undertest-open.json"))

for config in (sd3_cond.CLIPL_CONFIG, sd3_cond.CLIPG_CONFIG):
    config.update(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=3)
sd3_cond.T5_CONFIG.update(d_ff=128, num_layers=2, vocab_size=512)
sd3_impls.VAEEncoder = partial(sd3_impls.VAEEncoder, ch=32, num_res_blocks=1)
sd3_impls.VAEDecoder = partial(sd3_impls.VAEDecoder, ch=32, num_res_blocks=1)


class Words:
    """In place of a tokenizer that would be downloaded."""

    def __init__(self, start, end, most):
        self.start, self.end, self.most = start, end, most

    def __call__(self, text, add_special_tokens=True, **_):
        if not isinstance(text, str):
            return {"input_ids": [self(each, add_special_tokens)["input_ids"] for each in text]}
        ids = [zlib.crc32(word.encode()) % self.most + 2 for word in text.split()]
        return {"input_ids": [*self.start, *ids, *self.end] if add_special_tokens else ids}

    def get_vocab(self):
        return {}


class Clip:
    from_pretrained = staticmethod(lambda *_, **__: Words([49406], [49407], 49000))


class T5:
    # With padding to two tokens, as the host asks for it to learn the padding.
    @staticmethod
    def from_pretrained(*_, **__):
        return Words([], [1, 0], 500)


for module in (sd3_cond, other_impls):
    module.CLIPTokenizer, module.T5TokenizerFast = Clip, T5

load_model_weights = sd_models.load_model_weights


def load_and_fill(model, checkpoint_info, *args, **kwargs):
    result = load_model_weights(model, checkpoint_info, *args, **kwargs)
    name = os.path.basename(checkpoint_info.filename)
    if name.startswith("undertest-"):
        with torch.no_grad():
            for key, weight in model.named_parameters():
                fill(weight, zlib.crc32((name + key).encode()), key)
    return result


def fill(weight, seed, key):
    numbers = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    if weight.ndim >= 2:
        numbers *= 0.3 if "embedding" in key else 1 / math.sqrt(weight[0].numel())
    elif weight.ndim == 1:
        numbers = 1 + 0.1 * numbers if key.endswith("weight") else 0.05 * numbers
    else:
        return
    weight.copy_(numbers)


sd_models.load_model_weights = load_and_fill
'''

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
    """One of `KINDS`, into `folder`; it works where the webui has `EXTENSION`."""
    make, config = KINDS[kind]
    text = (webui / config).read_text(encoding="utf-8")
    for pattern, small in SMALLER:
        text = re.sub(pattern, small, text)
    file = folder / f"{PREFIX}{kind}.safetensors"
    file.with_suffix(".yaml").write_text(text, encoding="utf-8")
    write_tensors(file, make(Dice()))
    return file
