"""The order in which a UNet runs its layers, kept over restarts: so its weights are packed when it is loaded, and not
in the first image. It is a hint alone, which the first forward's trace goes on to check."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

from torch import nn

from lib_async_mover import Mover
from lib_async_mover.memory.leaf import find_leaves

logger = logging.getLogger("async_lowvram")

_kept: WeakKeyDictionary[Mover, list[str]] = WeakKeyDictionary()  # by this process: not looked up after each image


def kept_order(unet: nn.Module) -> list[str]:
    """Names of its leaves, if one like it ran before."""
    try:
        return list(_orders().get(_key(unet)) or ())
    except Exception as error:  # noqa: BLE001  the cache's file may be locked, damaged, or not to be written
        logger.debug("no order is kept: %s", error)
        return []


def keep_order(mover: Mover) -> None:
    """Once it is known, and again if it changes."""
    order = mover.order
    if not order or order == _kept.get(mover):
        return
    try:
        _orders()[_key(mover.root)] = _kept[mover] = order
    except Exception as error:  # noqa: BLE001
        logger.debug("the order is not kept over a restart: %s", error)


def _orders() -> MutableMapping[str, list[str]]:
    from modules.cache import cache  # the host's, on disk

    return cache("async-lowvram")


def _key(unet: nn.Module) -> str:
    """Equal for UNets of the same layers."""
    leaves = ",".join(f"{leaf.name}:{leaf.bytes()}" for leaf in find_leaves(unet)[0])
    return hashlib.sha256(leaves.encode()).hexdigest()
