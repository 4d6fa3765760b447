"""A plan as a picture in text: a row per block, as long as its bytes; what stays on the device and what streams."""

from __future__ import annotations

from lib_async_mover.plan import Plan
from lib_async_mover.workload import MIB, Workload

RESIDENT, STREAMED, LOOSE = "■", "·", "○"
_WIDTH = 64


def kinds_of(plan: Plan) -> list[str]:
    """What becomes of each leaf, in execution order: `RESIDENT`, `STREAMED` or `LOOSE`."""
    kinds = [LOOSE] * (sum(unit.stop - unit.first for unit in plan.units) + len(plan.loose))
    for unit in plan.units:
        kinds[unit.first : unit.stop] = [RESIDENT if unit.resident else STREAMED] * (unit.stop - unit.first)
    return kinds


def picture(plan: Plan, workload: Workload) -> str:
    """
    Rows in execution order, one per top-level block (`input_blocks.4`, `middle_block.1`, `out`), under a legend.

    Every cell stands for the same number of bytes, and for what most of its bytes do. A block that runs twice in
    the order, with another in between, has two rows.
    """
    kinds = kinds_of(plan)
    rows: list[tuple[str, list[int]]] = []
    for index, leaf in enumerate(workload.leaves):
        block = block_of(leaf.name)
        if not rows or rows[-1][0] != block:
            rows.append((block, []))
        rows[-1][1].append(index)
    heaviest = max(sum(workload.leaves[index].bytes for index in row) for _, row in rows)
    cell = max(1, heaviest / _WIDTH)
    legend = f"{RESIDENT} resident  {STREAMED} streamed" + (f"  {LOOSE} loaded on the spot" if plan.loose else "")
    name_width = max(len(block) for block, _ in rows)
    lines = [f"{legend}   one cell: {cell / MIB:.1f} MB"]
    for block, row in rows:
        spans = [(workload.leaves[index].bytes, kinds[index]) for index in row]
        total = sum(size for size, _ in spans)
        ms = sum(workload.leaves[index].ms for index in row)
        lines.append(f"{block:<{name_width}}  {_cells(spans, cell):<{_WIDTH}}  {total / MIB:7.1f} MB {ms:8.2f} ms")
    return "\n".join(line.rstrip() for line in lines)


def block_of(name: str) -> str:
    """`input_blocks.4.1.norm` → `input_blocks.4`; `time_embed.0` → `time_embed`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def _cells(spans: list[tuple[int, str]], cell: float) -> str:
    total = sum(size for size, _ in spans)
    count = max(1, round(total / cell))
    width = max(total / count, 1e-9)
    votes = [dict.fromkeys((RESIDENT, STREAMED, LOOSE), 0.0) for _ in range(count)]
    position = 0.0
    for size, kind in spans:
        end = position + size
        index = min(count - 1, int(position / width))
        votes[index][kind] += 0.0 if size else 1e-9  # a leaf of no bytes decides an empty cell
        while position < end and index < count:
            border = end if index == count - 1 else min(end, (index + 1) * width)
            votes[index][kind] += max(0.0, border - position)
            position = max(position, border)
            index += 1
        position = end
    return "".join(max(vote, key=lambda kind: vote[kind]) for vote in votes)
