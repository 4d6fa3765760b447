"""The command line: the benchmark and its demo, plans from a profile, and what draws and writes the documents."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from lib_async_mover.bench.budget import parse_budgets
from lib_async_mover.bench.device import device_types
from lib_async_mover.bench.planning import write_plans
from lib_async_mover.bench.report import DOCUMENTS, MEASURED, write_report
from lib_async_mover.bench.runner import BenchOptions, Runner
from lib_async_mover.bench.shapes import SHAPES
from lib_async_mover.bench.table import format_rows, headline, succeeded
from lib_async_mover.bench.timeline import write_timeline
from lib_async_mover.errors import AsyncMoverError

BUDGETS = "128,256,512,1024,50%"
# Without a GPU a bus is played on which copying all weights takes 0.8 of a step's computing, as for SD1.5 on a laptop's
# RTX 3060: it shows in the step unless it overlaps.
DEMO = {"cpu": "--model tiny --budget-mb 20%,35%,50% --steps 20 --bus-ratio 0.8"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a row that failed or is not exact, 2 for a refusal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the pictures' squares, on a console that has none
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        given = vars(build_parser().parse_args(arguments))
        return int(given.pop("command")(**given))
    except AsyncMoverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_bench(**given: object) -> int:
    """Measure what `BenchOptions` ask for, and print the table and what it shows. Returns the exit status."""
    rows = Runner(BenchOptions(**given)).run()  # type: ignore[arg-type]
    print(f"{format_rows(rows)}\n\n{headline(rows)}")
    return 0 if succeeded(rows) else 1


def build_parser() -> argparse.ArgumentParser:
    """Every command's arguments are those of the function in its `command`."""
    parser = argparse.ArgumentParser(prog="python -m lib_async_mover", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="bench with settings that suit this machine, in under a minute")
    demo.set_defaults(command=lambda device: main(["bench", "--device", device, *DEMO.get(device, "").split()]))
    bench = commands.add_parser("bench", help="everything resident, stock lowvram and the mover, in one run")
    bench.set_defaults(command=run_bench)
    plan = commands.add_parser("plan", help="step time against VRAM, and which weights stay on the device")
    plan.set_defaults(command=write_plans)
    timeline = commands.add_parser("timeline", help="draw one step: copies, compute and waiting")
    timeline.set_defaults(command=write_timeline)
    report = commands.add_parser("report", help="put measured tables into the documents")
    report.set_defaults(command=write_report)

    for command in (demo, bench):
        command.add_argument("--device", metavar="D", default=device_types()[0], help="cuda, xpu or cpu (%(default)s)")
    add = bench.add_argument
    add("--model", choices=sorted(SHAPES), default="sd15", help="which UNet's shapes (%(default)s)")
    add("--batch", type=_count, default=2, metavar="N", help="images per forward (%(default)s)")
    add("--size", type=_count, dest="size_px", metavar="PX", help="image width and height (the model's own)")
    add("--seed", type=int, default=0, metavar="N", help="of weights and inputs (%(default)s)")
    add("--steps", type=_count, default=10, metavar="N", help="timed forwards per row (%(default)s)")
    add("--guests", choices=["controlnet"], help="a ControlNet that the UNet runs")
    add("--no-stock", action="store_false", dest="stock", help="leave stock lowvram out: it is slow")
    add("--save-profile", type=Path, dest="profile_path", metavar="FILE", help="write the measured profile, for `plan`")
    for command in (plan, timeline):
        command.add_argument("--profile", type=Path, required=True, metavar="FILE", help="from bench --save-profile")
    for command, default, otherwise in ((bench, BUDGETS, BUDGETS), (plan, "", "the whole curve")):
        text = f"megabytes, shares of the weights as 50%, or 0 for auto ({otherwise})".replace("%", "%%")
        command.add_argument("--budget-mb", type=parse_budgets, default=default, dest="budgets", help=text)
        bus = command.add_mutually_exclusive_group()
        bus.add_argument("--bus-gbps", type=_positive, metavar="X", help="play a bus of X GB/s")
        bus.add_argument("--bus-ratio", type=_positive, metavar="R", help="one that copies all weights in R steps")
        command.add_argument("--json", type=Path, dest="json_path", metavar="FILE", help="write the rows here")
    timeline.add_argument("--budget-mb", type=_positive, default=256.0, metavar="MB")
    timeline.add_argument("--compute", type=_positive, default=1.0, metavar="X", help="multiply compute times")
    timeline.add_argument("--bus-gbps", type=_positive, metavar="X", help="another bus")
    timeline.add_argument("out", type=Path, metavar="OUT.svg")
    report.add_argument("files", nargs="*", type=Path, default=MEASURED, help="rows of bench --json (docs/measured)")
    report.add_argument("--check", action="store_true", help="fail if a document would change")
    report.add_argument("--into", nargs="*", type=Path, default=DOCUMENTS, help="documents (README and performance.md)")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _count(text: str) -> int:
    return math.ceil(_positive(text))
