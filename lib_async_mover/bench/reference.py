"""The outputs that every mover must reproduce bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import BenchError
from .inputs import Inputs


class Reference:
    """Several different inputs, and, once recorded, the UNet's outputs for them, kept on the CPU."""

    def __init__(self, inputs: list[Inputs]) -> None:
        self.inputs = inputs
        self._expected: list[Tensor] = []

    @property
    def recorded(self) -> bool:
        """Whether there are outputs to compare with."""
        return bool(self._expected)

    def run_all(self, unet: nn.Module) -> list[Tensor]:
        """One forward per input, back to back, outputs left on the device: nothing waits in between."""
        return [inputs.run(unet) for inputs in self.inputs]

    def record(self, outputs: list[Tensor]) -> None:
        """Keep `outputs`, one per input. Raises BenchError if they could not tell right from wrong."""
        expected = [output.cpu() for output in outputs]
        for output in expected:
            if not torch.isfinite(output).all():
                raise BenchError("the UNet's output is not finite with these weights: try another --seed")
            if float(output.float().std()) == 0.0:
                raise BenchError("the UNet's output is constant with these weights: try another --seed")
        self._expected = expected

    def matches(self, index: int, output: Tensor) -> bool | None:
        """Whether `output` for input `index` is bitwise what was recorded; None if nothing was. Waits for it."""
        if not self._expected:
            return None
        return torch.equal(output.cpu(), self._expected[index])

    def matches_all(self, outputs: list[Tensor]) -> bool | None:
        """`matches` for one output per input."""
        verdicts = [self.matches(index, output) for index, output in enumerate(outputs)]
        return None if None in verdicts else all(verdicts)
