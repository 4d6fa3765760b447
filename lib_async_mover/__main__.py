"""`python -m lib_async_mover bench | demo | plan`: measure the mover here, without a webui and a checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from .bench.budget import parse_budgets
from .bench.demo import demo_options
from .bench.device import default_device
from .bench.options import BenchOptions
from .bench.planning import PlanOptions, show_plan
from .bench.progress import LogHandler
from .bench.runner import Runner
from .bench.shapes import SHAPES
from .bench.table import format_rows, headline, succeeded
from .errors import AsyncMoverError

DEFAULT_BUDGETS = "128,256,512,1024,50%"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="python -m lib_async_mover", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    bench = commands.add_parser("bench", help="everything resident, stock lowvram and the mover, in one run")
    _add_model(bench, default="sd15")
    _add_budgets(bench, DEFAULT_BUDGETS)
    _add_bus(bench)
    bench.add_argument("--steps", type=int, default=10, metavar="N", help="timed forwards per row (10)")
    bench.add_argument("--no-stock", action="store_true", help="leave stock lowvram out: it is slow")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, after every row")
    bench.add_argument("--save-profile", type=Path, metavar="FILE", help="write the measured profile, for `plan`")

    demo = commands.add_parser("demo", help="bench with settings that suit this machine, in under a minute")
    demo.add_argument("--device", metavar="D", help="cuda, xpu or cpu (the best there is)")

    plan = commands.add_parser("plan", help="step time against VRAM, and which weights stay on the device")
    plan.add_argument("--profile", type=Path, metavar="FILE", help="a saved profile: needs no GPU")
    _add_model(plan, default=None)
    _add_budgets(plan, "")
    _add_bus(plan)
    plan.add_argument("--save", type=Path, metavar="FILE", help="write the measured profile here")
    return parser


def _add_model(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--model", choices=sorted(SHAPES), default=default, help="which UNet's shapes (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="images per forward (2)")
    parser.add_argument("--size", type=int, metavar="PX", help="image width and height (the model's own)")
    parser.add_argument("--device", metavar="D", help="cuda, xpu or cpu (the best there is)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and inputs (0)")


def _add_budgets(parser: argparse.ArgumentParser, default: str) -> None:
    otherwise = (default or "the whole curve").replace("%", "%%")
    parser.add_argument(
        "--budget-mb",
        default=default,
        metavar="LIST",
        help=f"megabytes, shares of the weights as 50%%, or 0 for auto ({otherwise})",
    )


def _add_bus(parser: argparse.ArgumentParser) -> None:
    bus = parser.add_mutually_exclusive_group()
    bus.add_argument("--bus-gbps", type=float, metavar="X", help="emulate a bus of X GB/s")
    bus.add_argument(
        "--bus-ratio", type=float, metavar="R", help="emulate the bus on which copying all weights takes R steps"
    )


def _bench(options: BenchOptions) -> int:
    rows = Runner(options).run()
    print(format_rows(rows))
    print()
    print(headline(rows))
    return 0 if succeeded(rows) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a row that failed or is not exact, 2 for a refusal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the pictures' squares, on a console that has none
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler(sys.stderr)])
    given = build_parser().parse_args(arguments)
    try:
        if given.command == "demo":
            return _bench(demo_options(given.device))
        if given.command == "bench":
            return _bench(
                BenchOptions(
                    model=given.model,
                    device=given.device or default_device(),
                    budgets=tuple(parse_budgets(given.budget_mb)),
                    batch=given.batch,
                    size_px=given.size,
                    steps=given.steps,
                    seed=given.seed,
                    stock=not given.no_stock,
                    bus_gbps=given.bus_gbps,
                    bus_ratio=given.bus_ratio,
                    json_path=given.json,
                    profile_path=given.save_profile,
                )
            )
        return show_plan(
            PlanOptions(
                profile_path=given.profile,
                model=given.model,
                device=given.device or default_device(),
                budgets=tuple(parse_budgets(given.budget_mb)),
                batch=given.batch,
                size_px=given.size,
                seed=given.seed,
                bus_gbps=given.bus_gbps,
                bus_ratio=given.bus_ratio,
                save_path=given.save,
            )
        )
    except AsyncMoverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
