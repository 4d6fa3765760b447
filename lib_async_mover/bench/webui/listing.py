"""Run in the webui's folder by its interpreter: prints {name: [shape, "F16" or "I64"]} of a checkpoint's tensors.

`python listing.py sd15|sdxl`. Built on the meta device, of the webui's own classes, and without the network.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

REPOSITORIES = Path("repositories").resolve()
SGM = REPOSITORIES / "generative-models"
CLIP_L = dict(  # openai/clip-vit-large-patch14's text model, as in its config.json
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    max_position_embeddings=77, projection_dim=768,
)  # fmt: skip


def class_of(path: str) -> Any:
    """By its dotted name."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def parts(kind: str) -> dict[str, torch.nn.Module]:
    """The model's parts, by the prefix of their names in a checkpoint."""
    from omegaconf import OmegaConf
    from transformers import CLIPTextConfig, CLIPTextModel

    file = Path("configs/v1-inference.yaml") if kind == "sd15" else SGM / "configs/inference/sd_xl_base.yaml"
    params: Any = OmegaConf.to_container(OmegaConf.load(file))["model"]["params"]
    unet, vae = params["unet_config" if kind == "sd15" else "network_config"], params["first_stage_config"]
    if kind == "sdxl":  # else it asks for xformers
        unet["params"]["spatial_transformer_attn_type"] = "softmax"
        vae["params"]["ddconfig"]["attn_type"] = "vanilla"
    with torch.device("meta"):
        found = {
            "model.diffusion_model.": class_of(unet["target"])(**unet["params"]),
            "first_stage_model.": class_of(vae["target"])(**vae["params"]),
        }
        text = CLIPTextModel(CLIPTextConfig(**CLIP_L))
        if kind == "sd15":
            return {**found, "cond_stage_model.transformer.": text}
        import open_clip

        big = open_clip.create_model("ViT-bigG-14", pretrained=None, device="meta")
        del big.visual
    return {**found, "conditioner.embedders.0.transformer.": text, "conditioner.embedders.1.model.": big}


def main(kind: str) -> None:
    """Prints it as the last line: what is imported may print too."""
    sys.path[:1] = [str(REPOSITORIES / "stable-diffusion-stability-ai"), str(SGM)]
    for name in ("taming.modules.losses.lpips", "sgm.data"):  # as the webui does: imported there, and not needed
        sys.modules[name] = dummy = ModuleType(name)
        dummy.LPIPS = dummy.StableDataModuleFromConfig = None  # type: ignore[attr-defined]
    table = {
        prefix + name: [list(tensor.shape), "I64" if tensor.dtype == torch.int64 else "F16"]
        for prefix, part in parts(kind).items()
        for name, tensor in part.state_dict().items()
        if not name.startswith("loss")
    }
    print()
    print(json.dumps(table))


if __name__ == "__main__":
    main(sys.argv[1])
