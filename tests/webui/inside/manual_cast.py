"""Laid into the webui as an extension: the host does what it does where autocast is not to be had, as for float8 with
--no-half on a GPU.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from modules import devices

print("float8 is cast by hand")


def autocast(disable: bool = False) -> AbstractContextManager:
    return devices.manual_cast(devices.dtype) if devices.fp8 and not disable else contextlib.nullcontext()


devices.autocast = autocast
