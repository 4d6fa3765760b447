"""The accordion that is an input."""

from __future__ import annotations

from contextlib import nullcontext


class InputAccordion:
    def __init__(self, value, **kwargs):
        self.value = value
        self.label = kwargs.get("label")
        self.elem_id = kwargs.get("elem_id")

    def extra(self):
        return nullcontext()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None
