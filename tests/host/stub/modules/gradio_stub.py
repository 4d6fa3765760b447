"""A few components of gradio, for a machine without it."""

from __future__ import annotations

from contextlib import nullcontext


class Component:
    def __init__(self, value=None, **kwargs):
        self.value = value
        self.label = kwargs.get("label")
        self.minimum = kwargs.get("minimum")
        self.maximum = kwargs.get("maximum")


class Slider(Component):
    def __init__(self, minimum=0, maximum=100, value=None, **kwargs):
        super().__init__(value, minimum=minimum, maximum=maximum, **kwargs)


class Number(Component):
    pass


class HTML(Component):
    pass


class Row(nullcontext):
    def __init__(self, **kwargs):
        super().__init__()


Column = Row
