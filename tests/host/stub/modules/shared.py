"""cmd_opts, opts, and the live model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

device = torch.device("cpu")
cmd_opts = SimpleNamespace(lowvram=False, medvram=False, medvram_sdxl=False, api_auth=None)
parallel_processing_allowed = True
sd_model = None
config_filename = "config.json"


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None):
        self.default, self.label, self.component = default, label, component
        self.component_args, self.onchange, self.section = component_args, onchange, section
        self.comment_after = ""

    def info(self, text):
        self.comment_after += f"<span class='info'>({text})</span>"
        return self


class Options:
    """Settings: `data` is what the file has, `data_labels` what extensions have announced."""

    def __init__(self):
        self.data, self.data_labels = {}, {}

    def __getattr__(self, key):
        if key in ("data", "data_labels") or key not in self.data:
            raise AttributeError(key)
        return self.data[key]

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def set(self, key, value, is_api=False, run_callbacks=True):
        if self.data.get(key) == value:
            return False
        self.data[key] = value
        onchange = self.data_labels[key].onchange
        if run_callbacks and onchange is not None:
            onchange()
        return True

    def save(self, filename):
        Path(filename).write_text(json.dumps(self.data))


opts = Options()
