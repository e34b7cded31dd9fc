"""A recording of minutes under a steady load: memory, clocks, and parts without a seam."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from live_support import BTF, children, lost, recording, rows
from workload_support import Workloads, facts

import kcap

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

RATE = 20_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SETTLED_S = 120
SLOPE_BYTES = 1 << 20
"""What memory may grow by a minute once it has settled."""

DRIFT_NS = 10_000_000
"""How far an event's time may be from the wall clock."""


def memory_bytes(pid: int) -> int:
    """The memory of a recorder: what its processes have for themselves."""
    total = 0
    for each in (pid, *children(pid)):
        resident, shared = Path(f"/proc/{each}/statm").read_text().split()[1:3]
        total += (int(resident) - int(shared)) * PAGE_BYTES
    return total


class Sampled:
    """The memory of a recorder every second, until it is closed."""

    def __init__(self, pid: int) -> None:
        self.at_s: list[float] = []
        self.bytes: list[int] = []
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        begun_s = time.monotonic()
        while not self._over.wait(1.0):
            self.bytes.append(memory_bytes(self._pid))
            self.at_s.append(time.monotonic() - begun_s)

    def close(self) -> None:
        """Take no more samples."""
        self._over.set()
        self._thread.join()


def slope(at_s: list[float], values: list[int]) -> float:
    """By how much a value grows a minute, fitted."""
    return float(np.polyfit(np.array(at_s) / 60, np.array(values, float), 1)[0])


def ords(path: Path) -> npt.NDArray[np.int64]:
    """The places of a capture's events in their recording, in file order."""
    with kcap.open(path) as capture:
        return np.asarray(capture.to_arrow(["ord"])["ord"].to_numpy(), np.int64)


@pytest.mark.parametrize("seconds", [6, pytest.param(600, marks=pytest.mark.long)])
def test_a_steady_load(seconds: int, tmp_path: Path, workloads: Workloads) -> None:
    """20,000 events a second over parts: none lost, none twice, no drift, and no growing memory."""
    program = workloads.path("steady")
    folder = tmp_path / "absent"
    folder.mkdir()
    parts = tmp_path / "r.kcap"
    words = ("--source", "bpf", "--events", "openat", "--split-size", "8M")
    with recording(parts, *words, listening=tmp_path / "r-000001.kcap") as recorder:
        sampled = Sampled(recorder.process.pid)
        try:
            done = subprocess.run(
                [program, folder, str(RATE), str(seconds)], capture_output=True, check=True
            )
        finally:
            sampled.close()

    (fact,) = facts(done.stdout.decode())
    names = sorted(tmp_path.glob("r-*.kcap"))
    assert len(names) > (1 if seconds < SETTLED_S else 10)
    columns = ("ts", "arg_path_arg", "pid")
    found = [row for name in names for row in rows(name, f"ps.pid = {fact['pid']}", columns)]
    opened = [row for row in found if row.get("arg_path_arg", "").startswith(str(folder))]
    assert len(opened) == fact["count"] == RATE * seconds
    assert sum(map(lost, names)) == 0

    numbers = np.concatenate([ords(name) for name in names])
    assert np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers)))

    marked = [(row["ts"], row["arg_path_arg"].rpartition("/at-")) for row in opened]
    off_ns = np.array([ts - int(tail) for ts, (_, mark, tail) in marked if mark])
    assert len(off_ns) == seconds * 100
    first, last = (int(np.median(part)) for part in (off_ns[:100], off_ns[-100:]))
    assert abs(last - first) < DRIFT_NS
    assert np.median(np.abs(off_ns)) < DRIFT_NS

    if seconds > SETTLED_S:
        settled = sum(at_s < SETTLED_S for at_s in sampled.at_s)
        grown = slope(sampled.at_s[settled:], sampled.bytes[settled:])
        print(f"\n{grown / (1 << 20):.2f} MiB a minute, at most {max(sampled.bytes) >> 20} MiB")
        assert grown < SLOPE_BYTES


def test_growth_is_seen() -> None:
    """What grows by 2 MiB a minute has that slope, whatever it jumps about."""
    at_s = [float(second) for second in range(480)]
    values = [int(2 * (1 << 20) * second / 60 + second % 7 * 10_000) for second in range(480)]
    assert slope(at_s, values) > SLOPE_BYTES
    assert slope(at_s, [100 << 20] * 480) < SLOPE_BYTES
