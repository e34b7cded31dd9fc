"""Recordings of this host while known things happen (workload_support.py), and how to compare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from workload_support import Fact, Workloads

import kcap

ROOT: Final = Path(__file__).resolve().parent.parent

BTF = Path("/sys/kernel/btf/vmlinux")
COMMAND = (sys.executable, "-m", "kcap.tools")
Row = dict[str, Any]


CALLS: Final = {
    "burst": ("CHILD", "300"),
    "files": ("FOLDER",),
    "sockets": ("FOLDER",),
    "creds": (),
    "memory": ("CHILD",),
    "execs": ("FOLDER", "CHILD"),
    "lives": ("CHILD", "FOLDER"),
    "attacks": (),
}
"""Programs that make the calls which are recorded, and their arguments."""


class Recording:
    """``kcap record`` in a process of its own; it listens when this is made.

    Args:
        path: The capture.
        words: More words for the command.
        listening: The file that there is when it listens, where that is another one.
    """

    def __init__(self, path: Path, *words: object, listening: Path | None = None) -> None:
        self.path = path
        self._listening = listening or path
        self.said = ""
        self.closed_s = 0.0
        """From the request to stop to the end."""
        begun_s = time.monotonic()
        # It ends by itself where whoever started it was killed.
        limit = ("--duration", "15m")
        command = [*COMMAND, "record", "-o", str(path), *limit, *map(str, words)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while not self._listens():
            assert self.process.poll() is None, self._ended()
            assert time.monotonic() < begun_s + 60
            time.sleep(0.02)
        self.ready_s = time.monotonic() - begun_s
        """From the start to when all that happens is recorded."""

    def _listens(self) -> bool:
        """Whether it records, and has said so in its file."""
        there = attached(self.process.pid) and self._listening.exists()
        return there and self._listening.stat().st_size > 0

    def _ended(self) -> str:
        _, self.said = self.process.communicate(timeout=60)
        return self.said

    def stop(self, *codes: int) -> None:
        """Ask for the end, and wait for it.

        Args:
            codes: The exit codes expected; 0 if none.
        """
        begun_s = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self._ended()
        self.closed_s = time.monotonic() - begun_s
        assert self.process.returncode in (codes or (0,)), self.said


def attached(pid: int, last: str = "sys_exit") -> bool:
    """Whether a recorder's program in the kernel is attached to all it needs.

    Args:
        pid: The recorder.
        last: What is attached last: system calls; where it records none, ``task_rename``.

    Returns:
        True where it is.
    """
    for described in Path(f"/proc/{pid}/fdinfo").glob("*"):
        with suppress(OSError):  # closed meanwhile
            if f"tp_name:\t{last}\n" in described.read_text():
                return True
    return False


@contextmanager
def recording(
    path: Path, *words: object, codes: tuple[int, ...] = (0,), listening: Path | None = None
) -> Iterator[Recording]:
    """Record what happens within; the capture is closed behind it.

    Args:
        path: The capture.
        words: More words for ``kcap record``.
        codes: The exit codes expected.
        listening: See `Recording`.

    Yields:
        The recording, which listens.
    """
    running = Recording(path, *words, listening=listening)
    try:
        yield running
        running.stop(*codes)
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_all(pid: int) -> None:
    """Kill a recorder with all that work for it, as a failing host does.

    What works for it first: it would end in order where the other one is gone.
    """
    for each in (*children(pid), pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def record_calls(
    path: Path, folder: Path, workloads: Workloads, codes: tuple[int, ...] = (0,)
) -> dict[str, list[Fact]]:
    """Record everything while all of `CALLS` run.

    Args:
        path: The capture.
        folder: An empty one, where they do it.
        workloads: The programs.
        codes: The exit codes that a recording may have.

    Returns:
        What each says that it did.
    """
    commands = {}
    for name, words in CALLS.items():
        own = folder / name
        own.mkdir()
        workloads.path(name)
        known = {"CHILD": workloads.child, "FOLDER": str(own)}
        commands[name] = [known.get(word, word) for word in words]
    with recording(path, "--source", "bpf", "--events", "all", codes=codes):
        return {name: workloads.run(name, *words) for name, words in commands.items()}


def rows(path: Path, where: str | None = None, columns: Iterable[str] | None = None) -> list[Row]:
    """The events of a capture.

    Args:
        path: The capture.
        where: A filter.
        columns: Only these of the columns that there are.

    Returns:
        A dictionary an event, without what is null but ``pid``: what the kernel does on its own
        is nobody's.
    """
    with kcap.open(path) as capture:
        known = capture.schema.names
        names = None if columns is None else [name for name in columns if name in known]
        table = capture.to_arrow(names, where=where)
    found: list[Row] = table.to_pylist()
    return [{k: v for k, v in row.items() if v is not None or k == "pid"} for row in found]


def lost(path: Path) -> int:
    """How many events a capture says were lost."""
    with kcap.open(path) as capture:
        return sum(loss.count or 0 for loss in capture.info.losses if loss.kind == "lost")


def info(path: Path) -> dict[str, Any]:
    """What ``kcap info`` says of a capture."""
    done = subprocess.run(
        [*COMMAND, "info", "--json", str(path)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    return dict(json.loads(done.stdout))


def of(found: Iterable[Row], fact: Fact) -> list[Row]:
    """The events of the process that a fact is about."""
    return [row for row in found if row["pid"] == fact["pid"]]


def missing(said: Iterable[Any], seen: Iterable[Any]) -> list[Any]:
    """What was done and is not there, or not in order.

    Args:
        said: What was done.
        seen: What was recorded; may have more, in between.

    Returns:
        Each deed that does not follow the one before it.
    """
    left, absent = list(seen), []
    for deed in said:
        if deed in left:
            del left[: left.index(deed) + 1]
        else:
            absent.append(deed)
    return absent
