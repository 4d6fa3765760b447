"""The start-up flag. Runs by path before the host parses its arguments: nothing of this extension can be imported."""

from __future__ import annotations

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--async-lowvram",
        action="store_true",
        help="like --lowvram, but the weights are streamed to the GPU ahead of the compute "
        "(Async lowvram extension; remove this flag when you remove or disable the extension)",
    )
