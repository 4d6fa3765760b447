"""One running webui of the benchmark: a process in a data folder of its own, that ends with its `with` block."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.options import Configuration, Options

PROBE = Path(__file__).with_name("probe.py")
OURS = ("lib_async_mover", "scripts", "javascript", "localizations", "preload.py", "metadata.ini", "style.css")
PROBE_PATH = "/async-lowvram-bench"
SETTINGS_VARIABLE = "ASYNC_LOWVRAM_BENCH"
READY = ("Uvicorn running", "Model loaded in")
LOG_END = 1200  # characters
CALL_LIMIT_S = 900.0


class Webui:
    """`call` asks its API, `facts` the probe in it, `log` is its console so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self._process = process
        self._address = f"http://127.0.0.1:{port}"
        self._log_file = log_file

    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def log_end(self) -> str:
        """What it said last: why it stopped, if it did."""
        return self.log()[-LOG_END:].strip()

    def cause(self) -> str:
        """Its last line that names an error, and what it said last."""
        errors = re.findall(r"^.*(?:Error|error:|failed to load).*$", self.log(), re.MULTILINE)
        return f"{errors[-1].strip()} … {self.log_end()}" if errors else self.log_end()

    def logged_s(self, what: str) -> float | None:
        """The seconds that the console tells behind `what`."""
        found = re.search(rf"{what} ([\d.]+)s", self.log())
        return float(found[1]) if found else None

    def wait(self, limit_s: float) -> None:
        """Until it takes requests, told by its console alone: asked too early, it can die.

        Raises BenchError where it does not start, with the end of its log.
        """
        until_s = time.monotonic() + limit_s
        while not all(line in self.log() for line in READY):
            failed = "model failed to load" in self.log()
            if failed or self._process.poll() is not None or time.monotonic() > until_s:
                time.sleep(0.5)  # for its last words
                raise BenchError(f"the webui did not start: {self.cause()}")
            time.sleep(0.1)

    def call(self, path: str, body: Any = None, limit_s: float = CALL_LIMIT_S) -> Any:
        """The answer to a GET, or a POST of `body`. Raises BenchError with what it answers instead, or with its log."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise BenchError(f"HTTP {error.code}: {_words(error.read())}") from error
        except (OSError, HTTPException) as error:
            time.sleep(0.5)  # it may be about to die
            state = "does not answer" if self._process.poll() is None else "died"
            raise BenchError(f"the webui {state} ({error}): {self.cause()}") from error

    def facts(self, **change: Any) -> dict[str, Any]:
        """The probe's, after it was told `change` (vram_gb, reset). Raises BenchError where it cannot do that."""
        facts: dict[str, Any] = self.call(PROBE_PATH, change)
        if facts["error"]:
            raise BenchError(facts["error"])
        return facts


@contextmanager
def running(options: Options, configuration: Configuration, folder: Path, limit_s: float) -> Iterator[Webui]:
    """The webui in the empty data folder `folder`, ready. Raises BenchError where it does not start in `limit_s`."""
    _fill(options, configuration, folder)
    port, log_file = _free_port(), folder / "console.txt"
    settings = json.dumps({"vram_gb": configuration.vram_gb, "bus_gbps": options.bus_gbps})
    with log_file.open("wb") as log:
        try:
            process = subprocess.Popen(
                [interpreter(options), "webui.py", *arguments(options, configuration, folder), "--port", str(port)],
                cwd=options.webui, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", SETTINGS_VARIABLE: settings}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise BenchError(f"name the webui's Python with --python, this one does not run: {error}") from error
    try:
        webui = Webui(process, port, log_file)
        webui.wait(limit_s)
        yield webui
    finally:
        process.kill()
        process.wait()


def interpreter(options: Options) -> str:
    """The webui's own. Raises BenchError where DIR holds no webui, or no interpreter and none is named."""
    if not (options.webui / "webui.py").is_file():
        raise BenchError(f"there is no webui.py in {options.webui}: name the webui's folder with --webui")
    found = [options.webui / "venv" / "bin" / "python", options.webui / "venv" / "Scripts" / "python.exe"]
    named = options.python or next((str(path) for path in found if path.is_file()), None)
    if named is None:
        raise BenchError(f"{options.webui} has no venv: start its webui-user once, or name a Python with --python")
    return named


def arguments(options: Options, configuration: Configuration, folder: Path) -> list[str]:
    """Of webui.py. The user's own come last, so that they overrule."""
    given = ["--nowebui", "--api", "--data-dir", str(folder), "--models-dir", str(options.webui / "models")]
    given += ["--no-hashing", "--no-download-sd-model", "--ckpt-dir", str(folder / "checkpoints")]
    given += ["--ckpt", str(options.checkpoint)] if options.checkpoint else []
    for name, file in (("--lora-dir", options.lora), ("--controlnet-dir", options.controlnet)):
        given += [name, str(file.parent)] if file else []
    return [*given, *filter(None, [configuration.flag]), *options.arguments]


def _fill(options: Options, configuration: Configuration, folder: Path) -> None:
    extensions = folder / "extensions"
    for name in ("embeddings", "checkpoints"):
        (folder / name).mkdir(parents=True)
    scripts = extensions / "async-lowvram-bench" / "scripts"  # by name behind ours: it changes the engine, once loaded
    scripts.mkdir(parents=True)
    shutil.copy(PROBE, scripts / "async_lowvram_bench.py")
    rubbish = shutil.ignore_patterns(".git", "__pycache__")
    for other in options.extensions:
        shutil.copytree(other, extensions / other.name, ignore=rubbish)
    if configuration.extension is not None:
        for name in OURS:
            source, target = configuration.extension / name, extensions / "async-lowvram" / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=rubbish)
            elif source.is_file():
                shutil.copy(source, target)
    if options.ram:
        _link_other(options, folder / "checkpoints")


def _link_other(options: Options, folder: Path) -> None:
    """A second checkpoint; the same file by another name will do, since the webui loads it anew."""
    source = options.other_checkpoint or options.checkpoint
    if source is None:
        raise BenchError("--ram switches checkpoints: name one with --checkpoint, or --random sd15 or sdxl")
    for found in (source, source.with_suffix(".yaml")):
        if found.is_file():
            target = folder / f"other{found.suffix}"
            try:
                target.symlink_to(found.resolve())
            except OSError:  # Windows asks for a privilege
                shutil.copy(found, target)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _words(answer: bytes) -> str:
    """The webui's own errors are {"error": class, "errors": message}, fastapi's {"detail": …}."""
    try:
        found = json.loads(answer)
        return ": ".join(str(found[key]) for key in ("error", "errors", "detail") if found.get(key))[:LOG_END]
    except (ValueError, AttributeError, TypeError):
        return answer.decode(errors="replace")[:LOG_END]
