"""The UNets the benchmark can build: widths, depths and what they take in, one frozen record each.

Parameter counts are those of the published checkpoints; `build_unet` and `build_controlnet` refuse to go on when what
they built has another count, so that a benchmark never measures something that only resembles the real model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetShape:
    """All that tells one ldm/sgm UNet from another.

    Level i works at 1/2**i of the latent's height and width, with `channels * multipliers[i]` channels, and has
    `transformer_depths[i]` transformer blocks behind each residual block (0 = no attention there).
    One of `heads` and `head_channels` is given: the number of attention heads, or the width of each.
    """

    name: str
    channels: int
    multipliers: tuple[int, ...]
    transformer_depths: tuple[int, ...]
    middle_depth: int
    context_channels: int
    linear_projections: bool
    res_blocks: int = 2
    heads: int = 0
    head_channels: int = 0
    label_channels: int | None = None
    parameters: int | None = None
    control_parameters: int | None = None  # of the published ControlNets for it
    default_size_px: int = 512
    latent_channels: int = 4


SD15 = UNetShape(
    "sd15", channels=320, multipliers=(1, 2, 4, 4), transformer_depths=(1, 1, 1, 0), middle_depth=1,
    context_channels=768, linear_projections=False, heads=8, parameters=859_520_964,
    control_parameters=361_279_120,
)  # fmt: skip
SDXL = UNetShape(
    "sdxl", channels=320, multipliers=(1, 2, 4), transformer_depths=(0, 2, 10), middle_depth=10,
    context_channels=2048, linear_projections=True, head_channels=64, label_channels=2816,
    parameters=2_567_463_684, control_parameters=1_251_014_160, default_size_px=1024,
)  # fmt: skip
# SD1.5's layout at a tenth of its width: a CPU runs it in milliseconds.
TINY = UNetShape(
    "tiny", channels=32, multipliers=(1, 2, 4), transformer_depths=(1, 1, 1), middle_depth=1,
    context_channels=64, linear_projections=False, heads=4, default_size_px=128,
)  # fmt: skip

SHAPES: dict[str, UNetShape] = {shape.name: shape for shape in (SD15, SDXL, TINY)}
