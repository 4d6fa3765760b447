"""Other people's extensions, as they are published, beside ours: the same pixels as beside stock --lowvram.

Run where WEBUI_EXTENSIONS names a folder with checkouts of them (and with what they import, in `site-packages`). The
models that they need are small and random, made for the checkpoint under test, which must be an SD1.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_file import PROMPT, keep_lora
from real_webui import RealWebui, gradient_png, other_extension, python_of, webui_dir

CONTROLNET = "scripts/controlnet.py"
ADETAILER = "scripts/!adetailer.py"
TILED = "scripts/tilevae.py"
ANIMATEDIFF = "scripts/animatediff.py"
Requests = dict[str, dict[str, Any]]

YOLO = """
import sys, torch
from ultralytics import YOLO
torch.manual_seed(1)
model = YOLO("yolov8n.yaml")
head = model.model.model[-1]
with torch.no_grad():
    for branch in head.cv3:
        branch[-1].bias.fill_(2.0)
model.save(sys.argv[1])
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """In place of the installation's folder of models, where extensions would make folders of their own."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("ControlNet", "adetailer"):
        (folder / name).mkdir()
    return folder


class Beside:
    """A webui with other extensions: `server(*flags, extension=…)`."""

    def __init__(self, real_webui, models: Path, markers: tuple[str, ...]) -> None:
        found = [other_extension(marker) for marker in markers]
        missing = [marker for marker, path in zip(markers, found, strict=True) if path is None]
        if missing:
            pytest.skip(f"no checkout with {', '.join(missing)} in the folder that WEBUI_EXTENSIONS names")
        self._others = tuple(filter(None, found))
        self._real_webui = real_webui
        self._models = models
        self.control_models = models / "ControlNet"
        folder = webui_dir()
        assert folder is not None
        self._flags = ["--models-dir", str(models), "--ckpt-dir", str(folder / "models" / "Stable-diffusion")]
        if ADETAILER in markers:
            self._flags.append("--ad-no-huggingface")

    def server(self, *flags: str, extension: bool = True) -> RealWebui:
        server = self._real_webui(
            *flags, *self._flags, extension=extension, others=self._others, inside=("small_control",)
        )
        keep_lora(server)
        server.call("/probe/small-control", {"folder": str(self.control_models)})
        return server


def compare(beside: Beside, requests: Requests) -> None:
    """Every request beside stock --lowvram without ours, with the flag, and toggled on a resident model."""
    stock = beside.server("--lowvram", extension=False)
    plain = stock.image()
    expected = {name: stock.image(**body) for name, body in requests.items()}
    assert stock.image() == plain
    stock.check_quiet()
    assert plain not in expected.values()
    assert len(set(expected.values())) == len(expected), expected

    server = beside.server("--async-lowvram")
    half = weights_mib(server) // 2
    check(server, requests, expected, plain, script=[True, half])
    assert streams(server)

    server = beside.server()
    check(server, requests, expected, plain, script=[True, half])
    assert streams(server)
    some = dict(list(requests.items())[:3])
    check(server, some, expected, plain, script=[False, half])
    assert not server.streams
    check(server, some, expected, plain, script=[True, half])
    assert streams(server)


def check(server: RealWebui, requests: Requests, expected: dict[str, str], plain: str, script: list[Any]) -> None:
    found = {name: server.image(**body, script=script) for name, body in requests.items()}
    assert {name: pixels for name, pixels in found.items() if pixels != expected[name]} == {}
    assert server.image(script=script) == plain, "something stayed behind"
    server.check_quiet()


def weights_mib(server: RealWebui) -> int:
    server.image(script=[True, 0])
    server.image(script=[True, 0])
    return int(server.unet()["weights_mib"])


def streams(server: RealWebui) -> bool:
    unet = server.unet()
    return unet["streamed_units"] > 0 and unet["bytes_per_step"] > 0


def control(module: str, model: str = "None", **unit: Any) -> dict[str, Any]:
    body = {"enabled": True, "module": module, "model": model, "image": gradient_png(), "processor_res": 256}
    return {"alwayson_scripts": {"controlnet": {"args": [body | unit]}}}


def half_mask() -> str:
    """White below, black above."""
    from PIL import Image

    mask = Image.new("L", (256, 256))
    mask.paste(255, (0, 128, 256, 256))
    return png(mask)


def png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image_embedding() -> str:
    """What CLIP's vision model would say of an image."""
    buffer = io.BytesIO()
    torch.save({"image_embeds": torch.linspace(-1, 1, 16)[None]}, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def test_controlnet(real_webui, models):
    with_mask = {"mask": half_mask()}
    compare(Beside(real_webui, models, (CONTROLNET,)), {
        "a network": control("none", "smallcontrol"),
        "in low VRAM": control("none", "smallcontrol", low_vram=True, weight=0.7),
        # The webui's count lags by one: it says 0, 0 and 1 of 3 steps.
        "all but the last step": control("none", "smallcontrol", guidance_end=0.2),
        "two units": {"alwayson_scripts": {"controlnet": {"args": [
            *control("none", "smallcontrol")["alwayson_scripts"]["controlnet"]["args"],
            *control("reference_only")["alwayson_scripts"]["controlnet"]["args"],
        ]}}},
        "reference": control("reference_only"),
        "reference by group norm": control("reference_adain+attn", low_vram=True),
        "inpaint, VAE inside the UNet": control("inpaint_only", "smallcontrol", **with_mask),
        "colours, VAE inside the UNet": control("tile_colorfix", "smallcontrol"),
        "a control-LoRA": control("none", "smallcontrollora"),
        "a control-LoRA in low VRAM": control("none", "smallcontrollora", low_vram=True, weight=0.7),
        "an IP-Adapter": control(
            "ip-adapter_clip_sd15", "ip-adapter_small", ipadapter_input=[image_embedding()]),
        "with a LoRA": control("none", "smallcontrol") | {"prompt": PROMPT},
        "a control-LoRA with a LoRA": control("none", "smallcontrollora") | {"prompt": PROMPT},
        "img2img": control("none", "smallcontrol") | {"verb": "img2img"},
        "hires fix": control("none", "smallcontrol") | {"verb": "hires"},
    })  # fmt: skip


def test_tiled_vae_and_tiled_diffusion(real_webui, models):
    vae = {"tiled vae": {"args": [True, 128, 8, True, True, True, False]}}
    diffusion = {
        method: {"tiled diffusion": {"args": [
            True, method, False, True, 256, 256, 16, 16, 8, 2, "None", 1.0, False, 10, 1, 1, 64, False, False, False,
            False,
        ]}}
        for method in ("MultiDiffusion", "Mixture of Diffusers")
    }  # fmt: skip
    slow = {"tiled vae": {"args": [True, 128, 8, True, False, False, False]}}
    compare(Beside(real_webui, models, (TILED,)), {
        "VAE in tiles": {"alwayson_scripts": vae},
        "VAE in tiles, exactly": {"alwayson_scripts": slow},
        "VAE in tiles, both ways": {"alwayson_scripts": vae, "verb": "img2img"},
        "VAE in tiles, hires fix": {"alwayson_scripts": vae, "verb": "hires"},
        **{method: {"alwayson_scripts": args, "verb": "img2img"} for method, args in diffusion.items()},
        "both": {"alwayson_scripts": vae | diffusion["MultiDiffusion"], "verb": "img2img"},
        "with a LoRA": {"alwayson_scripts": diffusion["Mixture of Diffusers"], "prompt": PROMPT, "verb": "img2img"},
    })  # fmt: skip


def test_animatediff(real_webui, models):
    def frames(**more: Any) -> dict[str, Any]:
        unit = {"enable": True, "model": "smallmotion.safetensors", "video_length": 4, "batch_size": 4,
                "format": ["Frame", "PNG"]}  # fmt: skip
        return {"alwayson_scripts": {"animatediff": {"args": [unit | more]}}, "width": 128, "height": 128}

    compare(Beside(real_webui, models, (ANIMATEDIFF,)), {
        "frames": frames(),
        "more than fit at once": frames(video_length=6, batch_size=4, overlap=1),
        "with a LoRA": frames() | {"prompt": PROMPT},
        "img2img": frames() | {"verb": "img2img"},
    })  # fmt: skip


def test_adetailer(real_webui, models):
    beside = Beside(real_webui, models, (ADETAILER,))
    found_in = os.environ["WEBUI_EXTENSIONS"]
    packages = {**os.environ, "PYTHONPATH": str(Path(found_in) / "site-packages"), "YOLO_CONFIG_DIR": str(models)}
    folder = webui_dir()
    assert folder is not None
    command = [python_of(folder), "-c", YOLO, str(models / "adetailer" / "small.pt")]
    subprocess.run(command, env=packages, check=True, timeout=120, capture_output=True)

    def detail(**more: Any) -> dict[str, Any]:
        unit = {"ad_model": "small.pt", "ad_confidence": 0.1, "ad_mask_k": 2}
        return {"alwayson_scripts": {"adetailer": {"args": [True, False, unit | more]}}}

    compare(beside, {
        "two faces": detail(),
        "another prompt": detail(ad_prompt="a dog"),
        "with a LoRA": detail() | {"prompt": PROMPT},
        "a LoRA for the face only": detail(ad_prompt=PROMPT),
        "of a batch": detail() | {"batch_size": 2, "n_iter": 2},
        "hires fix": detail() | {"verb": "hires"},
        "img2img": detail() | {"verb": "img2img"},
    })  # fmt: skip
    server = beside.server()
    before = server.unet()["forwards"]
    server.image(**detail(), script=[True, 16], steps=3)
    assert server.unet()["forwards"] > before + 3, "the nested passes stream too"


def test_all_of_them_at_once(real_webui, models):
    beside = Beside(real_webui, models, (CONTROLNET, TILED, ANIMATEDIFF))
    both = control("none", "smallcontrol")
    both["alwayson_scripts"] |= {"tiled vae": {"args": [True, 128, 8, True, True, True, False]}}
    compare(beside, {"control and tiles": both, "with a LoRA": both | {"prompt": PROMPT}})
