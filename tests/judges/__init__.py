"""The engine judged by models that others wrote: small ones of diffusers and transformers, with random weights."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when they are imported


def needed() -> None:
    """Skips the module that calls it where they are not installed, or too new for this torch."""
    if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 6):
        pytest.skip(f"this diffusers and transformers do not run on torch {torch.__version__}", allow_module_level=True)
    for package in ("diffusers", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed (tests/requirements.txt)")
