"""The accordion's toggle on a live model, however it was loaded; what was found is what is given back."""

from __future__ import annotations

import pytest
import torch

LOADED = [("sd1", ()), ("sd1", ("--medvram",)), ("sd1", ("--lowvram",)), ("sdxl", ()), ("sdxl", ("--medvram",)),
          ("sdxl", ("--lowvram",)), ("sd3", ()), ("sd3", ("--medvram",))]  # fmt: skip


def traces(model):
    """Everything a conversion might leave behind: hooks, names, identities, types."""
    return {
        name: (
            type(part).__name__,
            sorted(map(id, part._forward_pre_hooks.values())),
            sorted(map(id, part._forward_hooks.values())),
            {key: id(value) for key, value in part._parameters.items()},
            sorted(key for key in vars(part) if not key.startswith("_forward")),
        )
        for name, part in model.named_modules()
    }


@pytest.mark.parametrize(("kind", "flags"), LOADED)
def test_on_off_on(webui, stock_image, kind, flags):
    webui.start(*flags)
    model = webui.load_model(kind)
    keys = list(model.state_dict())
    webui.txt2img(False, 0)
    before = traces(model)
    for enabled in (True, False, True, True, False):
        assert torch.equal(webui.txt2img(enabled, 64), stock_image(kind)), enabled
        assert list(model.state_dict()) == keys
        if not enabled:
            assert traces(model) == before
    assert webui.lowvram.module_in_gpu is None or not flags


def test_the_size_may_change_between_generations(webui, stock_image):
    webui.start()
    webui.load_model()
    from lib_async_mover.webui import status

    for size, shown in ((64, 64), (0, 0), (128, 128), (512.0, 512)):
        assert torch.equal(webui.txt2img(True, size), stock_image())
        assert status()["buffer_mb"] == shown
        (entry,) = status()["models"]
        assert entry["stages"]["unet"]["vram_mb"] == shown


NONSENSE = [
    (("false", 64), "enabled is 'false'; allowed are true, false"),
    (("no", 64), "enabled is 'no'"),
    (([True], 64), r"enabled is \[True\]"),
    ((True, -3), "buffer_mb is -3; allowed are 16 to 65536 megabytes, and 0 for auto"),
    ((True, 7), "buffer_mb is 7"),
    ((True, float("nan")), "buffer_mb is nan"),
    ((True, "many"), "buffer_mb is 'many'"),
    ((True, True), "buffer_mb is True"),
    (({"enable": True}, 0), "'enable' is no setting; allowed are enabled and buffer_mb"),
    (({"enabled": "yes"}, 0), "enabled is 'yes'; allowed are true and false"),
    (({"buffer_mb": 1e9}, 0), "buffer_mb is 1000000000.0"),
]


@pytest.mark.parametrize(("args", "message"), NONSENSE)
def test_a_request_that_is_wrong_fails_and_says_why(webui, stock_image, args, message):
    webui.start()
    webui.load_model()
    webui.txt2img(True, 64)
    with pytest.raises(Exception, match=message) as caught:
        webui.txt2img(*args)
    assert (caught.value.status_code, caught.value.detail) == (422, str(caught.value)), "what the host's API answers"
    from lib_async_mover.webui import status

    assert (status()["enabled"], status()["buffer_mb"]) == (True, 64), "nothing was changed"
    assert torch.equal(webui.txt2img(True, 64), stock_image())


def test_what_a_request_leaves_out_is_the_page_s_choice(webui):
    webui.start()
    webui.load_model()
    from lib_async_mover.webui import status
    from lib_async_mover.webui.host.choice import STANDING, Choice

    for standing in (Choice(False, 96), Choice(True, 128)):
        STANDING.set(standing)
        webui.txt2img({}, 0)
        assert (status()["enabled"], status()["buffer_mb"]) == (standing.enabled, standing.buffer_mb)
        webui.txt2img({"buffer_mb": 64}, 0)
        assert (status()["enabled"], status()["buffer_mb"]) == (standing.enabled, 64)


def test_a_nested_pass_without_arguments_keeps_the_choice(webui, stock_image):
    webui.start()
    webui.load_model()
    webui.txt2img(True, 64)
    webui.before_sampling()
    from lib_async_mover.webui import status

    assert status()["enabled"] is True
    assert status()["models"]


def test_weights_survive_the_round_trip(webui):
    webui.start("--medvram")
    model = webui.load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for enabled in (True, False, True):
        webui.txt2img(enabled, 64)
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_conversion_that_fails_half_way_leaves_the_model_as_it_was(webui, stock_image, monkeypatch):
    webui.start("--lowvram")
    model = webui.load_model()
    webui.txt2img(False, 0)
    before = traces(model)
    from lib_async_mover.webui.host import convert

    for broken in ("attach", "Stage"):
        with monkeypatch.context() as patch:
            patch.setattr(convert, broken, lambda *args, **kwargs: 1 / 0)
            assert torch.equal(webui.txt2img(True, 64), stock_image())
            assert traces(model) == before
    assert torch.equal(webui.txt2img(True, 64), stock_image())
