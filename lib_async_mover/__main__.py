"""`python -m lib_async_mover bench | demo | plan | timeline | report`: without a webui and a checkpoint."""

from __future__ import annotations

import sys

from lib_async_mover.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
