"""What a webui does to models between and within images, with the flag, compared with stock --lowvram's pixels."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from real_webui import SMALL, RealWebui, checkpoints
from tensor_file import copy_tensors


def two(server: RealWebui) -> tuple[str, str]:
    """Two checkpoints of one architecture: the loaded one, and another that starts like it."""
    first, *others = checkpoints(server)
    stem = Path(first.split(" ")[0]).stem
    other = next((title for title in others if title.startswith(stem)), None)
    if other is None:
        pytest.skip("needs a second checkpoint, named like the first and of its architecture")
    return first, other


# The host restores after a request only what was ever set.
DEFAULTS = {
    "sd_vae": "Automatic", "token_merging_ratio": 0.0, "hypertile_enable_unet": False, "hypertile_enable_vae": False,
    "CLIP_stop_at_last_layers": 1, "batch_cond_uncond": True, "use_old_emphasis_implementation": False,
    "live_previews_enable": False, "show_progress_type": "Approx cheap", "show_progress_every_n_steps": 10,
    "live_preview_allow_lowvram_full": False, "samples_format": "png",
}  # fmt: skip


def every(server: RealWebui, vae: str, **always: Any) -> dict[str, str]:
    """An image in each life; by name."""
    _, second = two(server)
    server.call("/sdapi/v1/options", DEFAULTS)
    hires = {"verb": "hires"}
    lives = {
        "plain": {},
        "other checkpoint": {"settings": {"sd_model_checkpoint": second}},
        "back": {},
        "vae": {"settings": {"sd_vae": vae}},
        "vae back": {},
        "refiner": {"refiner_checkpoint": second, "refiner_switch_at": 0.5, "steps": 4},
        "after refiner": {},
        "hires checkpoint": hires | {"hr_checkpoint_name": second},
        "after hires checkpoint": {},
        "token merging": {"settings": {"token_merging_ratio": 0.5}},
        "hypertile": {"settings": {"hypertile_enable_unet": True, "hypertile_enable_vae": True}},
        "clip skip": {"settings": {"CLIP_stop_at_last_layers": 2}},
        "tiling": {"tiling": True},
        "cheap previews": {"settings": {
            "live_previews_enable": True, "show_progress_type": "Approx cheap", "show_progress_every_n_steps": 1}},
        "full previews": {"settings": {
            "live_previews_enable": True, "show_progress_type": "Full", "show_progress_every_n_steps": 1,
            "live_preview_allow_lowvram_full": True}},
        "unbatched": {"settings": {"batch_cond_uncond": False}},
        "several": {"n_iter": 2, "batch_size": 2},
        "long prompt": {"prompt": "a cat, " * 60},
        "scheduled prompt": {"prompt": "a [cat:dog:0.5] AND a hat"},
        "old emphasis": {"settings": {"use_old_emphasis_implementation": True}},
        "upscaled by pixels": hires | {"hr_upscaler": "Lanczos"},
    }  # fmt: skip
    return {name: server.image(**(SMALL | always | body)) for name, body in lives.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory, real_webui):
    folder = tmp_path_factory.mktemp("vae")
    server = real_webui("--lowvram", "--vae-dir", str(folder), extension=False)
    _, other = two(server)
    source = {entry["title"]: entry["filename"] for entry in server.call("/sdapi/v1/sd-models")}[other]
    copy_tensors(Path(source), folder / "other.safetensors", "first_stage_model.")
    server.call("/sdapi/v1/refresh-vae", {})
    return folder


@pytest.fixture(scope="module")
def expected(files, real_webui):
    return every(real_webui("--lowvram", "--vae-dir", str(files), extension=False), "other.safetensors")


def test_every_life_with_the_flag(expected, files, real_webui):
    server = real_webui("--async-lowvram", "--vae-dir", str(files))
    found = every(server, "other.safetensors")
    assert {name: sha for name, sha in found.items() if sha != expected[name]} == {}
    assert len(set(found.values())) > 12, "the lives do differ"
    models = server.probe()["models"]
    assert all({"unet", "text", "vae_encoder", "vae_decoder"} <= set(model["stages"]) for model in models)
    server.check_quiet()


def test_every_life_toggled_on_a_resident_model(expected, files, real_webui):
    server = real_webui("--vae-dir", str(files))
    found = every(server, "other.safetensors", script=[True, 16])
    assert {name: sha for name, sha in found.items() if sha != expected[name]} == {}
    assert server.stages()
    last = server.image(script=[False, 16], **SMALL)
    assert not server.streams
    assert server.image(script=[True, 0], **SMALL) == last
    server.check_quiet()


def test_several_checkpoints_of_several_architectures(real_webui, files):
    stock = real_webui("--lowvram", "--vae-dir", str(files), extension=False)
    titles = checkpoints(stock)
    pixels = {title: stock.image(settings={"sd_model_checkpoint": title}, **SMALL) for title in titles}
    server = real_webui("--async-lowvram", "--vae-dir", str(files))
    for limit in (1, 2):
        server.call("/sdapi/v1/options", {"sd_checkpoints_limit": limit})
        for title in (*titles, *reversed(titles)):
            assert server.image(settings={"sd_model_checkpoint": title}, **SMALL) == pixels[title], (limit, title)
    server.check_quiet()


def test_unload_reload_interrupt_and_script_bodies(expected, files, real_webui):
    server = real_webui("--async-lowvram", "--vae-dir", str(files))
    for path in ("/sdapi/v1/unload-checkpoint", "/sdapi/v1/reload-checkpoint", "/probe/reload-script-bodies"):
        server.call(path, {})
        assert server.image(**SMALL) == expected["plain"], path
    for path in ("/sdapi/v1/interrupt", "/sdapi/v1/skip", "/sdapi/v1/unload-checkpoint"):
        worker = threading.Thread(target=server.image, kwargs={"steps": 12})
        worker.start()
        time.sleep(0.7)
        server.call(path, {})
        worker.join(120)
        assert server.image(**SMALL) == expected["plain"], path
    server.check_quiet()


def test_an_embedding_made_while_it_streams(expected, files, real_webui):
    # A torch newer than the host's writes pickles that the host's own check does not know.
    server = real_webui("--async-lowvram", "--vae-dir", str(files), "--disable-safe-unpickle")
    server.call("/sdapi/v1/create/embedding", {"name": "undertest", "num_vectors_per_token": 2, "overwrite_old": True})
    assert server.image(prompt="a cat in undertest", **SMALL) != expected["plain"]
    assert server.image(**SMALL) == expected["plain"]
    server.check_quiet()
