"""Takes the engine's waits away, one at a time, and says which tests notice.

    python tests/mutate_waits.py            those that the CPU backend can show
    python tests/mutate_waits.py --gpu      those of the CUDA backend, on a machine with a GPU

Each mutation is made in a copy of the repository. Exit status 1 if any survives. Not part of `make test`: it runs the
engine's tests once per mutation.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CPU_TESTS = ["test_pipeline.py", "test_cpu.py", "test_forward.py", "test_weights.py", "test_handover.py"]
GPU_TESTS = ["test_gpu.py"]

# ruff: noqa: E501
# (what is taken away, file, the text, what stands there instead)
CPU_MUTATIONS = [
    ("compute waits for the copy", "pipeline.py", "            self._backend.acquire(unit)\n        else:", "            pass\n        else:"),
    ("copy waits for the compute", "pipeline.py", "ring[back % count] if back >= 0 else None", "None"),
    ("fence where turns are skipped", "pipeline.py", "            self._copied = max(self._copied, turn)\n            self._backend.fence_copies()", "            self._copied = max(self._copied, turn)"),
    ("fence after the allocator", "pipeline.py", '"""The arena\'s memory is new: nothing is there. Between forwards; nothing is held."""\n        self._backend.fence_copies()', '"""The arena\'s memory is new: nothing is there. Between forwards; nothing is held."""'),
    ("fence before a stale resident is copied", "pipeline.py", "                self._backend.fence_copies()\n            return", "            return"),
    ("the unit's end is marked", "pipeline.py", "        self._backend.leave(unit)\n", ""),
    ("fence before the arena is freed", "loadout.py", "            self._backend.fence_compute()\n", ""),
    ("fence before residents are moved", "loadout.py", "            backend.fence_compute()\n            stays", "            stays"),
    ("fence before a new plan's copies", "loadout.py", "        backend.fence_copies()  # the arena", "        # the arena"),
    ("edits come home before the slot is given up", "pipeline.py", "        self._bring_home(unit)\n        self._backend.leave(unit)", "        self._backend.leave(unit)"),
    ("stale copies are made again", "mover.py", "            loadout.refresh(leaf)\n        self._tally", "            pass\n        self._tally"),
    ("the CPU backend's wait", "cpu.py", "if not unit.ready.wait(timeout=60):", "if False:"),
]  # fmt: skip
GPU_MUTATIONS = [
    ("compute waits for ready", "accelerator.py", "        self._compute.wait_event(unit.ready)\n", "        pass\n"),
    ("copies wait for done", "accelerator.py", "            copies.wait_event(after.done)\n", "            pass\n"),
    ("fence_copies", "accelerator.py", "        self._copies.wait_stream(self._torch.current_stream(self.device))\n\n    def fence_compute", "        pass\n\n    def fence_compute"),
    ("fence_compute", "accelerator.py", "        self._torch.current_stream(self.device).wait_stream(self._copies)\n\n    def synchronize", "        pass\n\n    def synchronize"),
    ("the stager's wait", "staging.py", "        self._issued[id(unit)].wait()\n", ""),
    ("the staging buffer's wait", "staging.py", "            free.synchronize()\n", ""),
]  # fmt: skip


def survives(file: str, text: str, instead: str, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass without the wait, and the line that said so."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "node_modules"))
        path = copy / "lib_async_mover" / file
        source = path.read_text(encoding="utf-8")
        if source.count(text) != 1:
            raise SystemExit(f"{file}: the text to take away stands there {source.count(text)} times: {text!r}")
        path.write_text(source.replace(text, instead), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{t}" for t in tests)]
        try:
            run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return False, "it hangs"
        lines = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return run.returncode == 0, lines[0] if lines else run.stdout.strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes the engine's waits away, one at a time.")
    parser.add_argument("--gpu", action="store_true", help="the CUDA backend's waits instead")
    gpu = parser.parse_args().gpu
    left = 0
    for name, file, text, instead in GPU_MUTATIONS if gpu else CPU_MUTATIONS:
        survived, line = survives(file, text, instead, GPU_TESTS if gpu else CPU_TESTS)
        left += survived
        sys.stdout.write(f"{'SURVIVED' if survived else 'found'}  {name}: {line[:140]}\n")
        sys.stdout.flush()
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
