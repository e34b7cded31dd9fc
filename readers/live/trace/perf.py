"""Rings of perf events: one a processor, into which all tracepoints write (perf_event_open(2)).

The ring of a processor belongs to an event that never happens; those of the tracepoints are led
into it. What has no room is counted by the kernel, by processor in the ring itself and, since
Linux 6.0, by tracepoint.

Finding the records of a ring by their chain takes Python 0.2 µs a record (measured: Python 3.11,
one core, records of 80 to 120 bytes); all that follows is done of many at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live.bpf import syscalls, system
from kcap.readers.live.trace.points import Point, Role
from kcap.readers.live.trace.samples import Samples, spared

# <linux/perf_event.h>
_ATTRIBUTES: Final = struct.Struct("<IIQQQQQIIQQQQIi24x")
_SOFTWARE, _TRACEPOINT = 1, 2
_DUMMY: Final = 9
_TID, _TIME, _CPU, _RAW = 1 << 1, 1 << 2, 1 << 7, 1 << 10
_FORMAT_LOST: Final = 1 << 4
_DISABLED, _WATERMARK, _USE_CLOCK = 1 << 0, 1 << 14, 1 << 25
_ENABLE, _SET_OUTPUT, _SET_FILTER = 0x2400, 0x2405, 0x40082406
_LOST_RECORD, _SAMPLE_RECORD = 2, 9
_HEAD_AT: Final = 1024

_PAGE: Final = 4096
_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
_HEADER_BYTES: Final = 8
_LOST_BYTES: Final = 24
_RAW_AT: Final = 36
"""Where a record of a tracepoint begins in a sample: behind header, ids, time, processor, size."""

_SAMPLE: Final = np.dtype(
    {
        "names": ["pid", "time", "cpu", "raw_bytes"],
        "formats": ["<i4", "<u8", "<u4", "<u4"],
        "offsets": [8, 16, 24, 32],
    }
)
_COUNT: Final = struct.Struct("<QQ")

BUFFERS_BYTES: Final = 64 << 20
"""What the rings of all processors take together, if each gets no less than the least."""

LEAST_BYTES: Final = 128 << 10
MOST_BYTES: Final = 8 << 20
_SPARE_FILES: Final = 256
_ONLINE: Final = Path("/sys/devices/system/cpu/online")
_NEEDS: Final = "CAP_PERFMON or CAP_SYS_ADMIN"


class Lost(NamedTuple):
    """Records that had no room."""

    records: int
    cpu: int | None = None
    event: int = 0
    """Number of the event that is not told of; 0 where it is not known, or may be several."""


class PerfRings:
    """The rings of all processors, with tracepoints that write into them.

    Args:
        points: The tracepoints.
        clock: The clock of the records' times, by its number; every one of the kernel's that may
            be read in the middle of anything.
        ring_bytes: Of one ring, a power of two; None for what fits this host.

    Raises:
        PrivilegeError: This user may not record the host.
        KcapError: The kernel refuses, or has not so many descriptors for us.
    """

    def __init__(self, points: Sequence[Point], clock: int, ring_bytes: int | None = None) -> None:
        syscalls.check_machine()
        self._clock = clock
        self.cpus = online_cpus()
        """The processors that are recorded."""
        self._leaders: dict[int, int] = {}
        self._events: dict[tuple[int, int, int], int] = {}
        """Descriptors, by the event's number, the processor and the tracepoint's number."""
        self._anchors: dict[int, int] = {}
        self._rings: dict[int, _Ring] = {}
        self._owner = os.getpid()
        self._format = _FORMAT_LOST
        self._told: Counter[tuple[int, int]] = Counter()
        _allow_files(len(self.cpus) * (len(points) + 1))
        self.bytes = ring_bytes or _fitting(len(self.cpus))
        """Of one ring."""
        try:
            for cpu in self.cpus:
                self._leaders[cpu] = self._open(_SOFTWARE, _DUMMY, cpu)
            self._anchor(exactly=ring_bytes is not None)
            for point in points:
                self._add(point)
            # Not before all of them are there: they would tell of our making them.
            for fd in self._events.values():
                _control(fd, _ENABLE, 0, "recording")
        except BaseException:
            self.close()
            raise

    @property
    def fds(self) -> list[int]:
        """What can be waited for: readable when a ring fills, or a program has begun."""
        return list(self._leaders.values())

    def _open(self, kind: int, number: int, cpu: int, *, at_once: bool = False) -> int:
        wakeup = 1 if at_once else self.__dict__.get("bytes", 0) // 4
        flags = _DISABLED | _USE_CLOCK | (0 if at_once else _WATERMARK)
        for read_format in dict.fromkeys((self._format, 0)):
            attributes = _ATTRIBUTES.pack(
                kind, _ATTRIBUTES.size, number, 1, _TID | _TIME | _CPU | _RAW, read_format, flags,
                wakeup, 0, 0, 0, 0, 0, 0, self._clock,
            )  # fmt: skip
            try:
                fd = system.open_perf_event(attributes, cpu=cpu)
            except PrivilegeError:
                raise
            except KcapError:
                if not read_format:
                    raise
                continue  # a kernel before 6.0 does not count by tracepoint
            self._format = read_format
            return fd
        raise AssertionError(read_format)

    def _anchor(self, *, exactly: bool) -> None:
        """Have the kernel make all rings; smaller ones where this user may not lock so much.

        A child inherits none of these mappings, and may not make a ring, but map one that there
        is. So this process maps each for good, and whoever reads maps it once more.
        """
        while True:
            try:
                for cpu, fd in self._leaders.items():
                    self._anchors[cpu] = _mapped(fd, _PAGE + self.bytes)
            except PermissionError as error:
                self._unmap()
                if exactly or self.bytes <= LEAST_BYTES:
                    raise PrivilegeError(
                        f"{len(self.cpus)} rings of {self.bytes >> 10} KiB cannot be locked",
                        expected="CAP_IPC_LOCK, or more of kernel.perf_event_mlock_kb",
                    ) from error
                self.bytes //= 2
            except OSError as error:
                self._unmap()
                what = f"a ring of {self.bytes} bytes cannot be mapped: {error.strerror}"
                raise KcapError(what) from error
            else:
                return

    def _add(self, point: Point) -> None:
        """Let a tracepoint write into the rings."""
        for cpu, leader in self._leaders.items():
            at_once = point.role is Role.EXEC
            fd = self._open(_TRACEPOINT, point.format.number, cpu, at_once=at_once)
            self._events[point.event, cpu, point.format.number] = fd
            what = f"the tracepoint {point.format.name}"
            if point.filter:
                rule = point.filter.encode() + b"\0"
                _control(fd, _SET_FILTER, rule, f"a filter of {what}")
            _control(fd, _SET_OUTPUT, leader, f"leading {what} into a ring")

    def drain(self) -> tuple[list[Samples], list[Lost]]:
        """Take what the rings hold now.

        Returns:
            The records of each processor; and those that had no room, where `lost` does not tell.
        """
        if not self._rings:
            self._rings = {cpu: _Ring(fd, self.bytes) for cpu, fd in self._leaders.items()}
        found, lost = [], []
        for cpu, ring in self._rings.items():
            samples, missing = _parsed(ring.take())
            if len(samples.starts):
                found.append(samples)
            if missing and not self._format:  # else `lost` tells them, by tracepoint
                lost.append(Lost(missing, cpu))
        return found, lost

    def lost(self) -> list[Lost] | None:
        """Records that had no room since the last time, by processor and event.

        Returns:
            They; None where this kernel does not count them so.
        """
        if not self._format:
            return None
        now: Counter[tuple[int, int]] = Counter()
        for (event, cpu, _), fd in self._events.items():
            now[event, cpu] += _COUNT.unpack(os.read(fd, _COUNT.size))[1]
        fresh, self._told = now - self._told, now
        return [Lost(count, cpu, event) for (event, cpu), count in sorted(fresh.items())]

    def _unmap(self) -> None:
        anchors, self._anchors = self._anchors, {}
        if self._owner == os.getpid():
            for address in anchors.values():
                syscalls.libc().munmap(
                    ctypes.c_void_p(address), ctypes.c_size_t(_PAGE + self.bytes)
                )

    def close(self) -> None:
        """End the events; may be called twice."""
        fds = [*self._events.values(), *self._leaders.values()]
        self._events, self._leaders = {}, {}
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        rings, self._rings = self._rings, {}
        for ring in rings.values():
            ring.close()
        self._unmap()


class _Ring:
    """A ring that is shared with the kernel: a page with positions, then the data."""

    def __init__(self, fd: int, size: int) -> None:
        try:
            self._map = mmap.mmap(fd, _PAGE + size, mmap.MAP_SHARED, _READ_WRITE)
        except (OSError, ValueError) as error:
            raise KcapError(f"a ring of {size} bytes cannot be mapped: {error}") from error
        self._size = size
        # One load and one store of 8 bytes each; x86-64 keeps their order with the data's.
        self._positions = memoryview(self._map)[_HEAD_AT : _HEAD_AT + 16].cast("Q")

    def take(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Copy what it holds, and give the room back."""
        head, tail = self._positions
        start, count = tail % self._size, head - tail
        if not count:
            return np.zeros(0, np.uint8)
        first = min(count, self._size - start)
        at = _PAGE + start
        raw = self._map[at : at + first] + self._map[_PAGE : _PAGE + count - first]
        self._positions[1] = head
        return np.frombuffer(raw, np.uint8)

    def close(self) -> None:
        """Unmap it."""
        self._positions.release()
        self._map.close()


def _parsed(raw: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> tuple[Samples, int]:
    """The samples of a part of a ring, and how many records it says were lost."""
    words = raw.data.cast("B").cast("I")
    offsets: list[int] = []
    append = offsets.append
    at, end = 0, len(raw)
    while at < end:
        append(at)
        size = words[(at >> 2) + 1] >> 16
        if size < _HEADER_BYTES:
            raise KcapError("a ring of perf events holds a record of no length")
        at += size
    data = spared(raw)
    starts = np.array(offsets, np.int64)
    kinds = data.view("<u4")[starts >> 2]
    missing = starts[kinds == _LOST_RECORD]
    lost = int(data.view("<u8")[(missing >> 3) + 2].sum()) if len(missing) else 0
    starts = starts[kinds == _SAMPLE_RECORD]
    bare = Samples(data, starts, starts, starts, starts, starts)
    fields = {name: bare.field(_SAMPLE, name).astype(np.int64) for name in _SAMPLE.names or ()}
    samples = Samples(
        data, starts + _RAW_AT, fields["raw_bytes"], fields["time"], fields["cpu"], fields["pid"]
    )
    return samples, lost


def _control(fd: int, request: int, argument: int | bytes, what: str) -> None:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        number = error.errno or errno.EINVAL
        raise syscalls.failure(number, what, needs=_NEEDS) from error


def _mapped(fd: int, size: int) -> int:
    """Map memory of the kernel's that no object of Python's unmaps: in a child it is not there.

    Raises:
        OSError: The kernel refuses.
    """
    library = syscalls.libc()
    library.mmap.restype = ctypes.c_void_p
    address = library.mmap(
        None, ctypes.c_size_t(size), _READ_WRITE, mmap.MAP_SHARED, fd, ctypes.c_long(0)
    )
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


def _fitting(cpus: int) -> int:
    """Bytes of a ring, so that all together stay within `BUFFERS_BYTES`."""
    each = BUFFERS_BYTES // cpus
    return max(LEAST_BYTES, min(MOST_BYTES, 1 << each.bit_length() - 1))


def _allow_files(wanted: int) -> None:
    """Let this process have so many more descriptors; what it may not have is refused later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def online_cpus() -> list[int]:
    """The processors that run.

    Raises:
        KcapError: The kernel does not say.
    """
    try:
        text = _ONLINE.read_text("ascii").strip()
        parts = [part.partition("-") for part in text.split(",")]
        return [n for a, _, b in parts for n in range(int(a), int(b or a) + 1)]
    except (OSError, ValueError) as error:
        raise KcapError("the running processors cannot be read", file=str(_ONLINE)) from error
