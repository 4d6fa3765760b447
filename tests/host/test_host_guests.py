"""sd-webui-controlnet's models stream with the UNet they run in, as its guests."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from control_stub import ControlScript
from webui_stub import streams, unet_mover

from lib_async_mover import Mover, attach, detach

SWITCH = "disable_memory_management"


@pytest.fixture
def control(webui):
    """The extension, installed beside ours."""
    webui.others = [ControlScript(webui)]
    return webui.others[0]


@pytest.fixture
def expected(webui, control, stock_image):
    """What stock makes of the extension's present units, with control models of its own."""

    def image(kind="sd1", seed=1, **kwargs):
        other = ControlScript(webui)
        other.units = control.units
        webui.others, others = [other], webui.others
        try:
            return stock_image(kind, seed, **kwargs)
        finally:
            webui.others = others

    return image


def guests(model) -> list:
    return list(unet_mover(model).guests)


def inner(control, *names: str) -> list:
    return [control.cache[name].control_model for name in names]


def untouched(control_model) -> bool:
    """Nothing of ours is on it."""
    parts = (control_model, control_model.control_model)
    hooks = sum(len(part._forward_pre_hooks) for part in control_model.modules())
    return not any({SWITCH, "to"} & set(vars(part)) for part in parts) and not hooks


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("box", [False, True], ids=["", "low VRAM"])
@pytest.mark.parametrize("first", [False, True], ids=["ours first", "theirs first"])
def test_a_control_model_streams_and_is_not_moved(webui, control, expected, kind, box, first):
    webui.start("--async-lowvram")
    model = webui.load_model(kind)
    webui.others_first, control.low_vram, control.units = first, box, [("canny", {})]
    plain = webui.txt2img
    for kwargs in ({}, {"hires": True}, {"steps": 3}, {}):
        assert torch.equal(plain(True, 0, **kwargs), expected(kind, **kwargs))
        assert guests(model) == inner(control, "canny")
    moves = control.cache["canny"].moves
    assert moves == 1, "to the CPU, before it became a guest"
    assert torch.equal(webui.img2img(True, 0), expected(kind, verb="img2img"))
    assert control.cache["canny"].moves == moves
    assert all(tensor.device.type == "cpu" for tensor in control.cache["canny"].state_dict().values())


def test_only_those_of_the_image_are_guests(webui, control, expected, stock_image):
    webui.start("--async-lowvram")
    model = webui.load_model()
    for names in (["canny"], ["canny", "depth"], ["depth"], ["depth", "canny"], ["union"], [], ["t2i"], ["canny"]):
        control.units = [(name, {"weight": 0.5}) for name in names]
        assert torch.equal(webui.txt2img(True, 0), expected())
        assert set(guests(model)) == set(inner(control, *names))
        assert all(untouched(one) for name, one in control.cache.items() if name not in names)
    control.units = []
    assert torch.equal(webui.txt2img(True, 0), stock_image())
    assert guests(model) == []


def test_one_that_stays_is_neither_set_nor_traced_again(webui, control, monkeypatch):
    webui.start("--async-lowvram")
    model = webui.load_model()
    control.units = [("canny", {}), ("depth", {"weight": 0.3})]
    for _ in range(2):
        webui.txt2img(True, 0, hires=True)
    loads, packed = unet_mover(model).on_demand.loads, unet_mover(model).placement.store
    sets, real = [], Mover.guests
    monkeypatch.setattr(Mover, "guests", property(real.fget, lambda mover, new: sets.append(new)))
    for _ in range(3):
        webui.txt2img(True, 0, hires=True)
    assert sets == []
    assert unet_mover(model).on_demand.loads == loads and unet_mover(model).placement.store is packed


def test_a_unit_that_starts_late_or_stops_early(webui, control, expected):
    webui.start("--async-lowvram")
    webui.load_model()
    control.steps = 4
    control.units = [("canny", {"stop": 0.25}), ("depth", {"start": 0.5})]

    def four(*args):
        return webui.txt2img(*args, steps=4)

    other = ControlScript(webui, steps=4)
    other.units = control.units
    webui.others = [other]
    truth = four(False, 0)
    webui.others = [control]
    for _ in range(3):
        assert torch.equal(four(True, 0), truth)


def test_an_adapter_that_moves_itself_within_its_forward(webui, control, expected):
    webui.start("--async-lowvram")
    webui.load_model()
    control.units = [("t2i", {})]
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), expected())
    adapter = control.cache["t2i"]
    assert adapter.control_model.moves == adapter.moves == 1, "to the CPU, before it became a guest"


def test_low_vram_s_own_hooks_of_earlier_images(webui, control, expected):
    """Under stock, with SDXL, the box moves block by block, by hooks that stay on a cached model."""
    webui.start()
    webui.load_model("sdxl")
    control.low_vram, control.units = True, [("canny", {})]
    webui.txt2img(False, 0)
    moves = control.cache["canny"].moves
    assert moves > 10
    assert torch.equal(webui.txt2img(True, 0), expected("sdxl"))
    assert control.cache["canny"].moves == moves + 1
    assert torch.equal(webui.txt2img(False, 0), expected("sdxl"))
    assert control.cache["canny"].moves > moves + 10, "it has them again"


@pytest.mark.parametrize("name", ["ip", "lllite", "lora"])
def test_those_that_cannot_be_guests_are_told_once(webui, control, expected, caplog, name):
    caplog.set_level("INFO", "async_lowvram")
    webui.start("--async-lowvram")
    model = webui.load_model()
    control.units, control.cache_size = [(name, {}), ("canny", {})], 1  # made anew for each image
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), expected())
    lines = [record.getMessage() for record in caplog.records if "does not stream" in record.getMessage()]
    assert len(lines) == 1
    assert len(guests(model)) == 1
    assert name != "ip" or control.load("ip", None).disable_memory_management


def test_one_that_the_engine_refuses(webui, control, expected, caplog):
    caplog.set_level("INFO", "async_lowvram")
    webui.start("--async-lowvram")
    model = webui.load_model()
    control.units = [("canny", {}), ("depth", {})]
    canny = control.load("canny", None)
    attach(canny.control_model, "cpu")
    for _ in range(3):
        assert torch.equal(webui.txt2img(True, 0), expected())
        assert guests(model) == inner(control, "depth")
    assert not {SWITCH, "to"} & set(vars(canny))
    assert len([record for record in caplog.records if "does not stream" in record.getMessage()]) == 1
    detach(canny.control_model)


def test_a_guest_takes_another_dtype(webui, control):
    webui.start("--async-lowvram")
    webui.load_model()
    control.units = [("canny", {})]
    webui.txt2img(True, 0)
    canny = control.cache["canny"]
    for device in ("cpu", torch.device("cpu"), "meta"):
        assert canny.to(device) is canny and canny.to(device=device) is canny
    canny.to("meta", dtype=torch.float64)
    assert {(tensor.dtype, tensor.device.type) for tensor in canny.parameters()} == {(torch.float64, "cpu")}


def test_weights_changed_between_images(webui, control, expected):
    webui.start("--async-lowvram")
    webui.load_model()
    control.units = [("canny", {})]
    before = webui.txt2img(True, 0)
    canny = control.cache["canny"]
    with torch.no_grad():
        canny.control_model.input_blocks[1].weight.mul_(0.5)
    changed = webui.txt2img(True, 0)
    assert not torch.equal(changed, before)
    assert torch.equal(webui.txt2img(False, 0), changed)
    with torch.no_grad():
        canny.control_model.input_blocks[1].weight.mul_(2)
    assert torch.equal(webui.txt2img(True, 0), before)


def test_the_extension_s_cache_lets_go_of_one(webui, control, expected, pinned):
    webui.start("--async-lowvram")
    webui.load_model()
    webui.txt2img(True, 0)
    alone = pinned()
    control.units, control.cache_size = [("canny", {})], 1
    webui.txt2img(True, 0)
    gone = weakref.ref(control.cache["canny"].control_model)
    control.cache.clear()
    gc.collect()
    assert gone() is None
    control.units = []
    webui.txt2img(True, 0)
    assert pinned() == alone


@pytest.mark.parametrize("how", ["off", "failure", "reload", "checkpoint", "unload", "disabled", "trash"])
def test_given_back(webui, control, expected, monkeypatch, how):
    webui.start()
    model = webui.load_model()
    control.units = [("canny", {})]
    assert torch.equal(webui.txt2img(True, 0), expected())
    canny = control.cache["canny"]
    assert guests(model) == [canny.control_model]
    if how == "off":
        assert torch.equal(webui.txt2img(False, 0), expected())
    if how == "failure":
        backend = type(unet_mover(model).backend)
        with monkeypatch.context() as patch:
            patch.setattr(backend, "wait_for_copy", lambda *_: 1 / 0)
            assert torch.equal(webui.txt2img(True, 0), expected())
        assert not streams(model)
    if how == "reload":
        webui.reload_ui()
    if how == "checkpoint":
        control.units = []
        model = webui.switch_to("sdxl", 2)
        webui.txt2img(True, 0)
    if how == "unload":
        webui.sd_models.unload_model_weights()
        assert torch.equal(webui.txt2img(True, 0), expected()), "only its VRAM goes"
        return
    if how == "disabled":
        webui.callbacks.script_unloaded_callback()
        webui.conversions  # noqa: B018
        from lib_async_mover.webui.host.lifecycle import LIFECYCLE

        LIFECYCLE.leave()
    if how == "trash":
        webui.sd_models.send_model_to_trash(model)
    assert untouched(canny)
    assert not any(unet_mover(live).guests for live, _ in webui.conversions.items())
    assert canny.moves >= 1 and all(tensor.device.type == "cpu" for tensor in canny.parameters())


def test_the_ui_is_reloaded_in_the_middle_of_a_forward(webui, control, expected):
    webui.start("--async-lowvram")
    model = webui.load_model()
    control.units, control.low_vram = [("canny", {})], True
    webui.txt2img(True, 0)
    canny = control.cache["canny"].control_model
    handle = canny.middle_block.register_forward_hook(lambda *_: webui.callbacks.script_unloaded_callback())
    assert torch.equal(webui.txt2img(True, 0), expected())
    handle.remove()
    webui.load_scripts()
    assert torch.equal(webui.txt2img(True, 0), expected())
    assert guests(model) == [canny]


def test_the_same_model_in_another_unet(webui, control, expected):
    """With several checkpoints kept loaded, a control model that two of them use follows the one that computes."""
    webui.start("--async-lowvram")
    first = webui.load_model("sd1", 1)
    control.units = [("canny", {})]
    assert torch.equal(webui.txt2img(True, 0), expected("sd1", 1))
    second = webui.switch_to("sdxl", 2, 2)
    assert torch.equal(webui.txt2img(True, 0), expected("sdxl", 2))
    assert guests(second) == inner(control, "canny") and (not streams(first) or guests(first) == [])
    webui.switch_to("sd1", 1, 2)
    assert torch.equal(webui.txt2img(True, 0), expected("sd1", 1))


def test_a_nested_pass_without_control_sends_nobody_away(webui, control, expected):
    webui.start("--async-lowvram")
    model = webui.load_model()
    control.units = [("canny", {})]
    webui.txt2img(True, 0)
    units, control.units = control.units, []
    webui.txt2img()  # ADetailer's runs no hook of ours
    assert guests(model) == inner(control, "canny")
    control.units = units
    assert torch.equal(webui.txt2img(True, 0), expected())


def test_a_nested_pass_with_a_control_model_of_its_own(webui, control, expected):
    webui.start("--async-lowvram")
    model = webui.load_model()
    control.units = [("canny", {})]
    webui.txt2img(True, 0)
    control.units = [("depth", {})]
    assert torch.equal(webui.txt2img(), expected())
    assert guests(model) == inner(control, "depth")


@pytest.mark.parametrize("first", [False, True], ids=["ours first", "theirs first"])
def test_preprocessors_find_vram(webui, control, first):
    """They run before anything of the image is computed. After an image that failed half-way its stage is there."""
    webui.start("--async-lowvram")
    webui.load_model()
    webui.others_first, control.units = first, [("canny", {})]
    held = []
    control.on_preprocess = lambda: held.append(
        sum(mover.stats()["arena_mib"] or 0 for mover in webui.conversions.movers())
    )

    def fail(step):
        if step == 1:
            held.append(unet_mover(webui.shared.sd_model).stats()["arena_mib"])
            raise RuntimeError("out of luck")

    webui.txt2img(True, 0)
    webui.txt2img(True, 0)
    with pytest.raises(RuntimeError, match="out of luck"):
        webui.txt2img(True, 0, between=fail)
    assert held[3] > 0, "between two steps the buffer is held"
    webui.txt2img(True, 0)
    assert held[:3] == [0, 0, 0] and held[4:] == [0]
