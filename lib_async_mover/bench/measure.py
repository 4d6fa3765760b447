"""One mover's measurement: warm up, compare, time, compare again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor, nn

from .device import Device
from .progress import Progress
from .reference import Reference

LEAD_IN_STEPS = 2
ROUNDS = 10  # of the steps, in turns with the resident UNet where there is one beside


@dataclass(frozen=True)
class Measurement:
    """Milliseconds per step, peak of allocated device memory during the steps (None on a CPU), bitwise verdict.

    `beside_ms` is what a step of the resident UNet took in the same minutes, in turns with the measured one.
    """

    ms_per_step: float
    ms_median: float
    beside_ms: float | None
    peak_bytes: int | None
    exact: bool | None
    warmup_forwards: int


@torch.no_grad()
def measure(
    unet: nn.Module,
    device: Device,
    reference: Reference,
    steps: int,
    progress: Progress,
    min_warmup: int = 3,
    max_warmup: int = 3,
    settled: Callable[[], bool] = lambda: True,
    trusted: bool = False,
    beside: nn.Module | None = None,
) -> Measurement:
    """Measure `steps` forwards of `unet` as it is set up now.

    Warm-up lasts at least `min_warmup` forwards and then until `settled`, at most `max_warmup`. Compared are all its
    outputs, one more round of all inputs, the last timed output, and a forward after that. Outputs stay on the
    device until a round is over, so that no wait for them hides a race. A `trusted` unet writes the reference if
    nobody has yet. A UNet `beside` is timed in turns with this one: a machine's speed drifts by more than what is to
    be told apart here, and both drift alike.
    """
    verdicts: list[bool | None] = []
    warmup: list[tuple[int, Tensor]] = []
    while len(warmup) < min_warmup or (len(warmup) < max_warmup and not settled()):
        index = len(warmup) % len(reference.inputs)
        warmup.append((index, reference.inputs[index].run(unet)))
        if 3 * len(warmup) > 2 * max_warmup:  # a mover reads its own measurements once the device is done with them
            device.synchronize()
        progress.advance()

    outputs = reference.run_all(unet)
    if trusted and not reference.recorded:
        reference.record(outputs)
    verdicts.append(reference.matches_all(outputs))
    verdicts += [reference.matches(index, output) for index, output in warmup]
    warmup_forwards = len(warmup)
    del outputs, warmup
    progress.advance(len(reference.inputs))

    timed, last = reference.inputs[0], reference.inputs[-1]
    result: list[Tensor] = []

    def step() -> None:
        result[:] = [timed.run(unet)]

    rounds_ms: list[list[float]] = []
    beside_ms: list[list[float]] = []
    peaks: list[int | None] = []
    for _ in range(ROUNDS):
        rounds_ms.append(_round(device, step, -(-steps // ROUNDS)))
        peaks.append(device.peak_bytes())
        if beside is not None:
            beside_ms.append(_round(device, lambda: timed.run(beside), -(-steps // ROUNDS)))
    peak_bytes = max((peak for peak in peaks if peak is not None), default=None)
    verdicts.append(reference.matches(0, result[0]))
    verdicts.append(reference.matches(len(reference.inputs) - 1, last.run(unet)))
    progress.advance(steps)
    return Measurement(
        ms_per_step=median(map(fmean, rounds_ms)),
        ms_median=median(ms for round_ms in rounds_ms for ms in round_ms),
        beside_ms=median(map(fmean, beside_ms)) if beside_ms else None,
        peak_bytes=peak_bytes,
        exact=None if None in verdicts else all(verdicts),
        warmup_forwards=warmup_forwards,
    )


def _round(device: Device, step: Callable[[], object], steps: int) -> list[float]:
    """Milliseconds of each of some steps. Also begins a new count of the peak."""
    device.synchronize()
    device.reset_peak()
    for _ in range(LEAD_IN_STEPS):  # the pipeline reaches its rhythm, and nothing waits for it before the clock runs
        step()
    return device.time_ms(step, steps)
