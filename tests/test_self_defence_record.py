"""A recording while things are done to its recorder: each is in the capture, and said."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_support import run as cli
from live_support import BTF, COMMAND, ROOT, Recording, recording, rows

import kcap
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.decode import layouts
from kcap.readers.live.bpf.program import KernelProgram, Setup
from kcap.tools import control

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason="this kernel has no types"),
]

_PTRACE_SEIZE = 0x4206


def stats(run: Recording) -> dict[str, Any]:
    """What the recorder says at its control socket."""
    path = Path(f"/run/kcap/{run.process.pid}.sock")
    found: dict[str, Any] = control.ask(path, "stats", timeout_s=30)["stats"]
    return found


def lines_of_stats(run: Recording) -> list[dict[str, Any]]:
    """What `kcap stats --live` prints of a recorder, found by its process id."""
    done = cli("stats", "--live", str(run.process.pid), "--json", "-n", "1")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(found: dict[str, Any]) -> list[str]:
    """What a recorder says was done to it: others on this host may be blind spots of their own."""
    return [text for text in found["losses"] if "recorder" in text or "the output" in text]


def until(true: Callable[[], object], limit_s: float = 10) -> None:
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.1)


@contextmanager
def traced(pid: int) -> Iterator[int]:
    """A process that traces another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    tracer = os.fork()
    if tracer == 0:
        libc.ptrace(_PTRACE_SEIZE, pid, 0, 0)
        time.sleep(30)
        os._exit(0)
    try:
        yield tracer
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)


def aimed_at(found: list[dict[str, Any]], event: str, **arguments: object) -> list[int]:
    """Who did something, by its arguments."""
    wanted = {f"arg_{name}": value for name, value in arguments.items()}
    return [row["pid"] for row in found if row["event"] == event and wanted.items() <= row.items()]


def test_what_is_done_to_a_recorder_is_recorded_and_said(tmp_path: Path) -> None:
    """A signal, a tracer and an unlinked output are events of who did it, and findings."""
    path = tmp_path / "out.kcap"
    kept = path.with_name("kept")
    with recording(path, "--source", "bpf", codes=(3,)) as run:
        before = stats(run)
        worker = before["worker_pid"]
        assert told(before) == []
        assert before["output"] == str(path)
        assert {run.process.pid, worker} <= set(before["pids"])
        [shown] = lines_of_stats(run)
        assert shown["events_seen"] >= before["events_seen"]
        assert shown["rss_bytes"] > 1 << 20
        kill = subprocess.Popen(["/bin/kill", "-CONT", str(worker)])
        kill.wait()
        with traced(worker) as tracer:
            until(lambda: told(stats(run)))
        kept.hardlink_to(path)  # so that the test can read what nobody else could
        path.unlink()
        until(lambda: len(told(stats(run))) > 1)
        first, second = told(stats(run))
    assert f"pid {worker} of the recorder is traced by pid {tracer} (" in first
    assert "the output was unlinked" in second
    assert first in run.said
    assert second in run.said
    found = rows(kept)
    assert kill.pid in aimed_at(found, "kill", pid=worker, sig=int(signal.SIGCONT))
    assert tracer in aimed_at(found, "ptrace", pid=worker, request=_PTRACE_SEIZE)
    assert os.getpid() in aimed_at(found, "unlink", path_arg=str(path))
    with kcap.open(kept) as capture:
        reasons = [loss.reason for loss in capture.info.losses]
    assert sum("is traced by" in reason for reason in reasons) == 1
    assert sum("was unlinked" in reason for reason in reasons) == 1
    assert not Path(f"/run/kcap/{run.process.pid}.sock").exists()


@pytest.mark.long
def test_a_recorder_that_is_stopped_says_for_how_long(tmp_path: Path) -> None:
    """SIGSTOP for four seconds is told as such, and what happened meanwhile is recorded."""
    path = tmp_path / "out.kcap"
    with recording(path, "--source", "bpf", codes=(3,)) as run:
        worker = stats(run)["worker_pid"]
        time.sleep(1)
        os.kill(worker, signal.SIGSTOP)
        meanwhile = subprocess.Popen(["/bin/true"])
        meanwhile.wait()
        time.sleep(4)
        os.kill(worker, signal.SIGCONT)
        until(lambda: told(stats(run)))
    [stopped] = [line for line in run.said.splitlines() if "stopped by a signal" in line][:1]
    assert 4 <= float(stopped.rpartition(" for ")[2].split()[0]) < 8
    found = rows(path)
    assert meanwhile.pid in [row["pid"] for row in found if row["event"] == "sched_process_exec"]
    assert os.getpid() in aimed_at(found, "kill", pid=worker, sig=int(signal.SIGSTOP))


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 3000])
def test_a_truncated_recording_is_recovered_behind_that(tmp_path: Path, size: int) -> None:
    """Who truncates the output takes what was there; what comes later can be recovered."""
    path, rest = tmp_path / "out.kcap", tmp_path / "rest.kcap"
    with recording(path, "--source", "bpf", codes=(3,)) as run:
        time.sleep(2)
        os.truncate(path, size)
        until(lambda: told(stats(run)))
        after = subprocess.Popen(["/bin/true"])
        after.wait()
        time.sleep(1)
    assert f"the output was truncated at byte {size}:" in run.said
    done = subprocess.run(
        [*COMMAND, "recover", str(path), "-o", str(rest)], cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 3
    pids = [row["pid"] for row in rows(rest) if row["event"] == "sched_process_exec"]
    assert after.pid in pids


def test_a_part_that_is_detached_is_told() -> None:
    """A link that is closed, or another one by now, is noticed, and one that no call reaches."""
    program = KernelProgram(Setup(events.sets()["default"]))
    try:
        program.attach_processes()
        program.attach_calls(layouts(program.types).call)
        for _ in range(3):
            assert program.broken() == []
        links = program._loaded.links
        kept = os.dup(links["on_fork"])
        os.close(links["on_fork"])
        assert program.broken() == ["on_fork"]
        os.dup2(links["on_exec"], links["on_fork"])
        assert program.broken() == ["on_fork"]
        os.dup2(kept, links["on_fork"])
        os.close(kept)
        assert program.broken() == []
        program.own([])  # no call of ours counts any more, as if none came to the program
        program.broken()  # the last ones before that still did
        assert program.broken() == ["on_sys_exit"]
        program.own([os.getpid()])
        assert program.broken() == []
    finally:
        program.close()
