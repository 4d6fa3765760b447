"""What one benchmark run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .budget import Budget
from .errors import BenchError
from .shapes import SHAPES, UNetShape


@dataclass(frozen=True)
class BenchOptions:
    """One run: a model, its inputs, the budgets, and how long to measure.

    - bus_gbps: emulate a bus of this speed (GB/s) for the mover and for stock
    - bus_ratio: emulate the bus on which copying all weights takes this many times a resident step
    - json_path: rows go here, after every row; profile_path: the measured workload goes here, for `plan`

    Raises BenchError for values that cannot be measured.
    """

    model: str
    device: str
    budgets: tuple[Budget, ...]
    batch: int = 2
    size_px: int | None = None
    steps: int = 10
    seed: int = 0
    stock: bool = True
    bus_gbps: float | None = None
    bus_ratio: float | None = None
    json_path: Path | None = None
    profile_path: Path | None = None

    def __post_init__(self) -> None:
        if self.model not in SHAPES:
            raise BenchError(f"there is no model {self.model!r}: choose one of {', '.join(SHAPES)}")
        if self.steps < 1:
            raise BenchError(f"steps must be at least 1, not {self.steps}")
        if self.bus_gbps is not None and self.bus_ratio is not None:
            raise BenchError("give the bus a speed or a ratio, not both")
        for name, value in (("bus speed", self.bus_gbps), ("bus ratio", self.bus_ratio)):
            if value is not None and not 0 < value < float("inf"):
                raise BenchError(f"the {name} must be above 0, not {value}")

    @property
    def shape(self) -> UNetShape:
        """The UNet to build."""
        return SHAPES[self.model]

    @property
    def image_size_px(self) -> int:
        """The image size asked for, or the model's own."""
        return self.size_px or self.shape.default_size_px

    @property
    def dtype(self) -> torch.dtype:
        """float16 on a GPU; float32 on a CPU, which is slow in anything less."""
        return torch.float32 if torch.device(self.device).type == "cpu" else torch.float16
