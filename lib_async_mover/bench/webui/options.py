"""What is asked for: the webui, the configurations to start it with, and the image to make."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parents[3]  # this extension
FLAGS = {"none": "", "medvram": "--medvram", "lowvram": "--lowvram", "async": "--async-lowvram"}


@dataclass(frozen=True)
class Configuration:
    """One way to start the webui. `buffer_mb` (0 is auto) and `extension`, a checkout of it, are None without it."""

    flag: str
    buffer_mb: int | None = None
    extension: Path | None = None
    label: str = ""
    vram_gb: float | None = None

    @property
    def name(self) -> str:
        """As a table shows it: "--async-lowvram, 512 MB"."""
        buffer = {None: "", 0: "auto"}.get(self.buffer_mb, f"{self.buffer_mb} MB")
        return ", ".join(filter(None, (self.flag or "no flag", buffer, self.label)))


@dataclass(frozen=True)
class Options:
    """The command line. Sizes in pixels, GB are GiB, `limit_s` counts from the start of the command.

    - checkpoint: None is the webui's own choice; other_checkpoint: what `ram` switches to, None for a second name of it
    - extensions: of others, to be copied beside ours; versions: checkouts of ours to compare, each with its label
    - size_px: None is the model's own
    - rounds: of two images with few and with all steps each, for ms a step
    - vram_gb: cards to play, () for the card as it is; bus_gbps: a bus to play for our own copies, in GB/s (1e9)
    """

    webui: Path
    python: str | None = None
    data_dir: Path | None = None
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = tuple(FLAGS)
    buffers: tuple[int, ...] = (0,)
    versions: tuple[tuple[str, Path], ...] = (("", HERE),)
    extensions: tuple[Path, ...] = ()
    checkpoint: Path | None = None
    other_checkpoint: Path | None = None
    random: str | None = None
    cache_dir: Path | None = None
    size_px: int | None = None
    steps: int = 20
    batch: int = 1
    seed: int = 1
    lora: Path | None = None
    hires: float | None = None
    controlnet: Path | None = None
    controlnet_lowvram: bool = False
    vram_gb: tuple[float, ...] = ()
    bus_gbps: float | None = None
    rounds: int = 3
    ram: bool = False
    small_cards: bool = False
    px_step: int = 64
    most_px: int = 2048
    most_batch: int = 32
    limit_s: float | None = None
    json_path: Path | None = None

    def configurations(self) -> list[Configuration]:
        """In the order in which they run. Small cards share a start, and are played one after another."""
        cards = (max(self.vram_gb),) if self.small_cards else self.vram_gb or (None,)
        found = []
        for card, flag in product(cards, self.flags):
            if flag != "async":
                found.append(Configuration(FLAGS[flag], vram_gb=card))
                continue
            for (label, folder), buffer_mb in product(self.versions, self.buffers):
                found.append(Configuration(FLAGS[flag], buffer_mb, folder, label, card))
        return found

    @property
    def kind(self) -> str:
        """Of the rows: "images", "ram" or "cards"."""
        return "cards" if self.small_cards else "ram" if self.ram else "images"

    @property
    def model(self) -> str | None:
        """A short name of what makes the images."""
        return self.checkpoint.stem if self.checkpoint else self.random

    @property
    def extras(self) -> str:
        """What the image has beside its size and steps: "2 at once, with a LoRA"."""
        return ", ".join(filter(None, (
            f"{self.batch} at once" if self.batch > 1 else "",
            f"LoRA {self.lora.stem}" if self.lora else "",
            f"hires × {self.hires:g}" if self.hires else "",
            f"ControlNet {self.controlnet.stem}" if self.controlnet else "",
            "low VRAM ticked" if self.controlnet and self.controlnet_lowvram else "",
        )))  # fmt: skip
