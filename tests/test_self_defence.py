"""What is done to a recorder shows: to its processes, to its output, to its program."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
from live_support import ROOT

from kcap.readers.live.guard import standstill, watch
from kcap.readers.live.guard.watch import Watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches what Linux tells")

_PTRACE_SEIZE, _PTRACE_DETACH = 0x4206, 17

RECORD: Final = """
import os, sys, time
from kcap.readers.live.guard import standstill
from kcap.readers.live.guard.watch import Watch

exec(sys.argv[4])
standstill.GAP_NS = int(sys.argv[1])
standstill.STOPPED_NS = int(sys.argv[1])
standstill._SLACK_NS = int(sys.argv[1]) // 2
standstill._TICK_S = 0.05
watch = Watch(lambda: [os.getpid()], lambda: None)
print("ready", flush=True)
end_s = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end_s:
    for loss in watch.check(time.time_ns()):
        print(loss.kind, loss.reason, flush=True)
    time.sleep(0.05)
    exec(sys.argv[3])
watch.close()
"""
"""A process that watches itself; a gap is so many ns, and it ends after so many seconds."""


@pytest.fixture
def output(tmp_path: Path) -> Iterator[BinaryIO]:
    with (tmp_path / "out.kcap").open("x+b", buffering=0) as stream:
        stream.write(os.urandom(10_000))
        yield stream


@contextmanager
def watching(
    *pids: int, fd: int | None = None, looks: bool = True
) -> Iterator[Callable[[], list[str]]]:
    """A watch that has looked once; gives what it notices at the next looks."""
    made = Watch(lambda: pids, lambda: fd)
    now_ns = time.time_ns()

    def look() -> list[str]:
        if looks:
            made._looked_s = None
        return [loss.reason for loss in made.check(time.time_ns())]

    assert made.check(now_ns) == []
    try:
        yield look
    finally:
        made.close()


@contextmanager
def sleeping() -> Iterator[int]:
    """A process that does nothing."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_nothing_is_told_of_nothing(output: BinaryIO) -> None:
    """A recorder that writes, is renamed nowhere and traced by nobody has nothing to tell."""
    with watching(os.getpid(), fd=output.fileno()) as look:
        for _ in range(20):
            output.write(os.urandom(1000))
            assert look() == []


@pytest.mark.parametrize("size", [0, 1, 4095, 9_999])
def test_a_truncated_output_is_told_once(output: BinaryIO, size: int) -> None:
    """A file that is shorter than what was written was truncated; it is said at which byte."""
    with watching(fd=output.fileno()) as look:
        os.truncate(output.name, size)
        [told] = look()
        assert told.startswith(f"the output was truncated at byte {size}:")
        assert look() == []
        output.write(os.urandom(500))
        assert look() == []
        os.truncate(output.name, size)
        assert len(look()) == 1


@pytest.mark.parametrize("size", [0, 1, 4095, 9_936])
def test_a_truncation_that_was_written_over_is_told(output: BinaryIO, size: int) -> None:
    """A file that has grown again since shows by the zeros where something else was written."""
    with watching(fd=output.fileno()) as look:
        os.truncate(output.name, size)
        output.write(os.urandom(5000))
        assert Path(output.name).stat().st_size == 15_000
        [told] = look()
        at = int(told.removeprefix("the output was truncated at byte ").split(":")[0])
        assert size - 8 < at <= size, "random bytes before it may be zeros, too"
        assert look() == []


def test_zeros_that_were_written_are_no_truncation(output: BinaryIO) -> None:
    """A file that ends in zeros because they were written is as it should be."""
    output.write(bytes(1000))
    with watching(fd=output.fileno()) as look:
        output.write(os.urandom(100))
        assert look() == []


def test_an_output_that_was_changed_is_told(output: BinaryIO) -> None:
    """Other bytes at the end of what was written are told."""
    with watching(fd=output.fileno()) as look:
        with Path(output.name).open("r+b") as other:
            other.seek(9_990)
            other.write(b"other")
        [told] = look()
        assert told == "the output was changed: bytes 9936 to 10000"
        assert look() == []


@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_that_is_gone_is_told_once(output: BinaryIO, replaced: bool) -> None:
    """A file without a name is told, be it unlinked or another file in its place."""
    name = Path(output.name)
    with watching(fd=output.fileno()) as look:
        if replaced:
            other = name.with_name("other")
            other.write_bytes(b"")
            other.rename(name)
        else:
            name.unlink()
        [told] = look()
        assert told.startswith(f"the output was unlinked, or replaced by another file: {name}")
        assert look() == []


def test_a_second_name_does_not_hide_that_the_first_is_gone(output: BinaryIO) -> None:
    """Where another name is left, the one that the user gave is missed all the same."""
    name = Path(output.name)
    with watching(fd=output.fileno()) as look:
        name.with_name("second").hardlink_to(name)
        assert look() == []
        name.unlink()
        assert "unlinked" in look()[0]


def test_an_output_that_moves_is_told_with_its_new_name(output: BinaryIO) -> None:
    """A rename, of the file or of a folder above it, is told each time."""
    name = Path(output.name)
    with watching(fd=output.fileno()) as look:
        name.rename(name.with_name("moved"))
        assert look() == [f"the output was renamed: {name} is {name.with_name('moved')} now"]
        assert look() == []
        folder = name.parent.rename(name.parent.with_name("away"))
        [told] = look()
        assert told.endswith(f"is {folder / 'moved'} now")
        folder.rename(name.parent)


def test_another_part_is_another_file(output: BinaryIO, tmp_path: Path) -> None:
    """A recording that goes on in a new file watches that one, and the old one may go."""
    with (tmp_path / "second").open("x+b", buffering=0) as second:
        numbers = [output.fileno(), second.fileno()]
        made = Watch(tuple, lambda: numbers[0])
        assert made.check(time.time_ns()) == []
        del numbers[0]
        Path(output.name).unlink()
        assert made.check(time.time_ns()) == []
        second.write(bytes(range(200)))
        made._looked_s = None
        assert made.check(time.time_ns()) == []
        Path(second.name).unlink()
        made._looked_s = None
        assert len(made.check(time.time_ns())) == 1
        made.close()


def test_a_file_system_that_becomes_read_only_is_told(
    output: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the disk: what is open can't be written any more."""
    true = os.fstatvfs

    class Found:
        def __init__(self, fd: int) -> None:
            self.f_flag = true(fd).f_flag | os.ST_RDONLY

    with watching(fd=output.fileno()) as look:
        monkeypatch.setattr(os, "fstatvfs", Found)
        assert look() == ["the output's file system was made read-only"]
        assert look() == []


def test_a_pipe_is_not_watched() -> None:
    """A pipe has no size, name or place that could be taken away."""
    read, write = os.pipe()
    with watching(fd=write) as look:
        os.write(write, b"some")
        assert look() == []
    os.close(read)
    os.close(write)


@contextmanager
def tracing(tid: int) -> Iterator[int]:
    """Another process that traces a thread; gives its pid."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    ready_read, ready_write = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        done = libc.ptrace(_PTRACE_SEIZE, tid, 0, 0)
        os.write(ready_write, b"1" if done == 0 else b"0")
        time.sleep(60)
        os._exit(0)
    may = os.read(ready_read, 1) == b"1"
    try:
        if not may:
            pytest.skip("this user may not trace")
        yield tracer
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
        os.close(ready_read)
        os.close(ready_write)


def test_a_traced_process_is_told_once_each_time() -> None:
    """Who traces a process of the recorder is named; anew only where it begins anew."""
    with sleeping() as pid, watching(pid) as look:
        for _ in range(2):
            with tracing(pid) as tracer:
                [told] = look()
                assert told.startswith(f"pid {pid} of the recorder is traced by pid {tracer} (")
                assert look() == []
            assert look() == []


def test_one_traced_thread_is_enough() -> None:
    """A tracer of a single thread that is not the first is seen."""
    script = "import threading, time; threading.Thread(target=time.sleep, args=[60]).start()"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        tasks = Path(f"/proc/{process.pid}/task")
        while len(list(tasks.iterdir())) < 2:
            time.sleep(0.01)
        [second] = [int(task.name) for task in tasks.iterdir() if int(task.name) != process.pid]
        with watching(process.pid) as look, tracing(second):
            assert "traced" in look()[0]
    finally:
        process.kill()
        process.wait()


def test_another_process_that_is_stopped_is_told() -> None:
    """A process of the recorder that a signal has stopped is told while the others run."""
    with sleeping() as pid, watching(pid) as look:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert look() == [f"pid {pid} of the recorder is stopped by a signal"]
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
        assert look() == []


def test_a_limit_that_others_set_is_told() -> None:
    """A limit of its memory, files or time that changes is told, with both values."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with watching() as look:
        assert look() == []
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        try:
            [told] = look()
            assert told.startswith("the recorder's limit RLIMIT_NOFILE was changed from ")
            assert str((soft - 1, hard)) in told
            assert look() == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_control_group_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is moved to another control group, where it gets less or is frozen, says so."""
    groups = {"4:memory:/a", "0::/"}
    monkeypatch.setattr(watch, "_groups", lambda: set(groups))
    with watching() as look:
        assert look() == []
        groups.remove("0::/")
        groups.add("0::/slow")
        assert look() == ["the recorder was moved to another control group: 0::/slow"]
        assert look() == []


def test_processes_are_looked_at_once_a_second() -> None:
    """What costs more than a system call is not done with each batch."""
    asked: list[int] = []

    def pids() -> list[int]:
        asked.append(1)
        return []

    made = Watch(pids, lambda: None)
    for _ in range(100):
        made.check(time.time_ns())
    made.close()
    assert len(asked) == 1


@contextmanager
def self_watching(
    gap_s: float, last_s: float, each: str = "", *, first: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A process that watches itself, and is ready."""
    words = [str(int(gap_s * 10**9)), str(last_s), each, first]
    process = subprocess.Popen(
        [sys.executable, "-c", RECORD, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def told(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=30)
    return output.splitlines()


def test_a_stop_within_a_look_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look in which it is told to continue began before the gap; the next one has it."""
    monkeypatch.setattr(standstill, "STOPPED_NS", 10**7)
    watched = standstill.Standstill()
    try:
        watched.look()
        os.kill(os.getpid(), signal.SIGCONT)
        assert watched.look() == []
        time.sleep(0.02)
        [reason] = watched.look()
        time.sleep(0.02)
        later = watched.look()
    finally:
        watched.close()
    assert reason.endswith("stopped by a signal")
    assert later == []


def test_a_signal_that_stops_it_is_told_as_one() -> None:
    """SIGSTOP and SIGCONT show as a stop by a signal, as long as they lie apart."""
    with self_watching(0.4, 1.5) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.8)
        process.send_signal(signal.SIGCONT)
        [line] = told(process)
        assert line.startswith("blind the recorder did not run for ")
        assert line.endswith(": stopped by a signal")
        assert 0.7 < float(line.split()[7]) < 1.5


def test_a_signal_to_continue_is_no_stop() -> None:
    """SIGCONT to a process that runs, as service managers send it, is nothing to tell."""
    with self_watching(0.4, 0.8) as process:
        process.send_signal(signal.SIGCONT)
        assert told(process) == []


@pytest.mark.parametrize(
    ("each", "why"),
    [
        ("time.sleep(0.9)", "it waited for its output, a device, or another process"),
        (
            "t = time.monotonic()\nwhile time.monotonic() < t + 0.9: pass",
            # As many others as want to run may leave it less than half of a processor.
            "it (was busy with what it had|got no processor)",
        ),
    ],
)
@pytest.mark.long
def test_a_wait_and_work_are_told_apart(each: str, why: str) -> None:
    """A recorder that waits for something says so, and one that has too much to do."""
    with self_watching(0.6, 1.5, each) as process:
        [line] = told(process)
    assert re.search(why, line)


@pytest.mark.root
@pytest.mark.long
@pytest.mark.parametrize("version", [1, 2])
def test_a_frozen_group_is_told(tmp_path: Path, version: int) -> None:
    """The freezer of a control group shows; that of version 2 with the group's name."""
    with frozen_group(tmp_path, version) as (group, freeze, thaw):
        enter = f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))"
        with self_watching(0.6, 2, first=enter) as process:
            freeze()
            time.sleep(1.2)
            thaw()
            [line] = told(process)
    assert "did not run" in line
    assert line.endswith(
        f"frozen with its control group /{group.name}"
        if version == 2
        else "frozen, by its control group or with the whole machine"
    )


@contextmanager
def frozen_group(
    folder: Path, version: int
) -> Iterator[tuple[Path, Callable[[], Any], Callable[[], Any]]]:
    """A control group that can be frozen, and how."""
    if version == 1:
        root = Path("/sys/fs/cgroup/freezer")
        if not (root / "cgroup.procs").exists():
            pytest.skip("there is no freezer of version 1 here")
    else:
        root = folder / "cgroup2"
        root.mkdir()
        if subprocess.run(["mount", "-t", "cgroup2", "none", root], check=False).returncode:
            pytest.skip("control groups of version 2 can't be mounted here")
    group = root / f"kcap-test-{os.getpid()}"
    try:
        group.mkdir()
        name, on, off = (
            ("freezer.state", "FROZEN", "THAWED") if version == 1 else ("cgroup.freeze", "1", "0")
        )
        yield (
            group,
            lambda: (group / name).write_text(on),
            lambda: (group / name).write_text(off),
        )
    finally:
        with suppress(OSError):
            (group / name).write_text(off)
        while (group / "cgroup.procs").read_text():
            time.sleep(0.01)
        group.rmdir()
        if version != 1:
            subprocess.run(["umount", root], check=True)
