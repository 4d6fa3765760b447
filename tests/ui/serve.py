"""A gradio page that hosts the script through the stub webui: what the browser tests look at.

    python tests/ui/serve.py --port 7900 [--auth user:password] [--api-auth user:password] [--profile sd15_b2_512]

It prints "ready PORT PID" when it can be asked, and runs until its input ends. Without arguments it reads lines, each a
JSON list of arguments, and serves each in a fork of its own: torch and gradio are imported once for all of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
os.environ.update(ASYNC_LOWVRAM_BACKEND="cpu", GRADIO_ANALYTICS_ENABLED="False", no_proxy="*")
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host"), str(ROOT / "tests" / "host" / "stub")]

import gradio as gr  # noqa: E402
from gradio import routes  # noqa: E402
from torch import nn  # noqa: E402
from webui_stub import Webui  # noqa: E402


class InputAccordion(gr.Checkbox):
    """As the webui has it: a hidden checkbox that follows an accordion, and is followed by it."""

    def __init__(self, value: bool, label: str, elem_id: str) -> None:
        super().__init__(value, label=label, elem_id=f"{elem_id}-checkbox", visible=False)
        self.elem = elem_id
        self.accordion = gr.Accordion(label=label, open=value, elem_id=elem_id, elem_classes=["input-accordion"])

    def extra(self) -> gr.Column:
        return gr.Column(elem_id=f"{self.elem}-extra", elem_classes="input-accordion-extra", min_width=0)

    def __enter__(self) -> InputAccordion:
        self.accordion.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.accordion.__exit__(*error)

    def get_block_name(self) -> str:
        return "checkbox"


def with_our_files(localization: dict[str, str]) -> None:
    """Put the stub's script, then the extension's scripts and style, into gradio's page."""
    original = routes.templates.TemplateResponse
    scripts = [HERE / "page_host.js", *sorted((ROOT / "javascript").glob("*.js"))]
    head = f"<script>window.localization = {json.dumps(localization)}</script>"
    head += "".join(f"<script>{path.read_text()}</script>" for path in scripts)
    head += f"<style>{(ROOT / 'style.css').read_text()}</style>"

    def response(*args: Any, **kwargs: Any) -> Any:
        page = original(*args, **kwargs)
        page.body = page.body.replace(b"</head>", f"{head}</head>".encode())
        page.init_headers()
        return page

    routes.templates.TemplateResponse = response


def play_profile(name: str, budget_mb: int, automatic: bool) -> None:
    """A model that seems to stream, with times measured on a real card."""
    from modules import shared

    from lib_async_mover.bench.profiles import workload_of_profile
    from lib_async_mover.plan.planner import make_plan
    from lib_async_mover.webui.host.conversion import CONVERSIONS

    data = json.loads((ROOT / "tests" / "profiles" / f"profile_{name}.json").read_text())
    workload = workload_of_profile(data).scaled(5.8, 12.0)
    plan = make_plan(workload, budget_mb << 20)
    asked_mb = 0 if automatic else budget_mb
    mover = SimpleNamespace(forwards=20, vram_mb=asked_mb, plan=plan, workload=lambda: workload)

    def stats() -> dict[str, Any]:
        step_ms = 1.02 * plan.predicted_ms
        return {
            "vram_mb": asked_mb, "budget_mb": budget_mb, "resident_mib": plan.resident_bytes / 2**20,
            "ring_mib": plan.ring_bytes / 2**20, "weights_mib": workload.weight_bytes / 2**20, "pageable_mib": 0.0,
            "pinned_mib": workload.weight_bytes / 2**20,
            "streamed_units": plan.streamed_units, "bytes_per_step": plan.streamed_bytes, "step_ms": step_ms,
            "it_s": 1e3 / step_ms, "predicted_ms": plan.predicted_ms, "limit_ms": plan.limit_ms,
            "stall_share": plan.stall_ms / plan.predicted_ms, "h2d_gbps": 12.0,
        }  # fmt: skip

    mover.stats = stats
    components = [SimpleNamespace(mover=mover)]
    stage = SimpleNamespace(name="unet", busy=False, on_gpu=True, components=components)
    shared.sd_model = nn.Module()
    CONVERSIONS.add(shared.sd_model, SimpleNamespace(name="played", stages=[stage], components=components))


def play_card(total_gb: float, used_gb: float, platform: str) -> None:
    """Counters of a card that this machine has not."""
    from lib_async_mover.webui.page import readout

    total, used = int(total_gb * 2**30), int(used_gb * 2**30)
    real = readout.memory
    readout.memory = lambda device: {
        **real(device), "cuda": {"system": {"free": total - used, "used": used, "total": total}}
    }  # fmt: skip
    readout.sys = SimpleNamespace(platform=platform)


def build(webui: Webui) -> gr.Blocks:
    images: list[Any] = []
    with gr.Blocks(title="stub", analytics_enabled=False) as demo, gr.Tabs(elem_id="tabs"):
        for tab in ("txt2img", "img2img"):
            with gr.TabItem(tab, elem_id=f"tab_{tab}"):
                webui.script.is_img2img = tab == "img2img"
                inputs = webui.script.ui(tab == "img2img")

                def generate(steps: float, *args: Any, tab: str = tab) -> str:
                    image = getattr(webui, tab)(*args, steps=int(steps))
                    images.append(image)
                    return f"image {len(images)}: {image.sum().item():.4f}"

                result = gr.Textbox(label="Result", elem_id=f"{tab}_result")
                steps = gr.Number(12, label="Steps", elem_id=f"{tab}_steps")
                gr.Button("Generate", elem_id=f"{tab}_generate").click(generate, [steps, *inputs], result, queue=False)
    return demo


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--auth")
    parser.add_argument("--api-auth")
    parser.add_argument("--config", type=Path, help="the settings file; kept over a restart")
    parser.add_argument("--profile", help="seem to stream this UNet")
    parser.add_argument("--budget-mb", type=int, default=256)
    parser.add_argument("--automatic", action="store_true", help="that size was chosen by itself")
    parser.add_argument("--card", default="", help="total,used,platform: 4,2.5,linux")
    parser.add_argument("--localization", default="")
    parser.add_argument("--refuse", action="store_true", help="be a host that the extension leaves alone")
    parser.add_argument("--interval", type=int)
    return parser


def serve(arguments: list[str]) -> None:
    given = options().parse_args(arguments)
    if given.refuse:
        del os.environ["ASYNC_LOWVRAM_BACKEND"]
    importlib.import_module("modules.ui_components").InputAccordion = InputAccordion
    webui = Webui()
    webui.shared.config_filename = str(given.config or Path(tempfile.mkdtemp()) / "config.json")
    if given.config and given.config.exists():
        webui.shared.opts.data = json.loads(given.config.read_text())
    if given.interval is not None:
        webui.shared.opts.data["async_lowvram_interval_s"] = given.interval
    if given.profile:
        webui.shared.opts.data["async_lowvram_buffer_mb"] = 0 if given.automatic else given.budget_mb
    webui.shared.cmd_opts.api_auth = given.api_auth
    webui.start()
    for callback in webui.callbacks.callbacks.get("ui_settings", []):
        callback()
    webui.load_model()
    if given.profile:
        play_profile(given.profile, given.budget_mb, given.automatic)
    if given.card:
        total, used, platform = given.card.split(",")
        play_card(float(total), float(used), platform)
    language = ROOT / "localizations" / f"{given.localization}.json"
    with_our_files(json.loads(language.read_text(encoding="utf-8")) if given.localization else {})
    demo = build(webui)
    auth = tuple(given.auth.split(":")) if given.auth else None
    app, _, _ = demo.launch(
        server_name="127.0.0.1", server_port=given.port, auth=auth, prevent_thread_lock=True, quiet=True
    )
    for callback in webui.callbacks.callbacks.get("app_started", []):
        callback(demo, app)
    os.write(1, f"ready {given.port} {os.getpid()}\n".encode())


def main() -> None:
    if len(sys.argv) > 1:
        serve(sys.argv[1:])
        sys.stdin.read()
        return
    for line in sys.stdin:
        if os.fork() == 0:
            os.close(0)
            try:
                serve(json.loads(line))
            except BaseException as error:  # its port may be another's by now
                os.write(1, f"failed {error!r}\n".encode())
                os._exit(1)
            threading.Event().wait()


if __name__ == "__main__":
    main()
