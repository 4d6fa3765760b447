"""The UNets the benchmark can build: widths, depths and what they take in, one frozen record each.

Parameter counts are those of the published checkpoints' UNets; `build_unet` refuses to go on when a UNet it
built has another count, so that a benchmark never measures something that only resembles the real model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetShape:
    """All that tells one ldm/sgm UNet from another.

    Level i works at 1/2**i of the latent's height and width, with `channels * multipliers[i]` channels, and has
    `transformer_depths[i]` transformer blocks behind each residual block (0 = no attention there).
    Exactly one of `heads` and `head_channels` is given: the number of attention heads, or the width of each.
    """

    name: str
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    transformer_depths: tuple[int, ...]
    middle_depth: int
    context_channels: int
    linear_projections: bool
    heads: int | None = None
    head_channels: int | None = None
    label_channels: int | None = None
    parameters: int | None = None
    default_size_px: int = 512
    latent_channels: int = 4

    @property
    def embedding_channels(self) -> int:
        """Width of the time (and label) embedding that every residual block receives."""
        return 4 * self.channels

    @property
    def size_multiple_px(self) -> int:
        """Image sizes must divide by this: 8 pixels to a latent, halved once per level after the first."""
        return 8 * 2 ** (len(self.multipliers) - 1)

    def head_count(self, width: int) -> int:
        """Number of attention heads in a transformer that is `width` channels wide."""
        if self.heads is not None:
            return self.heads
        if self.head_channels is None:
            raise ValueError(f"shape {self.name!r} gives neither heads nor head_channels")
        return width // self.head_channels


SD15 = UNetShape(
    name="sd15",
    channels=320,
    multipliers=(1, 2, 4, 4),
    res_blocks=2,
    transformer_depths=(1, 1, 1, 0),
    middle_depth=1,
    context_channels=768,
    linear_projections=False,
    heads=8,
    parameters=859_520_964,
)

SDXL = UNetShape(
    name="sdxl",
    channels=320,
    multipliers=(1, 2, 4),
    res_blocks=2,
    transformer_depths=(0, 2, 10),
    middle_depth=10,
    context_channels=2048,
    linear_projections=True,
    head_channels=64,
    label_channels=2816,
    parameters=2_567_463_684,
    default_size_px=1024,
)

# SD1.5's layout at a tenth of its width: a CPU runs it in milliseconds.
TINY = UNetShape(
    name="tiny",
    channels=32,
    multipliers=(1, 2, 4),
    res_blocks=2,
    transformer_depths=(1, 1, 1),
    middle_depth=1,
    context_channels=64,
    linear_projections=False,
    heads=4,
    default_size_px=128,
)

SHAPES: dict[str, UNetShape] = {shape.name: shape for shape in (SD15, SDXL, TINY)}
