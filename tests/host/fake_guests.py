"""In place of `Mover.guests` until the engine has it."""

from __future__ import annotations

import weakref

from lib_async_mover import Mover, mover_of
from lib_async_mover.errors import AsyncMoverError

_guests: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _get(mover):
    return [one for ref in _guests.get(mover, []) if (one := ref()) is not None]


def _set(mover, guests):
    for guest in guests:
        if mover_of(guest) is not None:
            raise AsyncMoverError("it is attached elsewhere")
        for other in list(_guests):
            if other is not mover and guest in _get(other):
                raise AsyncMoverError("it is another's guest")
    _guests[mover] = [weakref.ref(guest) for guest in guests]


if not hasattr(Mover, "guests"):
    Mover.guests = property(_get, _set)
