"""What a webui does around a generation: passes within passes, other stages, other models that want the GPU."""

from __future__ import annotations

import subprocess
from itertools import groupby

import pytest
from real_webui import gradient_png, python_of, webui_dir

INSIDE = ("interrogation", "passes", "watch")
ESRGAN = """
import sys, torch
from spandrel.architectures.ESRGAN.arch.RRDB import RRDBNet
torch.manual_seed(1)
torch.save(RRDBNet(num_filters=8, num_blocks=1, scale=4).state_dict(), sys.argv[1])
"""


@pytest.fixture(scope="module")
def upscalers(tmp_path_factory):
    """A folder with an upscaler of random weights."""
    folder, installation = tmp_path_factory.mktemp("esrgan"), webui_dir()
    assert installation is not None
    command = [python_of(installation), "-c", ESRGAN, str(folder / "smallesrgan.pth")]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def start(real_webui, upscalers):
    # A torch newer than the host's writes pickles that the host's own check does not know.
    always = "--disable-safe-unpickle", "--esrgan-models-path", str(upscalers)

    def started(*flags, extension=True):
        return real_webui(*flags, *always, extension=extension, inside=INSIDE)

    return started


def around(server, folder, script):
    """Pixels by name."""

    def upscaled(name):
        request = {"image": gradient_png(), "upscaling_resize": 2, "upscaler_1": name}
        return server.call("/sdapi/v1/extra-single-image", request)["image"]

    def image(verb="txt2img", **body):
        return server.image(verb, script=script, width=128, height=128, **body)

    said = server.call("/sdapi/v1/interrogate", {"image": gradient_png(), "model": "clip"})["caption"]
    assert said == "0 MiB beside"
    return {
        "first": image(),
        "nested": image(script_name="nested pass"),
        "after nested": image(),
        "files": image("img2img", script_name="batch of files", script_args=[str(folder)]),
        "upscaled in tiles": image(
            "img2img", script_name="sd upscale", script_args=[None, 64, "smallesrgan", 2]),
        "loopback": image(
            "img2img", script_name="loopback", script_args=[2, 0.5, "Linear", "None"]),
        "batches": image("img2img", n_iter=2, batch_size=2),
        "hires by a model": image("hires", hr_upscaler="smallesrgan"),
        "Lanczos": upscaled("Lanczos"),
        "ESRGAN": upscaled("smallesrgan"),
        "interrogated": server.call("/sdapi/v1/interrogate", {"image": gradient_png(), "model": "clip"})["caption"],
        "last": image(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def expected(start, tmp_path_factory):
    server = start("--lowvram", extension=False)
    found = around(server, tmp_path_factory.mktemp("files"), None)
    assert found["first"] == found["after nested"] == found["last"]
    assert len(set(found.values())) == len(found) - 2
    server.check_quiet()
    return found


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "resident"])
def test_the_toggle_survives_what_scripts_do(expected, start, tmp_path, flags):
    server = start(*flags)
    for enabled in (True, False, True):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        assert around(server, folder, [enabled, 16]) == expected
        models = server.probe()["models"]
        assert len(models) == enabled
        assert all(model["stages"]["unet"]["streamed_units"] > 0 for model in models)
    before = server.unet()["forwards"]
    server.image(script=[True, 16], script_name="nested pass", steps=4)
    assert server.unet()["forwards"] >= before + 6, "4 steps, and half of them again in the pass within"
    server.check_quiet()


def test_one_stage_on_the_gpu_at_a_time(start):
    server = start("--async-lowvram")
    server.image("img2img", script=[True, 16], prompt="a cat", seed=1)
    server.call("/probe/seen", {})
    server.image("img2img", script=[True, 16], prompt="another cat", seed=1, steps=8, denoising_strength=1.0)
    seen = server.call("/probe/seen", {})
    assert all(entry["in_gpu"] for entry in seen)
    runs = [(entry["runs"], tuple(sorted(entry["held"]))) for entry in seen]
    order = [run for run, _ in groupby(runs)]
    assert order == [
        ("vae_encoder", ("vae_encoder",)),
        ("text", ("text",)),
        ("unet", ("unet",)),
        ("vae_decoder", ("vae_decoder",)),
    ]
