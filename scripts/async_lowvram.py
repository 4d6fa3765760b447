"""Async lowvram's script: it tells the adapter what the user chose. Everything else is in lib_async_mover/webui."""

from __future__ import annotations

from modules import scripts

from lib_async_mover import webui

lifecycle, build_page = webui.start()


class AsyncLowvramScript(scripts.Script):
    def title(self):
        return "Async lowvram"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return build_page(self.elem_id)

    def before_process(self, p, *args):
        if lifecycle:
            lifecycle.before_process(p, args)

    def process(self, p, *args):
        if lifecycle:
            lifecycle.process(p)

    def process_before_every_sampling(self, p, *args, **kwargs):
        if lifecycle:
            lifecycle.before_sampling(p, args)

    def postprocess(self, p, processed, *args):
        if lifecycle:
            lifecycle.postprocess()
