"""Takes the engine's waits away, one at a time, and says which tests notice.

    python tests/mutate_waits.py            those that the CPU backend can show
    python tests/mutate_waits.py --gpu      those of the CUDA backend, on a machine with a GPU

Each mutation is made in a copy of the repository. Exit status 1 if any survives, or if the tests fail without one. Not
part of `make test`: it runs the engine's tests once per mutation.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
CPU_TESTS = ["device", *(f"run/test_{name}.py" for name in ("pipeline", "forward", "weights", "buffer"))]
GPU_TESTS = ["gpu/test_waits.py"]

# ruff: noqa: E501
# (what is taken away, file, the text, what stands there instead)
CPU_MUTATIONS = [
    ("compute waits for the copy", "run/pipeline.py", "self._backend.wait_for_copy(unit.copy)", "pass"),
    ("copy waits for the compute", "run/pipeline.py", "ring[back % count] if back >= 0 else None", "None"),
    ("the unit's last read is marked", "run/pipeline.py", "        unit.done = self._backend.release(unit.copy)\n", ""),
    ("fence where turns are skipped", "run/pipeline.py", "            self._backend.fence_copies()\n\n    def end_forward", "\n    def end_forward"),
    ("fence before a stale resident is copied", "run/pipeline.py", "        if stale:\n            self._backend.fence_copies()\n", ""),
    ("fence before all is copied anew", "run/pipeline.py", "Between forwards.\"\"\"\n        self._backend.fence_copies()\n", "Between forwards.\"\"\"\n"),
    ("residents are waited for again on another stream", "run/pipeline.py", "if stream_changed and unit.residence is Residence.READY:", "if False:"),
    ("edits are written back before the slot is given up", "run/pipeline.py", "        self._write_back(unit)\n        self._count_write(unit)\n        unit.done = self._backend.release(unit.copy)", "        unit.done = self._backend.release(unit.copy)\n        self._write_back(unit)"),
    ("fence before a new arena's copies", "run/layout.py", "        backend.fence_copies()  # the arena's memory is new\n", ""),
    ("fence before the arena is freed", "run/layout.py", "            self._backend.fence_compute()\n", ""),
    ("stale residents are copied again", "run/pipeline.py", "        self._renew([unit for unit in self._residents if unit.binding.outdated()])\n", ""),
    ("a stale streamed unit is copied again", "run/pipeline.py", "            self._copy(unit, None)  # behind the first, on the same stream\n", "            pass\n"),
    ("what autograd saved counts as written to", "run/pipeline.py", "            unit.binding.count_write()\n", "            pass\n"),
    ("residents are copied again after a failed copy", "run/pipeline.py", "                        self._invalidate(other)\n", "                        pass\n"),
]  # fmt: skip
GPU_MUTATIONS = [
    ("compute waits for the copy", "device/accelerator.py", "        self._compute.wait_event(copy.ready)\n", ""),
    ("copy waits for the compute", "device/accelerator.py", "            stream.wait_event(after)\n", "            pass\n"),
    ("fence_copies", "device/accelerator.py", "        self.copy_stream.wait_stream(self._torch.current_stream(self.device))\n", ""),
    ("fence_compute", "device/accelerator.py", "        self._torch.current_stream(self.device).wait_stream(self.copy_stream)\n", ""),
    ("the wait until another thread has issued the copy", "device/accelerator.py", "            copy.issued.result()\n", "            pass\n"),
    ("fence_compute issues what is queued first", "device/accelerator.py", "        self._drain()\n        self._torch.current_stream", "        self._torch.current_stream"),
    ("synchronize issues what is queued first", "device/accelerator.py", "        self._drain()\n        self.copy_stream.synchronize()", "        self.copy_stream.synchronize()"),
    ("synchronize", "device/accelerator.py", "        self.copy_stream.synchronize()\n", ""),
    ("the staging buffer's wait", "device/staging.py", "            free.synchronize()\n", ""),
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
    parser.add_argument("--jobs", type=int, default=1, help="mutations that are tried at once")
    options = parser.parse_args()
    mutations, tests = (GPU_MUTATIONS, GPU_TESTS) if options.gpu else (CPU_MUTATIONS, CPU_TESTS)
    _, file, text, _ = mutations[0]
    passed, line = survives(file, text, text, tests)
    sys.stdout.write(f"with every wait in place: {line}\n")
    if not passed or "passed" not in line:
        return 1
    with ThreadPoolExecutor(options.jobs) as pool:
        tried = [pool.submit(survives, file, text, instead, tests) for _, file, text, instead in mutations]
        for (name, *_), one in zip(mutations, tried, strict=True):
            survived, line = one.result()
            sys.stdout.write(f"{'SURVIVED' if survived else 'found'}  {name}: {line[:140]}\n")
            sys.stdout.flush()
    return 1 if any(one.result()[0] for one in tried) else 0


if __name__ == "__main__":
    sys.exit(main())
