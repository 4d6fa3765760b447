"""The base class of scripts."""

from __future__ import annotations

AlwaysVisible = object()
scripts_data = []


class Script:
    is_img2img = False

    def elem_id(self, item_id):
        tab = "img2img" if self.is_img2img else "txt2img"
        return f"script_{tab}_{self.title().lower().replace(' ', '_')}_{item_id}"

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass
