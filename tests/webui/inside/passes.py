"""Laid into the webui as an extension: what people's scripts do with a generation. A pass within a pass, as ADetailer
makes it, with nobody's hooks; one in inference mode; and the page's img2img batch, for which the API has no verb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import img2img, processing, scripts, shared


class NestedPass(scripts.Script):
    def title(self) -> str:
        return "nested pass"

    def run(self, p: Any, *_: Any) -> Any:
        made = processing.process_images(p)
        again = processing.StableDiffusionProcessingImg2Img(
            sd_model=shared.sd_model, init_images=[made.images[0]], prompt=p.prompt, seed=p.seed, steps=p.steps,
            width=p.width, height=p.height, sampler_name=p.sampler_name, denoising_strength=0.5,
            outpath_samples=p.outpath_samples, do_not_save_samples=True,
        )  # fmt: skip
        return processing.process_images(again)


class InferenceMode(scripts.Script):
    def title(self) -> str:
        return "inference mode"

    def run(self, p: Any, *_: Any) -> Any:
        with torch.inference_mode():
            return processing.process_images(p)


class BatchOfFiles(scripts.Script):
    def title(self) -> str:
        return "batch of files"

    def show(self, is_img2img: bool) -> bool:
        return is_img2img

    def ui(self, is_img2img: bool) -> list:
        import gradio

        return [gradio.Textbox(label="Folder")]

    def run(self, p: Any, folder: str) -> Any:
        for number in range(3):
            p.init_images[0].rotate(90 * number).save(Path(folder) / f"{number}.png")
        return img2img.process_batch(p, folder, "", "", [0, *p.script_args[1:]])  # 0: no script of the list
