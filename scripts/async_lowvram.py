"""Async lowvram's script: it tells the adapter what the user chose. Everything else is in lib_async_mover/webui."""

from __future__ import annotations

from modules import scripts

from lib_async_mover import webui
from lib_async_mover.webui import choice, page

extension = webui.start()
page.register(extension)


class AsyncLowvramScript(scripts.Script):
    def title(self):
        return "Async lowvram"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return page.build(extension, self.elem_id)

    def before_process(self, p, *args):
        if extension:
            extension.before_process(p, *choice.arguments(p, args))

    def process(self, p, *args):
        if extension:
            extension.process(p)

    def process_before_every_sampling(self, p, *args, **kwargs):
        if extension:
            extension.before_sampling(p, *choice.arguments(p, args))
