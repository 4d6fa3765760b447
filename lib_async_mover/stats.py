"""What a mover says about itself: for logs, the benchmark, and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mover import Mover

MIB = 1 << 20


def stats_of(mover: Mover) -> dict[str, Any]:
    """A flat dictionary; sizes in MiB, times in ms, shares from 0 to 1. None where nothing is known yet.

    Keys: name, device, state ("tracing", "packed", "streaming" or "released"), vram_mb (as asked; 0 is automatic),
    budget_mb (as planned), arena_mib (held now), resident_mib, ring_mib, weights_mib, pinned_mib, pageable_mib, units,
    streamed_units, bytes_per_step, step_ms, it_s, predicted_ms, limit_ms, stall_share, h2d_gbps, attach_s, forwards,
    loads_on_the_spot, settled, verdict (a sentence, once measured).
    """
    holdings = mover.holdings
    pack, scheduler, loadout = holdings.pack, holdings.scheduler, holdings.loadout
    stats: dict[str, Any] = dict.fromkeys(
        ("budget_mb", "arena_mib", "resident_mib", "ring_mib", "weights_mib", "pinned_mib", "pageable_mib", "units",
         "streamed_units", "bytes_per_step", "step_ms", "it_s", "predicted_ms", "limit_ms", "stall_share", "h2d_gbps",
         "attach_s", "verdict")
    )  # fmt: skip
    stats.update(
        name=mover.name,
        device=str(mover.backend.device),
        vram_mb=mover.vram_mb,
        forwards=mover.forwards,
        loads_on_the_spot=mover.visits.count,
        settled=mover.settled,
        state="tracing" if pack is None else "packed",
    )
    if pack is not None:
        stats.update(
            weights_mib=pack.bytes / MIB,
            pinned_mib=pack.store.pinned_bytes / MIB,
            pageable_mib=pack.store.pageable_bytes / MIB if mover.backend.register() is not None else 0.0,
            attach_s=pack.seconds,
        )
    if loadout is not None:
        plan = loadout.plan
        held = loadout.arena.allocated
        stats.update(
            state="streaming" if held else "released",
            budget_mb=plan.budget_bytes / MIB,
            arena_mib=loadout.arena.bytes / MIB if held else 0.0,
            resident_mib=plan.resident_bytes / MIB,
            ring_mib=plan.ring_bytes / MIB,
            units=len(plan.units),
            streamed_units=plan.streamed_units,
            bytes_per_step=plan.streamed_bytes,
        )
        if mover.settled:
            workload = mover.workload()
            if workload is not None:
                # A step is from the start of a forward to the start of the next.
                stats.update(predicted_ms=plan.predicted_ms + workload.gap_ms)
            stats.update(limit_ms=plan.limit_ms, verdict=holdings.verdict)
    if scheduler is not None:
        step_ms = scheduler.step_ms()
        stats.update(step_ms=step_ms, it_s=1e3 / step_ms if step_ms else None)
        if scheduler.sample is not None:
            stats.update(stall_share=scheduler.sample.stall_share, h2d_gbps=scheduler.sample.gbps)
    return stats
