"""A LoRA for whatever SD1 checkpoint is loaded, written from the checkpoint's own header."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from real_webui import RealWebui

NAME = "underTest"
PROMPT = f"a cat, (red:1.2) hat <lora:{NAME}:1>"
UNET = "model.diffusion_model."
# kohya's name, the checkpoint's name
LAYERS = [
    (f"lora_unet_{kohya}_{part.replace('.', '_')}", f"{UNET}{block}.{part}.weight")
    for kohya, block in (
        ("down_blocks_0_attentions_0", "input_blocks.1.1"),
        ("mid_block_attentions_0", "middle_block.1"),
        ("up_blocks_3_attentions_2", "output_blocks.11.1"),
    )
    for part in (
        "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_k", "transformer_blocks.0.attn1.to_out.0",
        "transformer_blocks.0.ff.net.2", "proj_in",
    )
]  # fmt: skip


def shapes_of(checkpoint: Path) -> dict[str, list[int]]:
    with checkpoint.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return {name: entry.get("shape") for name, entry in json.loads(file.read(size)).items()}


def write_lora(checkpoint: Path, target: Path, rank: int = 2, seed: int = 5) -> int:
    """Write `target`; returns the number of layers it changes (0: this checkpoint is no SD1)."""
    shapes, numbers = shapes_of(checkpoint), random.Random(seed)
    tensors: dict[str, tuple[list[int], list[float]]] = {}
    for name, key in LAYERS:
        if key not in shapes:
            continue
        out, into, *kernel = shapes[key]
        for part, shape in (("lora_down", [rank, into, *kernel]), ("lora_up", [out, rank, *(1 for _ in kernel)])):
            count = 1
            for extent in shape:
                count *= extent
            tensors[f"{name}.{part}.weight"] = (shape, [numbers.gauss(0, 0.4) for _ in range(count)])
        tensors[f"{name}.alpha"] = ([], [float(rank)])
    header, data = {"__metadata__": {"ss_network_module": "networks.lora"}}, b""
    for name, (shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return len(tensors) // 3


def keep_lora(server: RealWebui) -> bool:
    """Put the LoRA where this webui looks for it; False for a checkpoint it cannot be made for."""
    loaded = server.call("/sdapi/v1/options")["sd_model_checkpoint"]
    files = {entry["title"]: entry["filename"] for entry in server.call("/sdapi/v1/sd-models")}
    checkpoint = Path(files.get(loaded) or next(iter(files.values())))
    layers = write_lora(checkpoint, server.data_dir / "lora" / f"{NAME}.safetensors")
    server.call("/sdapi/v1/refresh-loras", {})
    return layers > 0
