"""Recordings by other kernels than the running one (tests/kernels)."""

from __future__ import annotations

import json
import time
from pathlib import Path

from kernels import vm
from live_support import CALLS
from workload_support import Fact, Workloads

TESTS = Path(__file__).resolve().parent
THERE = Path("/tmp/programs")
"""Where the programs lie in the machine."""

_RUN = "PYTHONPATH=/tmp:/tmp/tests python3 tests/kernels/guest.py /tmp/out /tmp/programs"


def record_calls(
    series: str, folder: Path, workloads: Workloads
) -> tuple[Path, dict[str, list[Fact]]]:
    """Boot another kernel, and record there what `live_support.record_calls` does.

    Args:
        series: The kernel, as ``6.1``.
        folder: Where the capture comes to lie.
        workloads: The programs.

    Returns:
        The capture, and what was done.
    """
    image = vm.image(series)
    vm.disk()
    begun_s = time.monotonic()
    names = ("kcap", "readers", "writers", "tools", "spec", "pyproject.toml")
    own = ("live_support.py", "workload_support.py", "kernels/guest.py")
    brought = [
        *((vm.ROOT / name, name) for name in names),
        *((TESTS / name, f"tests/{name}") for name in own),
        *((Path(workloads.path(name)), f"programs/{name}") for name in (*CALLS, "child")),
    ]
    console = vm.boot(image, vm.archive(brought, _RUN), folder)
    took_s = time.monotonic() - begun_s
    assert "exit code 0" in console, console
    print(f"Linux {image.version}: booted, recorded and ended in {took_s:.0f} s")
    said = json.loads((folder / "out/said.json").read_text())
    return folder / "out/r.kcap", dict(said)
