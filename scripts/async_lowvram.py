"""Async lowvram's script: it tells the adapter what the user chose. Everything else is in lib_async_mover/webui."""

from __future__ import annotations

from modules import scripts

from lib_async_mover import webui

extension = webui.start()


class AsyncLowvramScript(scripts.Script):
    def title(self):
        return "Async lowvram"

    def show(self, is_img2img):
        return scripts.AlwaysVisible if extension else False

    def ui(self, is_img2img):
        return extension.ui(self.elem_id)

    def process_before_every_sampling(self, p, *args, **kwargs):
        extension.before_sampling(p, *args)
