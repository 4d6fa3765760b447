"""Measures configurations of a real webui: without this extension, and with it, in one run.

Arguments after -- go to webui.py.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.checkpoint import KINDS, random_checkpoint
from lib_async_mover.bench.webui.options import FLAGS, Options
from lib_async_mover.bench.webui.runner import WebuiRunner
from lib_async_mover.bench.webui_tables import format_webui


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print its table. Returns the exit status: 0, 1 for a row that failed, 2 for a refusal."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the webui ends with us
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    try:
        options = Options(**vars(build_parser().parse_args(given[:at])), arguments=tuple(given[at + 1 :]))
        if options.random and not options.checkpoint:
            options = replace(options, checkpoint=random_checkpoint(options))
        rows = WebuiRunner(options).run()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_webui(rows))
    return 1 if any(row["error"] for row in rows) else 0


def build_parser() -> argparse.ArgumentParser:
    """Its arguments are the fields of `Options`."""
    parser = argparse.ArgumentParser(
        prog="python -m lib_async_mover.bench.webui", description=__doc__, argument_default=argparse.SUPPRESS
    )
    add = parser.add_argument
    add("--webui", type=_path, required=True, metavar="DIR", help="the folder with webui.py")
    add("--python", metavar="PATH", help="its interpreter (that in DIR/venv)")
    add("--data-dir", type=_path, metavar="DIR", help="empty, for the webuis' data and logs (a temporary one)")
    add("--flags", type=_listed(_flag), metavar="A,B", help=f"which of {','.join(FLAGS)} (all)")
    add("--buffers", type=_listed(_buffer), metavar="MB,MB", help="of --async-lowvram, or auto (auto)")
    add("--version", type=_version, action="append", dest="versions", metavar="LABEL=DIR",
        help="a checkout of this extension to measure, may be repeated (this one)")  # fmt: skip
    add("--extension", type=_there, action="append", dest="extensions", metavar="DIR", help="another one to bring")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", type=_there, metavar="FILE", help="(the webui's own choice)")
    model.add_argument("--random", choices=sorted(KINDS), help="random weights of full size, made once")
    add("--cache-dir", type=_path, metavar="DIR", help="for what --random makes (.cache/async-lowvram at home)")
    add("--size", type=int, dest="size_px", metavar="PX", help="of the square image (the model's own)")
    for name, text in (("steps", "of an image (20)"), ("batch", "images at once (1)"), ("seed", "(1)")):
        add(f"--{name}", type=int, metavar="N", help=text)
    add("--lora", type=_there, metavar="FILE", help="to use at weight 1")
    add("--hires", type=float, metavar="SCALE", help="a hires pass")
    add("--controlnet", type=_there, metavar="FILE", help="a ControlNet model; with --extension of it")
    add("--controlnet-lowvram", action="store_true", help="with its Low VRAM box ticked")
    add("--vram-gb", type=_listed(float), metavar="N,N", help="play smaller cards of N GiB (CUDA)")
    add("--bus-gbps", type=float, metavar="X", help="play a slower bus, for this extension's own copies")
    add("--rounds", type=int, metavar="N", help="of timing a step; 0: only the first and later images (3)")
    add("--limit-s", type=float, metavar="S", help="stop after so many seconds; what was measured is kept")
    add("--json", type=Path, dest="json_path", metavar="FILE", help="write the rows here, after every one")
    add("--ram", action="store_true", help="RAM after loading, one image, ten, and three switches of checkpoint")
    add("--other-checkpoint", type=_there, metavar="FILE", help="to switch to (the same file by another name)")
    add("--small-cards", action="store_true", help="the largest image and batch on each card of --vram-gb")
    add("--px-step", type=int, metavar="PX", help="between sizes tried (64)")
    add("--most-px", type=int, metavar="PX", help="the largest size tried (2048)")
    add("--most-batch", type=int, metavar="N", help="the largest batch tried (32)")
    return parser


def _path(text: str) -> Path:
    """Absolute, since the webui runs in another folder; links stay, since names beside them may count."""
    return Path(text).absolute()


def _there(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no {text}")
    return _path(text)


def _listed(of: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(dict.fromkeys(of(part.strip()) for part in text.split(",")))


def _flag(text: str) -> str:
    if text not in FLAGS:
        raise argparse.ArgumentTypeError(f"one of {','.join(FLAGS)}, not {text}")
    return text


def _buffer(text: str) -> int:
    return 0 if text == "auto" else int(text)


def _version(text: str) -> tuple[str, Path]:
    label, equals, folder = text.partition("=")
    if not equals or not (Path(folder) / "lib_async_mover").is_dir():
        raise argparse.ArgumentTypeError(f"as LABEL=DIR with a checkout of this extension in DIR, not {text}")
    return label, Path(folder).resolve()


if __name__ == "__main__":
    sys.exit(main())
