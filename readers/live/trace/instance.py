"""An instance of tracefs: buffers of our own, in which no other tracer is disturbed.

Each processor has a file of pages. A page has the time of its first record, how many bytes are
used, then records, each with the time since the one before it. A full buffer keeps what it has;
what had no room is counted.

Finding the records of the pages takes Python 0.5 µs a record (measured: Python 3.11, one core).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kcap.errors import KcapError
from kcap.readers.live.trace.perf import Lost, online_cpus
from kcap.readers.live.trace.points import Point
from kcap.readers.live.trace.samples import UNKNOWN, Samples, spared
from kcap.readers.live.trace.tracefs import Tracefs, refused

PREFIX: Final = "kcap-"
"""How the names of our instances begin; then comes the recorder's process, and a random word."""

BUFFERS_BYTES: Final = 64 << 20
LEAST_BYTES: Final = 256 << 10
MOST_BYTES: Final = 8 << 20

_NAME: Final = re.compile(rf"{PREFIX}(\d+)-[0-9a-f]{{8}}")
_CLOCK: Final = "boot"
_PAGE: Final = 4096
_HEAD: Final = struct.Struct("<QQ")
_USED: Final = (1 << 30) - 1
_DELTA_BITS: Final = 27
_KIND: Final = 31
_PADDING, _EXTEND, _STAMP = 29, 30, 31
_STAMP_LOW: Final = (1 << 59) - 1
_STATS_BYTES: Final = 4096
_COUNTED: Final = ("overrun", "commit overrun", "dropped events")
_TRIES: Final = 20
_WAIT_S: Final = 0.05
_PERCENT: Final = "25"


class Instance:
    """Buffers of tracepoints, one a processor.

    Args:
        tracefs: The kernel's tracing files.
        points: The tracepoints.
        buffer_bytes: Of one processor; None for what fits this host.

    Raises:
        PrivilegeError: This user may not have an instance.
        KcapError: The kernel refuses.
    """

    def __init__(
        self, tracefs: Tracefs, points: Sequence[Point], buffer_bytes: int | None = None
    ) -> None:
        folder = Path(tracefs.path, "instances")
        remove_orphans(folder)
        self.path = folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        """Its folder."""
        self.cpus: list[int] = []
        """The processors that are recorded: all that there may be."""
        self._pages: dict[int, int] = {}
        self._stats: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._points: list[str] = []
        fitting = max(LEAST_BYTES, min(MOST_BYTES, BUFFERS_BYTES // len(online_cpus())))
        self.bytes = buffer_bytes or fitting
        """Of one buffer."""
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise refused(error, "no instance of tracefs can be made", self.path) from error
        try:
            self._set_up(points)
        except BaseException:
            self.close()
            raise

    def _set_up(self, points: Sequence[Point]) -> None:
        self._write("trace_clock", _CLOCK)
        self._write("options/overwrite", "0")
        self._write("buffer_size_kb", str(max(1, self.bytes >> 10)))
        with contextlib.suppress(KcapError):  # not before Linux 5.0; then a reader looks more often
            self._write("buffer_percent", _PERCENT)
        self.cpus = self._processors()
        for cpu in self.cpus:
            folder = f"per_cpu/cpu{cpu}"
            self._pages[cpu] = self._open(f"{folder}/trace_pipe_raw", os.O_NONBLOCK)
            self._stats[cpu] = self._open(f"{folder}/stats")
        for point in points:
            if point.filter:
                self._write(f"events/{point.format.name}/filter", point.filter)
            self._points.append(point.format.name)
            self._write(f"events/{point.format.name}/enable", "1")

    def _processors(self) -> list[int]:
        """Those that have a buffer, or will have one when they come online."""
        folder = self.path / "per_cpu"
        try:
            names = [path.name.removeprefix("cpu") for path in folder.iterdir()]
        except OSError as error:
            raise refused(error, "the buffers cannot be listed", folder) from error
        return sorted(int(name) for name in names if name.isdigit())

    def _write(self, name: str, value: str) -> None:
        path = self.path / name
        try:
            path.write_text(value, "ascii")
        except OSError as error:
            raise refused(error, f"{value!r} is refused", path) from error

    def _open(self, name: str, flags: int = 0) -> int:
        path = self.path / name
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError as error:
            raise refused(error, "a buffer cannot be read", path) from error

    @property
    def fds(self) -> list[int]:
        """What can be waited for: readable when a buffer fills."""
        return list(self._pages.values())

    def drain(self) -> tuple[list[Samples], list[Lost]]:
        """Take what the buffers hold now.

        Returns:
            The records of each processor; losses are told by `lost` alone.
        """
        found = []
        for cpu, fd in self._pages.items():
            # Not more than the buffer holds: else a busy processor would never let us go.
            pages, left = [], self.bytes // _PAGE + 1
            while left:
                try:
                    page = os.read(fd, _PAGE)
                except BlockingIOError:
                    break
                except InterruptedError:
                    continue
                except OSError as error:
                    raise KcapError(
                        f"reading the buffer of processor {cpu} failed: {error.strerror}",
                        file=str(self.path),
                    ) from error
                if not page:
                    break
                pages.append(page)
                left -= 1
            if pages:
                found.append(parsed(pages, cpu))
        return found, []

    def lost(self) -> list[Lost] | None:
        """Records that had no room since the last time, by processor."""
        found = []
        for cpu, fd in self._stats.items():
            text = os.pread(fd, _STATS_BYTES, 0).decode("ascii", "replace")
            counts = dict(line.partition(": ")[::2] for line in text.splitlines())
            total = sum(int(counts.get(name) or 0) for name in _COUNTED)
            if total > self._told.get(cpu, 0):
                found.append(Lost(total - self._told.get(cpu, 0), cpu))
            self._told[cpu] = total
        return found

    def close(self) -> None:
        """Remove the instance; may be called twice."""
        for fd in (*self._pages.values(), *self._stats.values()):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._pages, self._stats = {}, {}
        if self.path.is_dir():
            _remove(self.path)


def _remove(path: Path) -> bool:
    """Remove an instance, which ends its events; whether it is gone.

    Nothing of it is changed beforehand: where somebody reads it, it stays as it is.
    """
    for _ in range(_TRIES):
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                return False
            time.sleep(_WAIT_S)  # a worker that was just ended still has it open
        else:
            return True
    return False


def remove_orphans(folder: Path) -> None:
    """Remove instances whose recorder is gone: killed, it could not do so itself.

    Args:
        folder: Where instances are.

    Raises:
        PrivilegeError: This user may not see them.
        KcapError: This kernel has none.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise refused(error, "no instances of tracefs", folder) from error
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None and not Path("/proc", match[1]).is_dir():
            _remove(folder / name)


def parsed(pages: Sequence[bytes], cpu: int) -> Samples:
    """The records of the pages of one processor.

    Args:
        pages: They, in order.
        cpu: The processor.

    Returns:
        The records.

    Raises:
        KcapError: A page says what no page can.
    """
    starts: list[int] = []
    sizes: list[int] = []
    times: list[int] = []
    put = (starts.append, sizes.append, times.append)
    base = 0
    for page in pages:
        try:
            _follow(page, base, put)
        except (IndexError, struct.error) as error:
            raise KcapError("a page of the trace buffer ends in the middle of a record") from error
        base += len(page)
    data = spared(np.frombuffer(b"".join(pages), np.uint8))
    count = len(starts)
    return Samples(
        data,
        np.array(starts, np.int64),
        np.array(sizes, np.int64),
        np.array(times, np.int64),
        np.full(count, cpu, np.int64),
        np.full(count, UNKNOWN, np.int64),
    )


def _follow(page: bytes, base: int, put: Sequence[Callable[[int], None]]) -> None:
    """The records of one page: each header says how long its record is."""
    put_start, put_size, put_time = put
    now_ns, commit = _HEAD.unpack_from(page)
    at, end = _HEAD.size, _HEAD.size + (commit & _USED)
    if end > len(page):
        raise KcapError(f"a page of the trace buffer with {commit & _USED} bytes")
    words = memoryview(page).cast("I")
    while at < end:
        head = words[at >> 2]
        kind, delta = head & _KIND, head >> 5
        if kind < _PADDING:
            now_ns += delta
            skip = 4 if kind else 8
            size = kind * 4 or words[(at >> 2) + 1] - 4
            put_start(base + at + skip)
            put_size(size)
            put_time(now_ns)
            at += skip + (size + 3 & ~3)
        elif kind == _PADDING:
            if not delta:
                break
            now_ns += delta
            at += 4 + words[(at >> 2) + 1]
        else:
            more = words[(at >> 2) + 1] << _DELTA_BITS
            if kind == _EXTEND:
                now_ns += more + delta
            else:
                now_ns = (now_ns & ~_STAMP_LOW) | more + delta
            at += 8
