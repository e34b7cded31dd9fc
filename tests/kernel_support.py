"""Recordings by other kernels than the running one (tests/kernels)."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels import vm
from live_support import CALLS
from workload_support import Fact, Workloads

TESTS = Path(__file__).resolve().parent
THERE = Path("/tmp/programs")
"""Where the programs lie in the machine."""

_RUN = "PYTHONPATH=/tmp:/tmp/tests python3 tests/kernels/{} /tmp/out /tmp/programs"
_BOOT_S = 900
"""So long an emulated machine may take."""

_SUPPORT = ("live_support.py", "workload_support.py")


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
    said = _booted(series, folder, workloads, "guest.py", CALLS)
    return folder / "out/r.kcap", said


def record_traces(series: str, folder: Path, workloads: Workloads) -> dict[str, list[Fact]]:
    """Boot another kernel, and record there a burst of processes through its tracepoints.

    Args:
        series: The kernel, as ``6.1``.
        folder: Where the captures come to lie, as ``out/SOURCE.kcap``.
        workloads: The programs.

    Returns:
        What was done, by source.
    """
    own = ("trace_support.py",)
    # Each tracepoint that begins or ends patches the kernel.
    return _booted(series, folder, workloads, "trace_guest.py", ("burst",), own, parallel=False)


def record_packets(series: str, folder: Path, workloads: Workloads) -> dict[str, Any]:
    """Boot another kernel, and record there the packets of a few exchanges.

    Args:
        series: The kernel, as ``6.1``.
        folder: Where what is handed out comes to lie.
        workloads: The programs.

    Returns:
        What was done, and the rows.
    """
    own = ("packets_live_support.py",)
    return _booted(series, folder, workloads, "packets_guest.py", (), own)


def record_modules(series: str, folder: Path, workloads: Workloads) -> dict[str, Any]:
    """Boot another kernel, and record there how a shell loads a module of that kernel.

    Args:
        series: The kernel, as ``6.1``.
        folder: Where what is handed out comes to lie; the module is put there as ``dummy.ko``.
        workloads: The programs.

    Returns:
        What was done.
    """
    module, bash = folder / "dummy.ko", Path(vm.program("bash", "bash"))
    shutil.copy(vm.image(series).modules / module.name, module)
    linked = vm.output(vm.program("ldd", "libc-bin"), bash)
    needed = [Path(path) for path in re.findall(r"=> (/\S+) \(0x", linked)]
    # The machine has its own libc, of the same host.
    own = [path for path in needed if not path.name.startswith("libc.")]
    more = [(path, f"programs/{path.name}") for path in (module, bash, *own)]
    guest = "artifacts_modules_guest.py"
    # Two programs at one tracepoint: the second patches it while calls go through it.
    return _booted(series, folder, workloads, guest, (), parallel=False, more=more)


def _booted(
    series: str,
    folder: Path,
    workloads: Workloads,
    guest: str,
    programs: Iterable[str],
    support: Iterable[str] = (),
    *,
    parallel: bool = True,
    more: Iterable[tuple[Path, str]] = (),
) -> dict[str, Any]:
    """What a script under another kernel says that it did."""
    image = vm.image(series)
    vm.disk()
    begun_s = time.monotonic()
    names = ("kcap", "readers", "writers", "tools", "spec", "pyproject.toml")
    own = (*_SUPPORT, *support, f"kernels/{guest}")
    brought = [
        *((vm.ROOT / name, name) for name in names),
        *((TESTS / name, f"tests/{name}") for name in own),
        *((Path(workloads.path(name)), f"programs/{name}") for name in (*programs, "child")),
        *more,
    ]
    packed = vm.archive(brought, _RUN.format(guest))
    console = vm.boot(image, packed, folder, parallel=parallel, timeout_s=_BOOT_S)
    took_s = time.monotonic() - begun_s
    assert "exit code 0" in console, console
    print(f"Linux {image.version}: booted, recorded and ended in {took_s:.0f} s")
    return dict(json.loads((folder / "out/said.json").read_text()))
