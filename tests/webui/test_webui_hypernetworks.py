"""Hypernetworks, which the host runs between a streamed layer and the next."""

from __future__ import annotations

import pytest
from lora_file import UNET, loaded_checkpoint
from real_webui import SMALL, RealWebui
from tensor_file import shapes_of

WITH = "a cat, (red:1.2) hat <hypernet:undertest:1>"
WEAKER = "a cat, (red:1.2) hat <hypernet:undertest:0.4>"


def every(server: RealWebui, **always) -> list[str]:
    prompts = (None, WITH, WEAKER, None, WITH)
    return [server.image(**SMALL, **always, **({"prompt": prompt} if prompt else {})) for prompt in prompts]


def attention_sizes(server: RealWebui) -> list[int]:
    """What a hypernetwork for the loaded checkpoint has layers for; none for an architecture it does not know."""
    shapes = shapes_of(loaded_checkpoint(server))
    return sorted({shape[1] for key, shape in shapes.items() if key.startswith(UNET) and key.endswith(".to_k.weight")})


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    # A torch newer than the host's writes pickles that the host's own check does not know.
    return ("--hypernetwork-dir", str(tmp_path_factory.mktemp("hypernetworks")), "--disable-safe-unpickle")


@pytest.fixture(scope="module")
def expected(flags, real_webui):
    server = real_webui("--lowvram", *flags, extension=False)
    sizes = attention_sizes(server)
    if not sizes:
        pytest.skip("no attention that a hypernetwork knows")
    server.call("/sdapi/v1/create/hypernetwork", {
        "name": "undertest", "enable_sizes": sizes, "overwrite_old": True,
        "layer_structure": [1, 2, 1], "activation_func": "relu", "weight_init": "XavierNormal",
    })  # fmt: skip
    pixels = every(server)
    assert len(set(pixels)) == 3 and pixels[0] == pixels[3] and pixels[1] == pixels[4], "it does something, and goes"
    return pixels


@pytest.mark.parametrize("flag, script", [(("--async-lowvram",), None), ((), [True, 16])], ids=["flag", "toggled"])
def test_a_hypernetwork_on_and_off(expected, flags, real_webui, flag, script):
    server = real_webui(*flag, *flags)
    assert every(server, script=script) == expected
    assert {"unet", "text", "vae_decoder"} <= set(server.stages())
    assert every(server, script=[False, 16]) == expected
    assert not server.streams
    assert every(server, script=[True, 16]) == expected
    server.check_quiet()
