"""The routes behind the live readout. The page asks by relative paths, so `--subpath` needs nothing here."""

from __future__ import annotations

from typing import Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse
from modules import shared

from lib_async_mover.webui.host.choice import STANDING, ChoiceError, checked
from lib_async_mover.webui.page.access import allowed
from lib_async_mover.webui.page.details import DETAILS
from lib_async_mover.webui.page.readout import READOUT

STATUS_PATH = "/async-lowvram/status"
DETAILS_PATH = "/async-lowvram/details"
CHOICE_PATH = "/async-lowvram/choice"


def add_routes(_demo: Any, app: FastAPI) -> None:
    """At each start of the page, and once with --nowebui."""
    def refusal(request: Request) -> JSONResponse | None:
        api_auth = getattr(shared.cmd_opts, "api_auth", None)
        if allowed(app, api_auth, request.headers, request.cookies):
            return None
        return JSONResponse({"detail": "Not authenticated"}, status_code=401)

    def answer(request: Request, content: Any) -> JSONResponse:
        try:
            return refusal(request) or JSONResponse(content(), headers={"Cache-Control": "no-store"})
        except ChoiceError as error:
            return JSONResponse({"detail": error.detail}, status_code=error.status_code)

    def status(request: Request) -> JSONResponse:
        return answer(request, READOUT.status)

    def details(request: Request) -> JSONResponse:
        return answer(request, DETAILS.get)

    def choose(request: Request, body: Any = Body(...)) -> JSONResponse:  # noqa: B008  that is how fastapi is told
        return answer(request, lambda: _choose(body))

    app.add_api_route(STATUS_PATH, status, methods=["GET"], summary="Async lowvram: memory and streaming")
    app.add_api_route(DETAILS_PATH, details, methods=["GET"], summary="Async lowvram: curve and residency")
    app.add_api_route(CHOICE_PATH, choose, methods=["POST"], summary="Async lowvram: what the page's controls show")


def _choose(body: Any) -> dict[str, Any]:
    """The answer is the status: whoever chooses sees at once what came of it."""
    choice = checked(body)
    if choice != STANDING.get():
        STANDING.set(choice)
    return READOUT.status()
