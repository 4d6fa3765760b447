"""Laid into the webui as an extension: makes trainings repeatable, and possible with a torch newer than the host's."""

from __future__ import annotations

import random
from typing import Any

import torch
from modules import script_callbacks

torch.utils.data.Sampler.__init__ = lambda self, *_: None  # the host gives it an argument that it lost since


def routes(_: Any, app: Any) -> None:
    @app.post("/probe/seed")
    def seed() -> dict:
        """What the host draws without a seed of its own, it draws alike from now on."""
        random.seed(1)
        torch.manual_seed(1)
        return {}


script_callbacks.on_app_started(routes)
