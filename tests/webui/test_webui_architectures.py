"""Architectures as the loaded model. Files that the webui lacks are written by the test (see small_models)."""

from __future__ import annotations

import pytest
from lora_architectures import write_lora_for
from lora_file import loaded_checkpoint, unapplied
from real_webui import SMALL, RealWebui, checkpoints, sdxl_of, webui_dir
from small_models import KINDS, PREFIX, write_checkpoint

# What streams, beside the VAE's halves
STAGES = {
    "sd2": {"unet", "text"},
    "refiner": {"unet", "text"},
    "sd3": {"unet", "text", "text_2"},
    "sdxl": {"unet", "text", "text_2"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in KINDS:
        write_checkpoint(webui_dir(), kind, folder)
    return folder


@pytest.fixture(scope="module")
def start(folder, real_webui):
    """A webui that has the written checkpoints, with the one of this kind loaded."""

    def started(kind: str, *flags: str, extension: bool = True) -> RealWebui:
        loaded = ("--ckpt", str(folder / f"{PREFIX}{kind}.safetensors")) if kind in KINDS else ()
        server = real_webui(
            *flags, "--ckpt-dir", str(folder), "--lora-dir", str(folder / "lora"), "--loglevel", "DEBUG", *loaded,
            extension=extension, inside=("small_architectures",),
        )  # fmt: skip
        server.call("/sdapi/v1/options", {"live_previews_enable": False, "sd3_enable_t5": False})
        if kind not in KINDS:
            title = sdxl_of(server)
            if title is None:
                pytest.skip("this webui has no checkpoint of SDXL")
            server.call("/sdapi/v1/options", {"sd_model_checkpoint": title})
        return server

    return started


def written(server: RealWebui, kind: str) -> str:
    """The title of a checkpoint that the test wrote."""
    return next(title for title in checkpoints(server) if title.startswith(f"{PREFIX}{kind}."))


def every(server: RealWebui, lora: str, **always) -> dict[str, str]:
    lives = {
        "plain": {},
        "img2img": {"verb": "img2img", "steps": 4},
        "hires": {"verb": "hires"},
        "long prompt": {"prompt": "a cat, " * 60},
        "clip skip": {"settings": {"CLIP_stop_at_last_layers": 2}},
        "LoRA": {"prompt": f"a cat, (red:1.2) hat {lora}1>"},
        "LoRA, weaker": {"prompt": f"a cat, (red:1.2) hat {lora}0.5>"},
        "LoRA, text encoder alone": {"prompt": f"a cat, (red:1.2) hat {lora}te=1:unet=0>"},
        "again": {},
        "LoRA again": {"prompt": f"a cat, (red:1.2) hat {lora}1>"},
    }
    return {name: server.image(**(SMALL | always | body)) for name, body in lives.items()}


def check_streaming(server: RealWebui, stages: set[str]) -> None:
    assert stages | {"vae_encoder", "vae_decoder"} == set(server.stages())
    assert server.unet()["vram_mb"] == 16 and server.unet()["ring_mib"] > 0


def check_quiet(server: RealWebui) -> None:
    assert unapplied(server) == []
    server.check_quiet()


@pytest.mark.parametrize("kind", ["sd2", "refiner", "sdxl", "sd3"])
def test_an_architecture(start, folder, kind):
    # Stock's --lowvram does not start with an SD3.
    stock = start(kind, *(() if kind == "sd3" else ("--lowvram",)), extension=False)
    lora = write_lora_for(kind, loaded_checkpoint(stock), folder / "lora")
    stock.call("/sdapi/v1/refresh-loras", {})
    expected = every(stock, lora)
    assert expected["plain"] == expected["again"] and expected["LoRA"] == expected["LoRA again"]
    assert len({expected[name] for name in expected if name not in ("clip skip", "again", "LoRA again")}) == 7
    assert unapplied(stock) == []

    server = start(kind, "--async-lowvram")
    assert every(server, lora) == expected
    for enabled in (False, True):
        assert every(server, lora, script=[enabled, 16]) == expected, enabled
        assert server.streams is enabled
    check_streaming(server, STAGES[kind])
    check_quiet(server)

    for flags in ((), ("--medvram",)):
        server = start(kind, *flags)
        for enabled in (True, False, True):
            assert every(server, lora, script=[enabled, 16]) == expected, (flags, enabled)
            assert server.streams is enabled
        check_streaming(server, STAGES[kind])
        check_quiet(server)


def test_an_sd3_with_t5_comes_and_goes(start):
    def images(server: RealWebui, **always) -> list[str]:
        server.call("/sdapi/v1/options", {"sd3_enable_t5": True})
        titles = [written(server, kind) for kind in ("sd2", "sd3", "refiner", "sd3")]
        return [server.image(settings={"sd_model_checkpoint": title}, **SMALL, **always) for title in titles]

    stock = start("sd3", extension=False)
    without = stock.image(**SMALL)
    expected = images(stock)
    assert expected[1] == expected[3] and len({*expected, without}) == 4
    for flags, script in ((("--async-lowvram",), None), ((), [True, 16])):
        server = start("sd3", *flags)
        server.call("/sdapi/v1/options", {"sd_model_checkpoint": written(server, "sd3")})
        assert server.image(script=script, **SMALL) == without
        assert images(server, script=script) == expected
        assert server.image(script=[True, 16], settings={"sd_model_checkpoint": written(server, "sd3")}, **SMALL) == (
            expected[1]
        )
        assert "text_3" in server.stages()
        check_quiet(server)


def test_the_sdxl_refiner_in_the_middle_of_sampling(start):
    def images(server: RealWebui, **always) -> list[str]:
        refiner = {"refiner_checkpoint": written(server, "refiner"), "refiner_switch_at": 0.5}
        bodies = ({}, refiner, {}, refiner | {"verb": "hires"}, {})
        return [server.image(**(SMALL | {"steps": 4} | always | body)) for body in bodies]

    stock = start("sdxl", "--lowvram", extension=False)
    expected = images(stock)
    assert expected[0] == expected[2] == expected[4] and len(set(expected)) == 3
    for flags, script in ((("--async-lowvram",), [True, 16]), ((), [True, 16])):
        server = start("sdxl", *flags)
        for limit in (1, 2):
            server.call("/sdapi/v1/options", {"sd_checkpoints_limit": limit})
            assert images(server, script=script) == expected, (flags, limit)
        check_quiet(server)


def test_an_sd3_where_stock_lowvram_would_fail(start):
    """A webui of `--lowvram`, started with something else: with the box ticked it loads an SD3, and keeps it."""
    expected = start("sd3", extension=False).image(**SMALL)
    server = start("sd2", "--lowvram")
    before = server.image(**SMALL)
    sd3 = {"settings": {"sd_model_checkpoint": written(server, "sd3")}}
    for enabled in (True, False, True):
        assert server.image(script=[enabled, 16], **SMALL, **sd3) == expected, enabled
        assert server.streams is enabled
    for enabled in (True, False):
        assert server.image(script=[enabled, 16], **SMALL) == before, enabled
    check_quiet(server)
