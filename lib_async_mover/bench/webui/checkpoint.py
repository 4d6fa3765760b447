"""A random checkpoint of full size: its names and shapes come from the webui's own classes and configurations."""

from __future__ import annotations

import json
import math
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.progress import progress
from lib_async_mover.bench.webui.options import Options
from lib_async_mover.bench.webui.server import interpreter

KINDS = ("sd15", "sdxl")
LISTING = Path(__file__).with_name("listing.py")
Shapes = dict[str, tuple[list[int], str]]


def random_checkpoint(options: Options) -> Path:
    """Made once and kept. Raises BenchError where the webui's classes cannot be built."""
    assert options.random is not None
    folder = options.cache_dir or Path.home() / ".cache" / "async-lowvram"
    file = folder / f"random-{options.random}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shapes = shapes_of(options)
        unfinished = file.with_suffix(".part")
        with unfinished.open("wb") as target, progress(f"{file.name}", len(shapes), "tensor") as advance:
            for _ in write_random(shapes, target):
                advance(1)
        unfinished.replace(file)
    return file


def shapes_of(options: Options) -> Shapes:
    """Shape and type of every tensor, asked of the webui's interpreter. Raises BenchError with its words."""
    command = [interpreter(options), str(LISTING), str(options.random)]
    ended = subprocess.run(command, cwd=options.webui, capture_output=True, text=True)
    if ended.returncode:
        raise BenchError(f"no random {options.random}, use --checkpoint: {ended.stderr.strip()[-800:]}")
    return {name: (shape, kind) for name, (shape, kind) in json.loads(ended.stdout.splitlines()[-1]).items()}


def write_random(shapes: Shapes, target: BinaryIO) -> Iterator[str]:
    """As safetensors, one tensor after another; yields the name of each that is written."""
    header: dict[str, Any] = {}
    at = 0
    for name, (shape, kind) in shapes.items():
        size = math.prod(shape) * (2 if kind == "F16" else 8)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.write(struct.pack("<Q", len(text)) + text)
    generator = torch.Generator().manual_seed(0)
    for name, (shape, kind) in shapes.items():
        target.write(_values(name, shape, kind, generator).numpy().tobytes())
        yield name


def _values(name: str, shape: list[int], kind: str, generator: torch.Generator) -> Tensor:
    """Tame enough for fp16: variance about 1 all through, and no tensor constant, so that a wrong one would show."""
    if kind == "I64":
        return torch.arange(math.prod(shape))  # positions
    if not shape:
        return torch.tensor(4.6).half()  # CLIP's scale of logits
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (values * 0.1 + 1 if name.endswith("weight") else values * 0.05).half()
    deviation = 0.3 if "embedding" in name else math.prod(shape[1:]) ** -0.5
    return values.mul_(deviation).half()
