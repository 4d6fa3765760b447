"""What the benchmark in the webui starts, asks for, and writes: no webui needed."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys

import pytest
import torch

from lib_async_mover.bench import report
from lib_async_mover.bench.cli import main as engine_main
from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.__main__ import build_parser, main
from lib_async_mover.bench.webui.checkpoint import write_random
from lib_async_mover.bench.webui.images import Image, ramp_png, request
from lib_async_mover.bench.webui.options import HERE, Configuration, Options
from lib_async_mover.bench.webui.runner import WebuiRunner
from lib_async_mover.bench.webui.server import OURS, PROBE_PATH, Webui, arguments
from lib_async_mover.bench.webui.users import images_of, measure_images
from lib_async_mover.bench.webui_tables import format_webui


def parsed(*given):
    return Options(**vars(build_parser().parse_args(["--webui", ".", *given])))


def test_the_configurations_in_turn():
    names = [one.name for one in parsed("--buffers", "auto,512").configurations()]
    assert names == ["no flag", "--medvram", "--lowvram", "--async-lowvram, auto", "--async-lowvram, 512 MB"]
    compared = parsed("--flags", "async", "--version", f"before={HERE}", "--version", f"after={HERE}").configurations()
    assert [one.name for one in compared] == ["--async-lowvram, auto, before", "--async-lowvram, auto, after"]
    assert [one.vram_gb for one in parsed("--flags", "lowvram", "--vram-gb", "4,2").configurations()] == [4.0, 2.0]
    small = parsed("--flags", "lowvram", "--vram-gb", "2,4", "--small-cards").configurations()
    assert [one.vram_gb for one in small] == [4.0]
    assert all((one.extension is not None) == ("async" in one.flag) for one in parsed().configurations())


def test_what_the_user_asks_of_the_image(tmp_path):
    for name in ("l.safetensors", "c.safetensors"):
        (tmp_path / name).touch()
    lora, control = tmp_path / "l.safetensors", tmp_path / "c.safetensors"
    options = parsed("--lora", str(lora), "--controlnet", str(control), "--controlnet-lowvram", "--hires", "1.5")
    body = request(options, Configuration("--async-lowvram", 512), 20, 64, 2)
    assert "<lora:l:1>" in body["prompt"] and body["hr_scale"] == 1.5 and body["batch_size"] == 2
    assert body["alwayson_scripts"]["async lowvram"] == {"args": [True, 512]}
    (unit,) = body["alwayson_scripts"]["controlnet"]["args"]
    assert unit["model"] == "c" and unit["low_vram"] is True
    plain = request(Options(webui=tmp_path), Configuration("--lowvram"), 20, 64, 1)
    assert plain["alwayson_scripts"] == {} and "enable_hr" not in plain
    given = arguments(options, Configuration("--lowvram"), tmp_path)
    assert given[given.index("--lora-dir") + 1] == str(tmp_path) and "--lowvram" in given


def test_the_users_arguments_overrule(tmp_path):
    options = Options(webui=tmp_path, arguments=("--models-dir", "elsewhere"))
    given = arguments(options, Configuration(""), tmp_path)
    assert given[-2:] == ["--models-dir", "elsewhere"] and "" not in given


def test_the_extension_is_whole():
    """All that the webui reads of it is copied."""
    there = {path.name for path in HERE.iterdir()}
    assert set(OURS) <= there
    left_out = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "docs", "install.py", "pyproject.toml", "tests"}
    unknown = {name for name in there - set(OURS) - left_out if not name.startswith((".", "__"))}
    assert not unknown - {"shared", "build"}, unknown


def test_a_ramp_is_a_picture():
    image = pytest.importorskip("PIL.Image")
    picture = image.open(io.BytesIO(base64.b64decode(ramp_png(300))))
    assert picture.size == (300, 300) and picture.convert("RGB").getpixel((5, 260)) == (4, 4, 4)


def test_random_weights_as_safetensors():
    shapes = {"a.weight": ([64, 32], "F16"), "n.weight": ([64], "F16"), "n.bias": ([64], "F16"), "ids": ([1, 7], "I64")}
    target = io.BytesIO()
    assert list(write_random(shapes, target)) == list(shapes)
    data = target.getvalue()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0 and len(data) == 8 + size + max(one["data_offsets"][1] for one in header.values())

    def values(name, dtype):
        begin, end = header[name]["data_offsets"]
        return torch.frombuffer(bytearray(data[8 + size + begin : 8 + size + end]), dtype=dtype)

    assert values("a.weight", torch.float16).float().std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert values("n.weight", torch.float16).float().mean().item() == pytest.approx(1.0, abs=0.1)
    assert values("ids", torch.int64).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "no webui.py"), (["--small-cards"], "--vram-gb"), (["--data-dir", str(HERE)], "not empty"), (["x"], "venv")],
)
def test_refusals_say_what_to_do(given, words, tmp_path, capsys):
    python = ["--python", "python"] if given != ["x"] else []
    if given:
        (tmp_path / "webui.py").touch()
    assert main(["--webui", str(tmp_path), *python, *(part for part in given if part != "x")]) == 2
    assert words in capsys.readouterr().err


class PaperCamera:
    """Images of 0.2 s and 50 ms a step."""

    def __init__(self, **options):
        self.options, self.webui, self.made = Options(webui=None, **options), self, []

    def make(self, steps):
        self.made.append(steps)
        return Image(0.2 + 0.05 * steps + (0.7 if len(self.made) == 1 else 0.0), "ab")

    def facts(self):
        return dict.fromkeys(
            ("peak_mib", "reserved_mib", "rss_mib", "peak_rss_mib", "pinned_mib", "oom_retries", "h2d_gbps"), 1.0
        )


@pytest.mark.parametrize("rounds", [0, 3])
def test_times_of_a_step_and_of_an_image(rounds):
    camera, row, counted = PaperCamera(rounds=rounds), {}, []
    measure_images(camera, row, counted.append)
    assert row["first_s"] == pytest.approx(1.9) and row["image_s"] == pytest.approx(1.2)
    assert row.get("ms_per_step") == (pytest.approx(50.0) if rounds else None)
    assert camera.made == [20, *([5, 20] * 3 if rounds else [20, 20])]
    assert sum(counted) == images_of(rounds) == len(camera.made)


def test_the_webuis_words_reach_the_user(tmp_path):
    log = tmp_path / "console.txt"
    log.write_text("Startup time: 7.8s (a: 1.0s).\nModel loaded in 1.5s\nOutOfMemoryError: no\nStopping\n")

    class Ended:
        def poll(self):
            return 1

    webui = Webui(Ended(), 1, log)  # nobody listens on port 1
    assert (webui.logged_s("Startup time:"), webui.logged_s("Model loaded in"), webui.logged_s("x")) == (7.8, 1.5, None)
    with pytest.raises(BenchError, match="died.*OutOfMemoryError: no"):
        webui.call(PROBE_PATH)
    with pytest.raises(BenchError, match="did not start: OutOfMemoryError: no"):
        webui.wait(1)


def row(name, kind="images", **values):
    shared = dict(model="sd15", size=512, steps=20, batch=1, seed=1, extras="", vram_gb=None, bus_gbps=None, error=None)
    return shared | dict(name=name, kind=kind, gpu="NVIDIA X", torch="2.11") | values


IMAGES = [
    row("--lowvram", ms_per_step=400.04, first_s=9.5, image_s=8.51, peak_mib=776.2, rss_mib=4000.0, reserved_mib=900.0,
        pixels_sha256="b03047b7fd744793"),
    row("--async-lowvram, auto", error="the webui did not start: a|b"),
]  # fmt: skip
CARDS = [
    row("--lowvram", "cards", vram_gb=4.0, largest_px=768, largest_batch=4, ms_per_step=400.0, oom_retries=0,
        pixels={"512": "a", "768": "b"}, failures={"832": "no"}),
    row("--lowvram", "cards", vram_gb=2.0, largest_px=0, largest_batch=0, oom_retries=0, pixels={}, failures={}),
    row("--async-lowvram, auto", "cards", vram_gb=4.0, largest_px=832, largest_batch=5, ms_per_step=40.0, oom_retries=2,
        pixels={"512": "a", "768": "c", "832": "d"}, failures={}),
    row("--async-lowvram, auto", "cards", vram_gb=2.0, error="stopped by --limit-s"),
]  # fmt: skip
RAM = [row("--lowvram", "ram", rss_loaded_mib=3000.0, rss_switches_mib=3500.0, peak_rss_mib=6000.0)]


def cells(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_of_what_users_get():
    assert format_webui(IMAGES).startswith("**sd15 in the webui, 512 × 512, 20 steps**; NVIDIA X, torch 2.11.")
    short = format_webui(IMAGES, short=True)
    assert cells(short, "--lowvram") == ["400.0", "9.50 s", "8.51 s", "776 MiB", "4000 MiB", "`b03047b7fd74`"]
    assert cells(short, "--async-lowvram, auto")[-1] == "failed: a/b"
    assert "900 MiB" in format_webui(IMAGES) and "900 MiB" not in short


def test_the_table_of_small_cards():
    whole = format_webui(CARDS)
    assert "emulated" in whole
    lines = [line for line in whole.splitlines() if line.startswith("| `")]
    assert [line.split("|")[2].strip() for line in lines] == ["2 GB", "2 GB", "4 GB", "4 GB"]
    assert "**other at 768**" in lines[3] and "stopped" in lines[1]
    assert "nothing to compare" in lines[0] and "nothing to compare" in lines[2]
    agreeing = [CARDS[0], CARDS[2] | {"pixels": {"512": "a", "832": "d"}}]
    assert "same in 1" in format_webui(agreeing)
    short = format_webui(CARDS, short=True)
    assert cells(short, "--lowvram") == ["none", "768², 4 at once"]
    assert cells(short, "--async-lowvram, auto") == ["not measured", "832², 5 at once"]


def test_the_table_of_ram():
    assert cells(format_webui(RAM), "--lowvram")[1:3] == ["3000 MiB", ""]


def test_documents_have_places_for_them(tmp_path):
    document, files = tmp_path / "README.md", []
    for number, rows in enumerate((IMAGES, CARDS, RAM)):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(rows))
    for place, expected in ((report.WEBUI, 3), (report.WEBUI_SHORT, 3)):
        document.write_text("\n".join(report.markers(place)))
        given = ["report", *map(str, files), "--into", str(document)]
        assert engine_main([*given, "--check"]) == 2
        assert engine_main(given) == engine_main([*given, "--check"]) == 0
        assert document.read_text().count("NVIDIA X") == expected
    assert engine_main(["report", "docs/measured/h200_sd15_b2_512.json", "--into", str(document)]) == 0
    assert document.read_text() == "\n".join(report.markers(report.WEBUI_SHORT))


def test_rows_are_kept_when_nothing_starts(tmp_path):
    (tmp_path / "webui.py").write_text("raise ImportError('no')")
    json_path = tmp_path / "rows.json"
    options = Options(webui=tmp_path, python=sys.executable, flags=("none", "async"), json_path=json_path)
    rows = WebuiRunner(options).run()
    assert rows == json.loads(json_path.read_text()) and len(rows) == 2
    assert all("ImportError: no" in one["error"] for one in rows)
