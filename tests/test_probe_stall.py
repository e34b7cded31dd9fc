"""A host that tries to stall its recorder: FUSE that does not answer, arguments held back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fuse_support import mounted
from live_support import Recording, info, kill_all, rows
from workload_support import Workloads

from kcap.format.reader import CaptureReader
from kcap.model.side import Loss, Side, Snapshot
from kcap.readers.live.procfs import ProcFS

pytestmark = pytest.mark.root

LONG = "x" * 16384
"""An argument of some pages."""


class OfConnector(Recording):
    """A recording with the process connector; it looks at what is executed, once it has begun."""

    def _listens(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > SNAPSHOT_BYTES


RECORDINGS = {"bpf": Recording, "proc": OfConnector}
SNAPSHOT_BYTES = 4096
"""What is written of a capture when the state of the host is."""

AT_ONCE = 40


class Stalled(NamedTuple):
    """Processes that were made to stall whoever looks at them."""

    locked: subprocess.Popen[bytes]
    """Its memory's lock is held until FUSE answers: reading its arguments hangs."""
    held_back: subprocess.Popen[bytes]
    """Its arguments are in a page of userfaultfd's."""
    mapped: subprocess.Popen[bytes]
    """Its arguments are in a mapping of a FUSE file."""
    within: subprocess.Popen[bytes]
    """Its working directory is in FUSE."""
    executing: subprocess.Popen[bytes]
    """It executes a program of FUSE's, for ever."""


@contextmanager
def stalled(folder: Path, workloads: Workloads) -> Iterator[Stalled]:
    """Have such processes, on a FUSE file system that does not answer any more.

    Args:
        folder: An empty one.
        workloads: The programs.

    Yields:
        The processes.
    """
    stuck = workloads.path("stuck")
    with mounted(folder / "fuse") as fuse, ExitStack() as stack:

        def start(*command: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            child = subprocess.Popen(command, cwd=cwd, stdin=pipe, stdout=pipe)
            stack.enter_context(child)
            stack.callback(child.kill)
            stack.callback(fuse.kill)  # first: nobody ends who waits for an answer
            return child

        program = str(fuse.program)
        assert subprocess.run([program], check=False).returncode == 0, "it is a program"
        locked = start(stuck, "lock", LONG, program)
        held_back, mapped = start(stuck, "memory", LONG), start(stuck, "file", LONG, program)
        within = start("sleep", "1000", cwd=fuse.folder)
        for child in (locked, held_back, mapped):
            assert child.stdout is not None
            if b'"ret": -1' in child.stdout.readline():
                pytest.skip("no userfaultfd for us on this host")
        # In a shell: who forks waits for the execution.
        executing = start("sh", "-c", f"echo; read line; exec {program}")
        assert executing.stdout is not None
        executing.stdout.readline()
        fuse.stop_answering()
        for child in (locked, executing):
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
        _waits(locked.pid)
        yield Stalled(locked, held_back, mapped, within, executing)


def _waits(pid: int) -> None:
    """Until the threads of a process have locked its memory."""
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        states = [path.read_bytes() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        if any(b") D " in state for state in states):
            return
        time.sleep(0.01)
    pytest.fail(f"the memory of {pid} is not locked")


def execute(count: int) -> dict[int, str]:
    """Run short programs, some at a time; process id to its command."""
    started: dict[int, str] = {}
    for first in range(0, count, AT_ONCE):
        mine = {}
        for number in range(first, min(first + AT_ONCE, count)):
            words = ["sleep", "0.3", f"0.0{number:08}"]
            mine[os.posix_spawn("/bin/sleep", words, os.environ)] = " ".join(words)
        for pid in mine:
            assert os.waitpid(pid, 0)[1] == 0
        started |= mine
    return started


def sides(path: Path) -> list[Side]:
    """All that a capture has beside events."""
    with path.open("rb") as file:
        return [s for batch in CaptureReader(file, str(path)).batches() for s in batch.before]


def started(path: Path) -> dict[int, dict[str, Any]]:
    """The processes that were there when a recording began."""
    snapshot = next(side for side in sides(path) if isinstance(side, Snapshot))
    return {int(str(row["pid"])): row for row in snapshot.tables["processes"].to_pylist()}


@pytest.mark.parametrize(
    ("source", "executions"),
    [
        ("bpf", 80),
        pytest.param("bpf", 1000, marks=pytest.mark.long),
        pytest.param("proc", 1000, marks=pytest.mark.long),
    ],
)
def test_nobody_stalls_a_recording(
    tmp_path: Path, workloads: Workloads, source: str, executions: int
) -> None:
    """All executions meanwhile are there in full; what hung is null, and says so."""
    path = tmp_path / "host.kcap"
    with stalled(tmp_path, workloads) as hostile:
        running = RECORDINGS[source](path, "--source", source)
        try:
            done = execute(executions)
            running.stop(3)
        finally:
            if running.process.poll() is None:
                kill_all(running.process.pid)
                running.process.communicate()
    assert running.ready_s < 15
    assert running.closed_s < 10

    told = rows(path, columns=["pid", "event", "cmdline"])
    executed = [row for row in told if row["event"] in {"exec", "sched_process_exec"}]
    assert len(done) == executions
    assert done.items() - {(row["pid"], row.get("cmdline")) for row in executed} == set()
    table = started(path)
    assert table.keys() >= {child.pid for child in hostile}
    locked = table[hostile.locked.pid]
    assert "cmdline" not in locked
    assert "cmdline:timeout" in locked["provenance"]
    assert locked["exe"] == workloads.path("stuck")
    assert locked["process_key"]
    assert table[hostile.within.pid]["cwd"] == str(tmp_path / "fuse")
    reasons = [side.reason for side in sides(path) if isinstance(side, Loss)]
    assert f"timeout: reading cmdline of stuck, pid {hostile.locked.pid}, hung" in reasons
    for child in (hostile.held_back, hostile.mapped):
        assert any(f"pid {child.pid}, holds back" in reason for reason in reasons)
    assert str(hostile.locked.pid) in str(info(path)["loss"])


def test_direct_reads_hang(tmp_path: Path, workloads: Workloads) -> None:
    """The same host read by the recorder itself: the negative control. The prober goes on."""
    with stalled(tmp_path, workloads) as hostile:
        code = (
            "from kcap.readers.live.procfs import ProcFS; import sys;"
            "print('begun', flush=True); ProcFS().image(int(sys.argv[1])); print('done')"
        )
        for child, ends in ((hostile.locked, False), (hostile.within, True)):
            command = [sys.executable, "-c", code, str(child.pid)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as direct:
                assert direct.stdout is not None
                assert direct.stdout.readline() == "begun\n"
                try:
                    direct.wait(1)
                except subprocess.TimeoutExpired:
                    assert not ends
                    direct.kill()
                else:
                    assert ends
        probed = ProcFS.probed()
        begun_s = time.monotonic()
        images = {image.pid: image for image in probed.images()}
        assert time.monotonic() - begun_s < 5
        probed.close()
        assert images[hostile.locked.pid].late == {"cmdline"}
