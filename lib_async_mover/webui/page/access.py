"""Who may ask for the status: whoever may see the page, or use the API. The webui guards no extension's route."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any

PAGE_KEY_HEADER = "x-async-lowvram-key"
PAGE_KEY = secrets.token_urlsafe(18)  # handed out with the page, so it opens what the page's own login opens


def allowed(app: Any, api_auth: str | None, headers: Any, cookies: Any) -> bool:
    """
    With a gradio login, its cookie is needed; with --api-auth, name and password in the request are as good.

    With --api-auth alone the page is open to everybody: its own requests carry the key that came with the page.
    """
    login = getattr(app, "auth", None) is not None
    if login and _logged_in(app, cookies):
        return True
    if api_auth:
        if _basic(headers.get("authorization"), api_auth):
            return True
        return not login and secrets.compare_digest(headers.get(PAGE_KEY_HEADER, "").encode(), PAGE_KEY.encode())
    return not login


def _logged_in(app: Any, cookies: Any) -> bool:
    tokens = getattr(app, "tokens", None) or {}
    names = ("access-token", "access-token-unsecure")
    return any(tokens.get(cookies.get(name)) is not None for name in names if cookies.get(name))


def _basic(header: str | None, api_auth: str) -> bool:
    """`api_auth` as the webui has it: "name:password,name:password"."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    return any(secrets.compare_digest(given, known.encode()) for known in api_auth.split(",") if known)
