"""cmd_opts, opts, and the live model."""

from __future__ import annotations

from types import SimpleNamespace

import torch

device = torch.device("cpu")
cmd_opts = SimpleNamespace(lowvram=False, medvram=False, medvram_sdxl=False)
opts = SimpleNamespace(data={})
parallel_processing_allowed = True
sd_model = None
