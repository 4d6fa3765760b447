"""How the host stores weights: float8, with or without the float16 ones beside them, and channels last."""

from __future__ import annotations

import pytest
from lora_file import PROMPT, keep_lora
from real_webui import SMALL, RealWebui, checkpoints, sdxl_of

DEFAULTS = {"fp8_storage": "Disable", "cache_fp16_weight": False, "live_previews_enable": False}
WAYS = {"autocast": (), "manual cast": ("manual_cast",)}


def fp8(storage: str, cached: bool = False) -> dict:
    return {"fp8_storage": storage, "cache_fp16_weight": cached}


def every(server: RealWebui, **always) -> dict[str, str]:
    """An image in each state, in this order, each with and without a LoRA. A change of the setting loads the
    checkpoint again, into the live model."""
    server.call("/sdapi/v1/options", DEFAULTS)
    pixels = {}
    for name, settings in (
        ("float32", fp8("Disable")), ("float8", fp8("Enable")), ("float32 again", fp8("Disable")),
        ("for SDXL", fp8("Enable for SDXL")), ("cached", fp8("Enable", True)), ("once more", fp8("Disable")),
        ("at the end", fp8("Enable")),
    ):  # fmt: skip
        server.call("/sdapi/v1/options", settings)
        for with_lora in (False, True, False):
            prompt = {"prompt": PROMPT} if with_lora else {}
            key = f"{name}{' with LoRA' if with_lora else ''}"
            sha = server.image(**(SMALL | always | prompt))
            assert pixels.setdefault(key, sha) == sha, "as before the LoRA"
    return pixels


@pytest.fixture(scope="module", params=list(WAYS))
def way(request):
    return WAYS[request.param]


@pytest.fixture(scope="module")
def expected(real_webui, way):
    server = real_webui("--lowvram", extension=False, inside=way)
    if not keep_lora(server):
        pytest.skip("the LoRA is for SD1 checkpoints")
    pixels = every(server)
    assert bool(way) is ("float8 is cast by hand" in server.log())
    assert len({pixels[name] for name in ("float32", "float8", "float32 with LoRA", "float8 with LoRA")}) == 4
    assert pixels["cached with LoRA"] != pixels["float8 with LoRA"], "the LoRA is added to float16 weights"
    # The host rounds some numbers to half precision on the way back from float8: only stock can tell what is right.
    assert not {pixels["float32 again"], pixels["once more"]} & {pixels["float8"], pixels["at the end"]}
    return pixels


@pytest.mark.parametrize("flags, script", [(("--async-lowvram",), None), ((), [True, 16])], ids=["flag", "toggled"])
def test_float8_on_and_off(expected, real_webui, way, flags, script):
    server = real_webui(*flags, inside=way)
    assert keep_lora(server)
    found = every(server, script=script)
    assert {name: sha for name, sha in found.items() if sha != expected[name]} == {}
    assert "float8_e4m3fn" in server.call("/probe/weights")["dtypes"]
    assert {"unet", "text", "vae_decoder"} <= set(server.stages())
    small = server.unet()["weights_mib"]
    for enabled in (False, True):
        assert server.image(script=[enabled, 16], **SMALL) == expected["at the end"], enabled
        assert server.streams is enabled
    server.call("/sdapi/v1/options", fp8("Disable"))
    assert server.image(script=script, **SMALL) == expected["float32 again"]
    assert small < server.unet()["weights_mib"] / 2, "float8 weights are what streamed"
    server.check_quiet()


def test_float8_for_sdxl_alone(real_webui):
    def images(server: RealWebui, titles: list[str], **always) -> list[tuple[str, bool]]:
        server.call("/sdapi/v1/options", DEFAULTS)
        found = []
        for storage in ("Disable", "Enable for SDXL", "Disable"):
            server.call("/sdapi/v1/options", fp8(storage))
            for title in titles:
                sha = server.image(settings={"sd_model_checkpoint": title}, **SMALL, **always)
                found.append((sha, "float8_e4m3fn" in server.call("/probe/weights")["dtypes"]))
        return found

    stock = real_webui("--lowvram", extension=False)
    sdxl, first = sdxl_of(stock), checkpoints(stock)[0]
    if sdxl is None or sdxl == first:
        pytest.skip("needs a checkpoint of SDXL, and another one loaded")
    titles = [sdxl, first]
    expected = images(stock, titles)
    assert [eight for _, eight in expected] == [False, False, True, False, False, False]
    assert expected[2][0] != expected[0][0]
    for flags, script in ((("--async-lowvram",), None), ((), [True, 16])):
        server = real_webui(*flags)
        assert images(server, titles, script=script) == expected
        assert server.streams
        server.check_quiet()


def test_channels_last(real_webui):
    def images(server: RealWebui, **always) -> list[str]:
        found = [server.image(**SMALL, **always), server.image("img2img", **SMALL, **always)]
        return [*found, server.image(prompt=PROMPT, **SMALL, **always)] if keep_lora(server) else found

    expected = images(real_webui("--lowvram", "--opt-channelslast", extension=False))
    assert len(set(expected)) == len(expected)
    for flags, script in ((("--async-lowvram",), None), ((), [True, 16])):
        server = real_webui(*flags, "--opt-channelslast")
        assert images(server, script=script) == expected
        assert server.streams and server.call("/probe/weights")["channels_last"]
        assert images(server, script=[False, 16]) == expected
        assert images(server, script=script) == expected
        server.check_quiet()
