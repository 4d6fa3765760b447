"""Out of memory in one of a model's stages: weights give way, and the call is made again."""

from __future__ import annotations

from lib_async_mover.plan.workload import MIB
from lib_async_mover.webui.host.conversion import CONVERSIONS
from lib_async_mover.webui.host.guard import Guard
from lib_async_mover.webui.host.state import STATE


def give_way(guard: Guard, tries: int) -> bool:
    """Make room for a call that ``guard`` will make again, as after ``tries`` times before. False if nothing can go.

    First goes what others than the module that failed have on the GPU, for later or for nobody; then half of that
    module's buffer, down to the least; then the others', that stand there together with it.
    """
    with CONVERSIONS.lock:
        conversions = [one for _, one in CONVERSIONS.items()]
        conversion = next((one for one in conversions if guard in one.guards), None)
        if conversion is None:
            return False
        failed = [component.mover for component in conversion.components if component.failed]
        for component in conversion.components:
            component.failed = False
        movers = [mover for mover in CONVERSIONS.movers() if mover not in failed]
        others = [mover for mover in movers if mover.placement.held_bytes and not mover.busy]
        if others and not tries:
            held_bytes = sum(mover.placement.held_bytes for mover in others)
            for mover in others:
                mover.release()
            others[0].backend.empty_cache()
            STATE.say(f"out of VRAM: {held_bytes / MIB:.0f} MiB of weights for later were given back; trying again")
        elif not any(mover.give_way() for mover in [*failed, *others]):
            return False
        conversion.oom_retries += 1
        return True
