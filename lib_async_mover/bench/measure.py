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


@dataclass(frozen=True)
class Measurement:
    """Milliseconds per step, peak of allocated device memory during the steps (None on a CPU), bitwise verdict."""

    ms_per_step: float
    ms_median: float
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
) -> Measurement:
    """Measure `steps` forwards of `unet` as it is set up now.

    Warm-up lasts at least `min_warmup` forwards and then until `settled`, at most `max_warmup`. Compared are all its
    outputs, one more round of all inputs, the last timed output, and a forward after that. Outputs stay on the
    device until a round is over, so that no wait for them hides a race. A `trusted` unet writes the reference if
    nobody has yet.
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

    device.synchronize()
    device.reset_peak()
    for _ in range(LEAD_IN_STEPS):  # the pipeline reaches its rhythm, and nothing waits for it before the clock runs
        step()
    times_ms = device.time_ms(step, steps)
    peak_bytes = device.peak_bytes()
    verdicts.append(reference.matches(0, result[0]))
    verdicts.append(reference.matches(len(reference.inputs) - 1, last.run(unet)))
    progress.advance(steps)
    return Measurement(
        ms_per_step=fmean(times_ms),
        ms_median=median(times_ms),
        peak_bytes=peak_bytes,
        exact=None if None in verdicts else all(verdicts),
        warmup_forwards=warmup_forwards,
    )
