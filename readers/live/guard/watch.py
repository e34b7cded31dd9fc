"""What is done to a recorder while it records: noticed by itself, and told once each.

Whoever owns the host can stop any recorder. What this is for is that it shows: in the capture, on
standard error and in the exit code. Everything here works without rights, with what is open.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from kcap.model.side import Loss
from kcap.model.text import clean
from kcap.readers.live.guard.standstill import Standstill

BLIND: Final = "blind"
DAMAGED: Final = "damaged"
"""Kinds of loss: of what is done to processes, and to the file."""

LOOK_S: Final = 1.0
"""How often to look at what costs more than a system call or two."""

TAIL_BYTES: Final = 64
"""Bytes at the end of what was written that are compared the next time."""

HOLE_BYTES: Final = 64 << 20
"""How far back to look for the begin of what a truncated file has instead."""

_BLOCK_BYTES: Final = 1 << 20
_NAME_CHARS: Final = 300
_PROC: Final = "/proc"
_STOPPED: Final = "T"
_GONE: Final = " (deleted)"
_LIMITS: Final = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE")


class Watch:
    """Looks at the recorder's processes and at its output.

    Made in the process that writes, by its main thread.

    Args:
        pids: Gives all processes of the recorder.
        output: Gives the descriptor that is written to by now, None for none. A pipe is not
            watched: writing to it fails where nobody reads.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], output: Callable[[], int | None]) -> None:
        self._pids = pids
        self._output = output
        self._file: _File | None = None
        self._standstill = Standstill()
        self._bothered: set[str] = set()
        self._bounds = _Bounds()
        self._looked_s: float | None = None
        self._looked_ns: int | None = None

    def check(self, now_ns: int) -> list[Loss]:
        """Look, as often as batches come.

        Args:
            now_ns: The time, ns since 1970.

        Returns:
            What was noticed since the last time, between which times.
        """
        since_ns = now_ns if self._looked_ns is None else min(self._looked_ns, now_ns)
        now_s = time.monotonic()
        due = self._looked_s is None or now_s - self._looked_s >= LOOK_S
        found = [(BLIND, reason) for reason in self._standstill.look()]
        found += [(DAMAGED, reason) for reason in self._of_file(due=due)]
        if due:
            self._looked_s = now_s
            found += [(BLIND, reason) for reason in self._of_processes()]
            found += [(BLIND, reason) for reason in self._bounds.look()]
        self._looked_ns = now_ns
        return [
            Loss(kind, None, clean(os.fsencode(reason))[0], start_ns=since_ns, end_ns=now_ns)
            for kind, reason in found
        ]

    def close(self) -> None:
        """Look no more."""
        self._standstill.close()

    def _of_file(self, *, due: bool) -> list[str]:
        fd = self._output()
        if fd is None:
            self._file = None
            return []
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return []
        if self._file is None or self._file.key != (fd, found.st_dev, found.st_ino):
            self._file = _File(fd, found)
        return self._file.look(found, due=due)

    def _of_processes(self) -> list[str]:
        bothered = {text for pid in set(self._pids()) for text in _bothered(pid)}
        fresh = bothered - self._bothered
        self._bothered = bothered
        return sorted(fresh)


class _Bounds:
    """What others let this process use: its limits, and its control groups."""

    def __init__(self) -> None:
        self._limits = _limits()
        self._groups = _groups()

    def look(self) -> list[str]:
        """Say what was changed since the last time."""
        limits, groups = _limits(), _groups()
        told = [
            f"the recorder's limit {name} was changed from {self._limits[name]} to {now}"
            for name, now in limits.items()
            if now != self._limits[name]
        ]
        told += [
            f"the recorder was moved to another control group: {group}"
            for group in sorted(groups - self._groups)
        ]
        self._limits, self._groups = limits, groups
        return told


def _limits() -> dict[str, tuple[int, int]]:
    """Limits by which a recorder can be kept from its work, soft and hard."""
    return {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}


def _groups() -> set[str]:
    try:
        return set(Path(f"{_PROC}/self/cgroup").read_text("utf-8", "replace").splitlines())
    except OSError:
        return set()


class _Tail(NamedTuple):
    """The end of what was written, as it was read back."""

    offset: int
    content: bytes


class _File:
    """The output, and how it was when it was looked at last.

    Args:
        fd: Its descriptor.
        found: What fstat said.
    """

    def __init__(self, fd: int, found: os.stat_result) -> None:
        self.key = (fd, found.st_dev, found.st_ino)
        """What it is: another one has taken its place where this changes."""
        self._fd = fd
        self._name = self._named()
        self._linked = True
        self._short = False
        self._writable = True
        self._tail = _Tail(0, b"")

    def look(self, found: os.stat_result, *, due: bool) -> list[str]:
        """Say what was done to it since the last time.

        Args:
            found: What fstat said.
            due: Its name and its file system are to be looked at, too.

        Returns:
            A reason for each finding.
        """
        # The place where the next byte goes: what the system has, not what still waits here.
        written = os.lseek(self._fd, 0, os.SEEK_CUR)
        told = self._content(found.st_size, written)
        if due or not found.st_nlink:
            told += self._place(found)
        return told

    def _content(self, size: int, written: int) -> list[str]:
        short, self._short = self._short, size < written
        told = []
        if self._short:
            if not short:
                told.append(_truncated(size))
        elif self._tail.content:
            offset, content = self._tail
            now = self._read(offset, len(content))
            if not any(now) and any(content):
                start = self._zeros_from(offset)
                told.append(_truncated(start))
            elif now != content:
                told.append(f"the output was changed: bytes {offset} to {offset + len(content)}")
        start = max(0, min(size, written) - TAIL_BYTES)
        self._tail = _Tail(start, self._read(start, min(size, written) - start))
        return told

    def _zeros_from(self, offset: int) -> int:
        """Where the zeros begin that end at a place, or `HOLE_BYTES` before it."""
        lowest = max(0, offset - HOLE_BYTES)
        while offset > lowest:
            start = max(lowest, offset - _BLOCK_BYTES)
            block = self._read(start, offset - start)
            kept = len(block.rstrip(b"\0"))
            if kept or not block:
                return start + kept
            offset = start
        return offset

    def _read(self, offset: int, count: int) -> bytes:
        """Bytes of it; none where it was opened for writing alone, as a shell does."""
        with contextlib.suppress(OSError):
            return os.pread(self._fd, count, offset)
        return b""

    def _place(self, found: os.stat_result) -> list[str]:
        told = []
        name = self._named()
        linked = bool(found.st_nlink) and not name.endswith(_GONE)
        if self._linked and not linked:
            told.append(
                f"the output was unlinked, or replaced by another file: {self._name}:"
                " it is gone when the recording ends"
            )
        elif linked and name != self._name:
            told.append(f"the output was renamed: {self._name} is {name} now")
            self._name = name
        writable = not os.fstatvfs(self._fd).f_flag & os.ST_RDONLY
        if self._writable and not writable:
            told.append("the output's file system was made read-only")
        self._linked, self._writable = linked, writable
        return told

    def _named(self) -> str:
        """Its name, which the kernel keeps up to date, whoever may look into its folder."""
        try:
            return str(Path(f"{_PROC}/self/fd/{self._fd}").readlink())[-_NAME_CHARS:]
        except OSError:
            return ""  # there is no /proc: names are not watched then


def _truncated(at: int) -> str:
    return f"the output was truncated at byte {at}: only what was written later stands behind that"


def _bothered(pid: int) -> list[str]:
    """What is being done to a process, by thread."""
    found = set()
    with contextlib.suppress(OSError):  # it ended, or this user may not see it
        for thread in Path(f"{_PROC}/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found.add(_status(thread))
    told = []
    for state, tracer in sorted(found):
        if tracer:
            told.append(f"pid {pid} of the recorder is traced by pid {tracer}{_called(tracer)}")
        elif state == _STOPPED and pid != os.getpid():
            told.append(f"pid {pid} of the recorder is stopped by a signal")
    return told


def _status(thread: Path) -> tuple[str, int]:
    """State and tracer of a thread."""
    fields = dict(
        line.split(b":", 1)
        for line in (thread / "status").read_bytes().splitlines()
        if line.startswith((b"State:", b"TracerPid:"))
    )
    return fields[b"State"].split()[0].decode("ascii"), int(fields[b"TracerPid"])


def _called(pid: int) -> str:
    try:
        return f" ({clean(Path(f'{_PROC}/{pid}/comm').read_bytes()[:-1])[0]})"
    except OSError:
        return ""  # it has ended
