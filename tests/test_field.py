"""What happens to a recorder in the field: kills, stops, and outputs that take nothing more."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import pytest
from cli_support import run
from live_support import BTF, COMMAND, ROOT, Recording, children, kill_all
from test_guard import processes

import kcap
from kcap.readers.live.guard import collector

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

KILLS: Final = 3
MANY_KILLS: Final = 20


def settled(path: Path, limit_s: float = 20) -> None:
    """Wait until nobody writes a file any more."""
    before, limit = -1, time.monotonic() + limit_s
    while before != (now := path.stat().st_size):
        assert time.monotonic() < limit
        before = now
        time.sleep(0.5)


def kill_collector(recorder: Recording) -> None:
    """Kill the process that the user started."""
    recorder.process.kill()


def kill_worker(recorder: Recording) -> None:
    """Kill the process that writes."""
    os.kill(processes(recorder)["worker"], signal.SIGKILL)


@pytest.mark.parametrize("count", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.long)])
def test_kills_leave_valid_files(count: int, tmp_path: Path) -> None:
    """Whichever process is killed, and when: what is there can be read, and it says what is not."""
    random = Random(count)
    ways: list[Callable[[Recording], None]] = [
        lambda recorder: kill_all(recorder.process.pid),
        kill_collector,
        kill_worker,
    ]
    for number in range(count):
        path = tmp_path / f"{number}.kcap"
        recorder = Recording(path, "--source", "bpf", "--events", "all", "--durability", "200ms")
        for _ in range(random.randrange(1, 12)):
            subprocess.run(["/bin/true"], check=True)
            time.sleep(random.random() / 20)
        ways[number % len(ways)](recorder)
        recorder._ended()
        settled(path)
        assert run("verify", path).exit_code in (0, 3)
        shown = run("info", path)
        assert "is gone" in shown.output or shown.exit_code == 3
        counted = run("cat", "--format", "jsonl", path)
        assert counted.exit_code in (0, 3)
        with kcap.open(path) as capture, warnings.catch_warnings(action="ignore"):
            assert counted.stdout.count("\n") == capture.to_arrow(["event"]).num_rows


@contextmanager
def into_a_pipe(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A recorder whose output nobody reads, when the pipe is full; and the pipe."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "record", "-o", "-", "--events", "all", "--duration", "5m", *words],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(write)
    try:
        limit_s = time.monotonic() + 30
        while not _stuck(process.pid):
            assert time.monotonic() < limit_s
            subprocess.run(["/bin/ls", "/usr/bin"], stdout=subprocess.DEVNULL, check=True)
        yield process, read
    finally:
        with suppress(FileNotFoundError):
            kill_all(process.pid)
        process.wait()
        os.close(read)
        assert process.stderr is not None
        process.stderr.close()


def _stuck(pid: int) -> bool:
    """Whether a process that another one has started waits in a pipe."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return any("pipe_write" in Path(f"/proc/{p}/wchan").read_text() for p in children(pid))
    return False


def test_a_reader_that_stops_holds_up_nobody_for_ever(tmp_path: Path) -> None:
    """Asked twice, the recorder ends with 3; what the reader has is a capture that ends early."""
    with into_a_pipe() as (process, read):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(collector.STUCK_S) == 3
        assert process.stderr is not None
        assert b"takes nothing more" in process.stderr.read()
        path = tmp_path / "r.kcap"
        with open(read, "rb", closefd=False) as pipe:
            path.write_bytes(pipe.read())
    assert run("info", path).exit_code == 3
    assert run("cat", path).exit_code == 3


@pytest.mark.long
def test_a_reader_that_stops_is_waited_for(tmp_path: Path) -> None:
    """Asked once, it waits; a reader that goes on gets all of it, with what was lost."""
    with into_a_pipe() as (process, read):
        time.sleep(10)
        process.send_signal(signal.SIGINT)
        time.sleep(collector.STUCK_S / 2)
        assert process.poll() is None
        with open(read, "rb", closefd=False) as pipe:
            content = pipe.read()
        assert process.wait(20) in (0, 3)
    path = tmp_path / "r.kcap"
    path.write_bytes(content)
    with kcap.open(path) as capture:
        assert not any(loss.kind == "torn" for loss in capture.info.losses)


@pytest.mark.long
def test_ten_seconds_stopped(tmp_path: Path) -> None:
    """SIGSTOP of all processes for 10 s: a closed file that says so, with what happened after."""
    path = tmp_path / "r.kcap"
    recorder = Recording(path, "--source", "bpf")
    everybody = (recorder.process.pid, *children(recorder.process.pid))
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    subprocess.run(["/bin/true"], check=True)
    time.sleep(10)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    subprocess.run(["/bin/ls", "/"], stdout=subprocess.DEVNULL, check=True)
    time.sleep(1.5)
    recorder.stop(3)
    shown = run("info", path)
    assert shown.exit_code == 3
    assert "blind" in shown.output
    ran = run("cat", "--format", "jsonl", "-w", "kevt.name = 'sched_process_exec'", path).stdout
    assert '"exe":"/usr/bin/true"' in ran  # the kernel held it meanwhile
    assert '"exe":"/usr/bin/ls"' in ran
