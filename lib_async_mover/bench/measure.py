"""One row's measurement: warm up, compare, time, compare again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean, median

import torch
from torch import Tensor, nn

from lib_async_mover.bench.device import Device
from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.inputs import Inputs
from lib_async_mover.bench.row import Row

LEAD_IN_STEPS = 2
ROUNDS = 10  # of the steps, in turns with the resident UNet where there is one beside
MAX_WARMUP = 60  # a mover settles in a quarter of that


class Reference:
    """Several different inputs, and, once recorded, the outputs for them that every mover must reproduce bit by bit."""

    def __init__(self, inputs: list[Inputs]) -> None:
        self.inputs = inputs
        self.expected: list[Tensor] = []

    def record(self, outputs: list[Tensor]) -> None:
        """Keep `outputs`, one per input. Raises BenchError if they could not tell right from wrong."""
        for output in outputs:
            if not torch.isfinite(output).all() or float(output.float().std()) == 0.0:
                raise BenchError("the UNet's output is constant or not finite with these weights: try another --seed")
        self.expected = [output.cpu() for output in outputs]

    def agrees(self, outputs: Iterable[tuple[int, Tensor]]) -> bool | None:
        """Whether each output is bitwise what was recorded for its input; None if nothing was. Waits for them."""
        if not self.expected:
            return None
        return all(torch.equal(output.cpu(), self.expected[index]) for index, output in outputs)


@torch.no_grad()
def measure(
    row: Row,
    unet: nn.Module,
    device: Device,
    reference: Reference,
    advance: Callable[[int], object],
    warmup: int = 3,
    settled: Callable[[], bool] = lambda: True,
    beside: nn.Module | None = None,
) -> int:
    """Measure `row.steps` forwards of `unet` as it is set up now: fills in the row's times, verdict and warm-up.

    Warm-up lasts `warmup` forwards and then until `settled`. Compared are all its outputs, one more round of all
    inputs, the last timed output, and a forward after that. Outputs stay on the device until a round is over, so that
    no wait for them hides a race. What is not the mover writes the reference if nobody has yet. A UNet `beside` is
    timed in turns with this one: a machine's speed drifts by more than what is to be told apart, and both drift alike.
    Returns the peak of allocated device memory during the steps, in bytes.
    """
    inputs = reference.inputs
    seen: list[tuple[int, Tensor]] = []
    while len(seen) < warmup or (len(seen) < MAX_WARMUP and not settled()):
        index = len(seen) % len(inputs)
        seen.append((index, inputs[index].run(unet)))
        if len(seen) > MAX_WARMUP // 2:  # a mover reads its own measurements once the device is done with them
            device.synchronize()
        advance(1)
    row.warmup_forwards = len(seen)
    outputs = [one.run(unet) for one in inputs]
    if row.mover != "async" and not reference.expected:
        reference.record(outputs)
    verdicts = [reference.agrees([*seen, *enumerate(outputs)])]
    seen.clear()
    outputs.clear()

    def step() -> None:
        outputs[:] = [inputs[0].run(unet)]

    steps = -(-row.steps // ROUNDS)
    rounds_ms: list[list[float]] = []
    beside_ms: list[list[float]] = []
    peak_bytes = 0
    for _ in range(ROUNDS):
        rounds_ms.append(_round(device, step, steps))
        peak_bytes = max(peak_bytes, device.peak_bytes())
        if beside is not None:
            beside_ms.append(_round(device, lambda: inputs[0].run(beside), steps))
    verdicts.append(reference.agrees([(0, outputs[0]), (len(inputs) - 1, inputs[-1].run(unet))]))
    advance(row.steps)
    row.ms_per_step = median(map(fmean, rounds_ms))
    row.ms_median = median(ms for round_ms in rounds_ms for ms in round_ms)
    if beside_ms:
        row.resident_ms, row.resident_beside = median(map(fmean, beside_ms)), True
    row.exact = None if None in verdicts else all(verdicts)
    return peak_bytes


def _round(device: Device, step: Callable[[], object], steps: int) -> list[float]:
    """Milliseconds of each of some steps. Also begins a new count of the peak."""
    device.synchronize()
    device.reset_peak()
    for _ in range(LEAD_IN_STEPS):  # the pipeline reaches its rhythm, and nothing waits for it before the clock runs
        step()
    return device.time_ms(step, steps)
