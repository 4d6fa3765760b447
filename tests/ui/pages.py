"""Pages to visit: tests/ui/serve.py, started once, forks one for whoever asks."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Nursery:
    """tests/ui/serve.py, which has imported what takes seconds and forks a page for whoever asks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def page(self, port: int, arguments: tuple[str, ...]) -> int:
        """Returns the process id of a page on `port`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(["--port", str(port), *arguments]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            words = line.split()
            if words[:2] == ["ready", str(port)]:
                return int(words[2])
            if words[:1] == ["failed"]:
                raise RuntimeError(line)
        raise RuntimeError("the page did not start")


@lru_cache(maxsize=1)
def nursery() -> Nursery:
    made = Nursery()
    atexit.register(made.process.kill)
    return made


class Server:
    """One page in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self._pid = nursery().page(port, arguments)

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
