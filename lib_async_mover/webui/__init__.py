"""The adapter to stable-diffusion-webui: the one package here that imports the host's `modules`.

`start()` is all that the script needs. What imports parts of the host that a fork may lack is imported only after
`host.detect()` said yes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_async_mover.webui.host import detect, flag_given
from lib_async_mover.webui.logs import make_audible
from lib_async_mover.webui.state import STATE, status

if TYPE_CHECKING:
    from lib_async_mover.webui.lifecycle import Extension

__all__ = ["start", "status"]


def start() -> Extension | None:
    """Called each time the host executes the script. Returns None on a host that is left alone."""
    make_audible()
    STATE.host = detect()
    STATE.flag = flag_given()
    if STATE.host.reason is not None:
        ignored = "--async-lowvram is ignored" if STATE.flag else "nothing is changed"
        STATE.say(f"not used here, {STATE.host.reason}; {ignored}")
        return None
    from lib_async_mover.webui import lifecycle

    return lifecycle.begin(STATE.host)
