"""What a mover says about itself: for logs, the benchmark, and the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lib_async_mover.device.backend import Backend
from lib_async_mover.plan.workload import MIB
from lib_async_mover.run.layout import Layout
from lib_async_mover.run.on_demand import OnDemand
from lib_async_mover.run.part import Part
from lib_async_mover.run.placement import Placement

UNKNOWN = (
    "budget_mb", "arena_mib", "resident_mib", "ring_mib", "weights_mib", "pinned_mib", "pageable_mib", "units",
    "streamed_units", "step_ms", "it_s", "predicted_ms", "limit_ms", "stall_share", "h2d_gbps", "attach_s",
)  # fmt: skip


def stats_of(
    placement: Placement, guests: Iterable[Part], on_demand: OnDemand, backend: Backend, settled: bool
) -> dict[str, Any]:
    """A flat dictionary; sizes in MiB, times in ms, shares from 0 to 1. None where nothing is known yet.

    Those of `UNKNOWN` (budget_mb: as used; arena_mib: held now), name, device, state
    ("tracing", "packed", "streaming" or "released"), vram_mb (as asked; 0 is automatic), forwards, on_demand_loads,
    bytes_per_step (of the last forward, those that were loaded on demand too), settled, and guests: of each a
    dictionary with name, weights_mib, pinned_mib and bytes_per_step. Sizes are of the root and the guests that run now.
    """
    store, schedule, layout = placement.store, placement.schedule, placement.layout
    stats: dict[str, Any] = dict.fromkeys(UNKNOWN)
    stats.update(
        device=str(backend.device),
        bytes_per_step=on_demand.forward_bytes,
        on_demand_loads=on_demand.loads,
        settled=settled,
        state="tracing" if store is None else "packed",
        guests=[_guest_stats(guest, layout) for guest in guests],
    )
    if store is not None:
        stats.update(
            weights_mib=store.bytes / MIB,
            pinned_mib=store.pinned_bytes / MIB,
            pageable_mib=(store.bytes - store.pinned_bytes) / MIB if backend.page_lock is not None else 0.0,
            attach_s=store.seconds,
        )
    if layout is not None:
        plan = layout.plan
        stats.update(
            state="streaming" if layout.held_bytes else "released",
            budget_mb=plan.budget_bytes / MIB,
            arena_mib=layout.held_bytes / MIB,
            resident_mib=plan.resident_bytes / MIB,
            ring_mib=plan.ring_bytes / MIB,
            units=len(plan.units),
            streamed_units=plan.streamed_units,
            bytes_per_step=plan.streamed_bytes + on_demand.forward_bytes,
        )
    if schedule is not None:
        step_ms = schedule.clock.step_ms()
        stats.update(step_ms=step_ms, it_s=1e3 / step_ms if step_ms else None)
        if schedule.sample is not None:
            stats.update(stall_share=schedule.sample.stall_share, h2d_gbps=schedule.gbps)
        if settled and layout is not None and schedule.workload is not None:
            # A step is from the start of a forward to the start of the next.
            predicted_ms = layout.plan.predicted_ms + schedule.workload.gap_ms
            stats.update(predicted_ms=predicted_ms, limit_ms=layout.plan.limit_ms)
    return stats


def _guest_stats(guest: Part, layout: Layout | None) -> dict[str, Any]:
    store = guest.store
    return {
        "name": guest.name,
        "weights_mib": sum(leaf.bytes() for leaf in [*guest.leaves, guest.standing]) / MIB,
        "pinned_mib": store.pinned_bytes / MIB if store is not None else 0.0,
        "bytes_per_step": layout.streamed_bytes(store) if layout is not None and store is not None else 0,
    }
