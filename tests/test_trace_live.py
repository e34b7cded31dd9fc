"""Recordings through tracepoints: what happened is there once, what had no room is counted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import kernel_support
import pytest
from live_support import lost
from live_support import rows as rows_of
from trace_support import RECORDERS, check_burst, recorded, recorder, recording
from workload_support import Workloads

from kcap.errors import KcapError
from kcap.model.side import Loss
from kcap.readers.live import beats
from kcap.readers.live.trace import instance
from kcap.readers.live.trace import recorder as module
from kcap.readers.live.trace.instance import PREFIX, remove_orphans
from kcap.readers.live.trace.samples import Samples
from kcap.readers.live.trace.tracefs import Tracefs

pytestmark = pytest.mark.root

SOURCES = pytest.mark.parametrize("source", RECORDERS)
MANY = 5000

NOT_OURS = ("tracing_on", "trace_clock", "buffer_size_kb", "set_event", "events/enable")
"""What a careless tracer would change for all others."""


@pytest.mark.parametrize("count", [500, pytest.param(MANY, marks=pytest.mark.long)])
@SOURCES
def test_short_lived_processes(source: str, count: int, workloads: Workloads) -> None:
    """Every execution, fork and end of a burst is there, with path, names and status; none lost."""
    workloads.path("burst")
    with recording(source, events=()) as taken:
        said = workloads.run("burst", workloads.child, count)

    rows = taken.rows
    check_burst(said, rows, workloads.child)
    assert taken.losses() == []
    assert taken.losses("damaged") == []
    assert [row["ord"] for row in rows] == list(range(len(rows)))
    # The check finds what it is for.
    gone = said[count // 2]["child"]
    with pytest.raises(KeyError):
        check_burst(said, [row for row in rows if row.get("pid") != gone], workloads.child)


@SOURCES
def test_what_had_no_room_is_counted(
    source: str, workloads: Workloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes what comes, and a ring fills: received and lost are together what happened."""
    count, records = 2000, 6  # newtask, fork, rename, exec, exit_group, exit
    workloads.path("burst")
    wide = recorder(source, events=())
    narrow = recorder(source, events=(), ring_bytes=1 << 16)
    received: list[int] = []
    add = narrow._ordering.add

    def counted(samples: Samples) -> None:
        received.append(len(samples.starts))
        add(samples)

    monkeypatch.setattr(narrow._ordering, "add", counted)
    try:
        workloads.run("burst", workloads.child, count)
        assert wide._rings is not None
        narrow.stop()
        sides = [side for batch in narrow.batches() for side in batch.before]
        found, _ = wide._rings.drain()
        in_wide = sum(len(samples.starts) for samples in found)
        assert not wide._rings.lost()
    finally:
        narrow.close()
        wide.close()

    losses = [side for side in sides if isinstance(side, Loss) and side.kind == "lost"]
    missing = sum(loss.count or 0 for loss in losses)
    assert missing > count, "hardly anything was lost: this shows nothing of losses"
    assert records * count <= sum(received) + missing <= in_wide
    assert {loss.cpu for loss in losses} <= os.sched_getaffinity(0)
    if source == "perf":  # since Linux 6.0 the kernel counts by tracepoint
        by_event = Counter({loss.event: loss.count for loss in losses})
        assert by_event["sched_process_exec"] > 0


@SOURCES
def test_the_ends_of_processes(source: str) -> None:
    """Exit codes and signals are told of every kind of end, also of one killed from outside."""
    code = "import os, signal, threading, sys\n{}"
    programs = {
        "os._exit(7)": 7 << 8,
        "sys.exit(0)": 0,
        "os.kill(os.getpid(), signal.SIGKILL)": 9,
        "signal.signal(15, lambda *_: os._exit(3)); os.kill(os.getpid(), 15)": 3 << 8,
        "os.kill(os.getpid(), signal.SIGCHLD); os._exit(4)": 4 << 8,
        "threading.Thread(target=lambda: os._exit(5)).start(); signal.pause()": 5 << 8,
        "threading.Thread(target=signal.pause, daemon=True).start(); os.kill(os.getpid(), 10)": 10,
    }
    ended: dict[int, int] = {}
    with recording(source, events=()) as taken:
        for text in programs:
            words = [sys.executable, "-S", "-c", code.format(text)]
            pid = os.posix_spawn(sys.executable, words, os.environ)
            ended[pid] = os.waitpid(pid, 0)[1]
        waiting = subprocess.Popen(["sleep", "60"])
        time.sleep(0.05)
        waiting.terminate()
        waiting.wait()
        ended[waiting.pid] = signal.SIGTERM

    assert list(ended.values())[:-1] == list(programs.values())
    ends = {row["tid"]: row for row in taken.of("sched_process_exit")}
    seen = {pid: ends[pid]["arg_exit_code"] << 8 | ends[pid]["arg_signal_code"] for pid in ended}
    assert seen == ended


@SOURCES
def test_threads_and_calls(source: str) -> None:
    """A thread's calls are its process's; arguments and results are those of the calls."""
    found: list[tuple[int, int]] = []

    def call() -> None:
        tid = threading.get_native_id()
        os.kill(os.getpid(), 0)
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        with pytest.raises(ProcessLookupError):
            os.kill(2**22 + 7, 15)
        found.append((os.getpid(), tid))

    with recording(source, events=["kill", "setsid"]) as taken:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        child = os.fork()
        if not child:
            os.setsid()
            os._exit(0)
        os.waitpid(child, 0)

    ((pid, tid),) = found
    calls = [row for row in taken.of("kill", pid) if row["tid"] == tid]
    told = [(r["arg_pid"], r["arg_sig"], r["retval"], r["status"]) for r in calls]
    assert told == [(pid, 0, 0, "SUCCESS"), (2**22 + 7, 15, -3, "ESRCH")]
    assert all((row["syscall"], row["is_compat"]) == ("kill", False) for row in calls)
    (born,) = (r for r in taken.of("sched_process_fork", pid) if r["arg_child_tid"] == tid)
    assert born["arg_child_pid"] == pid, "a thread belongs to its process"
    (alone,) = (r for r in taken.of("sched_process_fork", pid) if r["arg_child_tid"] == child)
    assert alone["arg_child_pid"] == child
    (session,) = taken.of("setsid", child)
    assert session["retval"] == child


@SOURCES
def test_a_connection(source: str) -> None:
    """Both ends of a connection are told, by the same names as the kernel program's."""
    with recording(source, events=["inet_sock_set_state", "connect"]) as taken:
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        ends = f"127.0.0.1:{client.getsockname()[1]}->127.0.0.1:{server.getsockname()[1]}"
        for each in (client, accepted, server):
            each.close()

    port = ends.rpartition(":")[2]
    states = [
        (row["arg_old_state"], row["arg_new_state"], row["fd_name"])
        for row in taken.of("inet_sock_set_state", os.getpid())
        if f'"sin_port":"{port}"' in row.get("arg_remote_addr", "")
    ]
    assert states[:2] == [(7, 2, f"0.0.0.0:0->127.0.0.1:{port}"), (2, 1, ends)]
    (called,) = taken.of("connect", os.getpid())
    assert called["retval"] == 0
    assert "arg_addr" not in called, "what a pointer leads to is not made up"
    assert "!addr:" in called["shape"]


def test_a_processor_that_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does is blind, which is said once; of those that were there nothing is said."""
    monkeypatch.setattr(module, "online_cpus", lambda: [*os.sched_getaffinity(0), 4095])
    monkeypatch.setattr(beats, "BEAT_NS", 10_000_000)
    with recording("perf", events=(), interval_s=0.02) as taken:
        time.sleep(0.2)

    assert [(loss.cpu, loss.count) for loss in taken.losses("blind")] == [(4095, None)]


def test_nothing_of_others_is_touched() -> None:
    """The global buffer and others' instances are as before, meanwhile too; ours is gone."""
    with Tracefs() as tracefs:
        root = Path(tracefs.path)
        other = root / "instances" / f"other-{os.getpid()}"
        other.mkdir()
        try:
            (other / "events/sched/sched_process_exec/enable").write_text("1")

            def state() -> list[str]:
                folders = (root, other)
                return [(folder / name).read_text() for folder in folders for name in NOT_OURS]

            def instances() -> list[str]:
                mine = f"{PREFIX}{os.getpid()}-"
                return [p.name for p in (root / "instances").iterdir() if p.name.startswith(mine)]

            before = state()
            made = recorder("tracefs", events=())
            assert len(instances()) == 1
            assert state() == before
            made.close()
            assert instances() == []
            assert state() == before
            with pytest.raises(KcapError):
                RECORDERS["tracefs"](events=["openat"])
            assert instances() == []
        finally:
            other.rmdir()


def test_the_instance_of_a_killed_recorder_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next recorder removes what a killed one left; not what lives, or is read by somebody."""
    monkeypatch.setattr(instance, "_TRIES", 2)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with Tracefs() as tracefs:
        folder = Path(tracefs.path, "instances")
        names = (f"{gone.pid}-0123abcd", f"{gone.pid}-0123abce", f"{os.getppid()}-0123abcd", "my")
        left, read, living, odd = (folder / f"{PREFIX}{name}" for name in names)
        try:
            for path in (left, read, living, odd):
                path.mkdir()
                (path / "events/sched/sched_process_exec/enable").write_text("1")
            # As by a recorder in a container, whose processes have other numbers here.
            with (read / "per_cpu/cpu0/trace_pipe_raw").open("rb", buffering=0):
                remove_orphans(folder)
            assert [path.is_dir() for path in (left, read, living, odd)] == [False, *[True] * 3]
            enabled = read / "events/sched/sched_process_exec/enable"
            assert enabled.read_text().startswith("1"), "nothing of what is in use is changed"
        finally:
            for path in (left, read, living, odd):
                if path.is_dir():
                    path.rmdir()


@pytest.mark.long
@SOURCES
def test_a_recording_to_a_file(source: str, tmp_path: Path, workloads: Workloads) -> None:
    """``kcap record`` without rights in its worker: all of a burst, and what cannot be seen."""
    path = tmp_path / "r.kcap"
    workloads.path("burst")
    # 3 where another program of this host hides its arguments from us.
    with recorded(path, source, codes=(0, 3)):
        said = workloads.run("burst", workloads.child, MANY)

    check_burst(said, rows_of(path), workloads.child)
    assert lost(path) == 0


@pytest.mark.kernels
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_other_kernels(series: str, tmp_path: Path, workloads: Workloads) -> None:
    """Under Debian's kernels both sources record the burst whole, and a call with its arguments."""
    for name in ("burst", "child"):
        workloads.path(name)
    said = kernel_support.record_traces(series, tmp_path, workloads)
    for source in RECORDERS:
        rows = rows_of(tmp_path / f"out/{source}.kcap")
        check_burst(said[source], rows, str(kernel_support.THERE / "child"))
        assert len(said[source]) == MANY
        assert lost(tmp_path / f"out/{source}.kcap") == 0
        calls = [row for row in rows if row["event"] == "kill" and row["arg_sig"] == 0]
        assert any(row["retval"] == 0 for row in calls), calls
