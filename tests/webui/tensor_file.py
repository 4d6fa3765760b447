"""Files of tensors (safetensors), read and written without any library."""

from __future__ import annotations

import json
import random
import struct
from array import array
from math import prod
from pathlib import Path
from typing import NamedTuple


class Values(NamedTuple):
    """A float32 tensor."""

    shape: list[int]
    numbers: array[float]


class Dice:
    """Tensors of random numbers, the same ones for the same seed."""

    def __init__(self, seed: int = 5) -> None:
        self._random = random.Random(seed)

    def normal(self, *shape: int, scale: float = 0.4, mean: float = 0.0) -> Values:
        return Values(list(shape), array("f", (self._random.gauss(mean, scale) for _ in range(prod(shape)))))


def scalar(number: float) -> Values:
    return Values([], array("f", [number]))


def header_of(file: Path) -> dict[str, dict]:
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        return json.loads(opened.read(size))


def shapes_of(file: Path) -> dict[str, list[int]]:
    return {name: entry["shape"] for name, entry in header_of(file).items() if name != "__metadata__"}


def write_tensors(target: Path, tensors: dict[str, Values], metadata: dict[str, str] | None = None) -> None:
    _write(target, {name: ("F32", shape, numbers.tobytes()) for name, (shape, numbers) in tensors.items()}, metadata)


def copy_tensors(source: Path, target: Path, prefix: str) -> None:
    """Those whose name begins with `prefix`, under the rest of their name."""
    copied = {}
    with source.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        for name, entry in header_of(source).items():
            if name.startswith(prefix):
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                copied[name.removeprefix(prefix)] = entry["dtype"], entry["shape"], file.read(end - begin)
    _write(target, copied)


def _write(
    target: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None
) -> None:
    header: dict[str, dict] = {"__metadata__": metadata or {"format": "pt"}}
    size = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [size, size + len(data)]}
        size += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
