"""Runs a real webui in a data folder of its own: its installation is read, never written to.

Needs in the environment: WEBUI_DIR, the folder with webui.py. May have: WEBUI_PYTHON, its interpreter (else the one
in WEBUI_DIR/venv); WEBUI_ARGS, arguments it needs on this machine (the checkpoint, the attention to compare under);
WEBUI_EXTENSIONS, a folder with checkouts of other extensions, and with what they import in its `site-packages`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensor_file import shapes_of

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside")
KINDS = ["txt2img", "img2img", "hires"]
SMALL = {"width": 128, "height": 128, "steps": 2}  # an image that is soon made
START_LIMIT_S = 300
REQUEST_LIMIT_S = 300


def webui_dir() -> Path | None:
    """A folder named by WEBUI_DIR, or the webui this extension lies in."""
    named = os.environ.get("WEBUI_DIR")
    here = Path(named) if named else ROOT.parent.parent
    return here if (here / "webui.py").is_file() and (here / "modules" / "lowvram.py").is_file() else None


def python_of(folder: Path) -> str:
    named = os.environ.get("WEBUI_PYTHON")
    if named:
        return named
    candidates = [folder / "venv" / "bin" / "python", folder / "venv" / "Scripts" / "python.exe"]
    return str(next((path for path in candidates if path.is_file()), "python3"))


def other_extension(marker: str) -> Path | None:
    """The checkout in WEBUI_EXTENSIONS that has this file."""
    folder = Path(os.environ.get("WEBUI_EXTENSIONS") or "/nonexistent")
    return next((found.parents[marker.count("/")] for found in sorted(folder.glob(f"*/{marker}"))), None)


class RealWebui:
    """One running webui. `image()` makes one, `probe()` asks the adapter, `log()` reads the console."""

    def __init__(
        self,
        data_dir: Path,
        flags: tuple[str, ...],
        *,
        extension: bool,
        env: dict[str, str],
        page: bool = False,
        others: tuple[Path, ...] = (),
        inside: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            others: checkouts of other extensions.
            inside: scripts of the folder `inside` that run in the webui beside the probe.
        """
        folder = webui_dir()
        assert folder is not None
        self.data_dir = data_dir
        self.log_file = data_dir / "console.txt"
        extensions = data_dir / "extensions"
        (data_dir / "embeddings").mkdir()
        for name in ("probe", *inside):
            scripts = extensions / name.replace("_", "-") / "scripts"
            scripts.mkdir(parents=True)
            shutil.copy(INSIDE / f"{name}.py", scripts)
        for other in others:
            shutil.copytree(other, extensions / other.name)
        if extension:  # as Install from URL does it
            subprocess.run(["git", "clone", "-q", str(ROOT), str(extensions / "async-lowvram")], check=True, timeout=60)
            _bring_uncommitted(extensions / "async-lowvram")
        if others:
            packages = Path(os.environ["WEBUI_EXTENSIONS"]) / "site-packages"
            env = {"PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])} | env
        self.port = _free_port()
        command = [
            python_of(folder), "webui.py", "--api", *(() if page else ("--nowebui",)), "--port", str(self.port),
            "--data-dir", str(data_dir), "--models-dir", str(folder / "models"), "--lora-dir", str(data_dir / "lora"),
            *shlex.split(os.environ.get("WEBUI_ARGS", "")), *flags,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=self.log_file.open("wb"), stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env}, start_new_session=True,
        )  # fmt: skip
        self._ready = "Startup time:" if page else "Uvicorn running"
        self._wait(1)

    def _wait(self, times: int) -> None:
        """By its console alone: a request before it is ready can kill it."""
        limit = time.monotonic() + START_LIMIT_S
        while time.monotonic() < limit:
            log = self.log()
            if log.count(self._ready) >= times and "Model loaded in" in log:
                return
            if self._process.poll() is not None or "model failed to load" in log:
                break
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"the webui did not start:\n{self.log()[-4000:]}")

    def reload_ui(self) -> None:
        """As the button at the foot of the page does it."""
        times = self.log().count(self._ready)
        self.call("/probe/reload-ui", {})
        self._wait(times + 1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def lines(self) -> list[str]:
        """The extension's own lines."""
        return [line for line in self.log().splitlines() if "async lowvram:" in line]

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=REQUEST_LIMIT_S) as answer:
            return json.loads(answer.read() or b"null")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def probe(self) -> dict[str, Any]:
        return self.call("/probe")

    @property
    def streams(self) -> bool:
        """Does any model?"""
        return bool(self.probe()["models"])

    def stages(self) -> dict[str, dict[str, Any]]:
        """`stats()` by component, of the only model that streams."""
        (model,) = self.probe()["models"]
        return model["stages"]

    def unet(self) -> dict[str, Any]:
        return self.stages()["unet"]

    def check_quiet(self) -> None:
        """Nothing went wrong so far."""
        assert self.probe().get("last_error") is None
        assert "Traceback" not in self.log()

    def image(
        self,
        verb: str = "txt2img",
        script: list[Any] | None = None,
        settings: dict[str, Any] | None = None,
        **body: Any,
    ) -> str:
        """SHA-256 of the first image's pixels.

        Args:
            script: the extension's arguments; None: its defaults.
            settings: overridden for this image.
        """
        request: dict[str, Any] = {
            "prompt": "a cat, (red:1.2) hat", "negative_prompt": "dog", "seed": 7, "steps": 3, "cfg_scale": 7,
            "width": 256, "height": 256, "sampler_name": "Euler",
            "override_settings": {"live_previews_enable": False, "samples_format": "png"},
        }  # fmt: skip
        if verb == "hires":
            request |= {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
        if verb == "img2img":
            request |= {"init_images": [gradient_png()], "denoising_strength": 0.6}
        request |= body
        if script is not None:
            request["alwayson_scripts"] = {"async lowvram": {"args": script}} | request.get("alwayson_scripts", {})
        request["override_settings"] = request["override_settings"] | (settings or {})
        answer = self.call("/sdapi/v1/img2img" if verb == "img2img" else "/sdapi/v1/txt2img", request)
        return hashlib.sha256(png_pixels(base64.b64decode(answer["images"][0]))).hexdigest()[:16]


@contextmanager
def one_at_a_time(folders: Any) -> Iterator[Callable[..., RealWebui]]:
    """`start("--flag", …)` is a running webui with the extension; the one before it, with other arguments, is stopped.

    Args:
        folders: pytest's `tmp_path_factory`.
    """
    running: dict[tuple, RealWebui] = {}

    def start(
        *flags: str,
        extension: bool = True,
        backend: str = "cpu",
        others: tuple[Path, ...] = (),
        inside: tuple[str, ...] = (),
        page: bool = False,
    ) -> RealWebui:
        key = (flags, extension, backend, others, inside, page)
        if key not in running:
            stop()
            env = {"ASYNC_LOWVRAM_BACKEND": backend}
            running[key] = RealWebui(
                folders.mktemp("webui"), flags, extension=extension, env=env, page=page, others=others, inside=inside
            )
        return running[key]

    def stop() -> None:
        for server in running.values():
            server.stop()
        running.clear()

    yield start
    stop()


def checkpoints(server: RealWebui) -> list[str]:
    """Titles of all checkpoints, the loaded one first."""
    loaded = server.call("/sdapi/v1/options")["sd_model_checkpoint"]
    titles = [entry["title"] for entry in server.call("/sdapi/v1/sd-models")]
    first = next((title for title in titles if title.split(" ")[0] == str(loaded).split(" ")[0]), titles[0])
    return [first, *(title for title in titles if title != first)]


def sdxl_of(server: RealWebui) -> str | None:
    """The title of an SDXL checkpoint, whatever its name."""
    for entry in server.call("/sdapi/v1/sd-models"):
        file = Path(entry["filename"])
        if file.suffix == ".safetensors" and "conditioner.embedders.1.model.ln_final.weight" in shapes_of(file):
            return entry["title"]
    return None


def _bring_uncommitted(clone: Path) -> None:
    """The clone has what is committed; the test is about what lies here."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, timeout=60, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        source, target = ROOT / name, clone / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def png_pixels(png: bytes) -> bytes:
    """The compressed rows of a PNG, without its metadata: equal pixels, encoded by one encoder, give equal rows."""
    import zlib

    rows, at = b"", 8
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        if kind == b"IDAT":
            rows += png[at + 8 : at + 8 + size]
        at += size + 12
    return zlib.decompress(rows)


def gradient_png(size: int = 256) -> str:
    """A grey ramp as base64 PNG, made without any imaging library."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([y % 256]) * (3 * size) for y in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()
