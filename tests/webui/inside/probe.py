"""Laid into the webui as an extension: serves the adapter's status, and has the verbs that the API lacks."""

from __future__ import annotations

import sys
from typing import Any

from modules import script_callbacks


def routes(_: Any, app: Any) -> None:
    @app.get("/probe")
    def probe() -> dict:
        webui = sys.modules.get("lib_async_mover.webui")
        return webui.status() if webui else {}

    @app.get("/probe/weights")
    def weights() -> dict:
        """How the UNet's are stored."""
        from modules import shared

        found = list(shared.sd_model.model.diffusion_model.parameters())
        return {
            "dtypes": sorted({str(weight.dtype).partition(".")[2] for weight in found}),
            "channels_last": any(weight.ndim == 4 and not weight.is_contiguous() for weight in found),
        }

    @app.post("/probe/reload-script-bodies")
    def reload_script_bodies() -> dict:
        from modules import scripts

        scripts.reload_script_body_only()
        return {}

    @app.post("/probe/reload-ui")
    def reload_ui() -> dict:
        from modules import shared

        shared.state.request_restart()
        return {}


script_callbacks.on_app_started(routes)
