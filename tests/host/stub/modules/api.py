"""The API imports trainings by name."""

from __future__ import annotations

from modules.textual_inversion.textual_inversion import train_embedding

__all__ = ["train_embedding"]
