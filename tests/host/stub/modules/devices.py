"""`device` is where computing happens; on this machine that is the CPU too."""

from __future__ import annotations

import torch

cpu = torch.device("cpu")
device = torch.device("cpu")
gc_calls = 0


def torch_gc():
    global gc_calls
    gc_calls += 1
