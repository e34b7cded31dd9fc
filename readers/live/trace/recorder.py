"""The live sources for hosts that refuse the program in the kernel: tracepoints, read in two ways.

Measured (Python 3.11, one core, Linux 6.18) — see docs/decisions.md.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np

from kcap.errors import KcapError
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side
from kcap.model.stream import StreamInfo
from kcap.readers.live import host
from kcap.readers.live.baseline import Baseline, take
from kcap.readers.live.beats import Beats
from kcap.readers.live.procfs import STAT, STATUS, Image, ProcFS
from kcap.readers.live.trace import points as catalogue
from kcap.readers.live.trace.decode import Decoder
from kcap.readers.live.trace.formats import TID, TYPE
from kcap.readers.live.trace.instance import Instance
from kcap.readers.live.trace.lives import Lives
from kcap.readers.live.trace.perf import Lost, PerfRings, online_cpus
from kcap.readers.live.trace.points import Points
from kcap.readers.live.trace.samples import Ordering, Samples
from kcap.readers.live.trace.tracefs import Tracefs
from kcap.state.state import FDS, PROCESSES, THREADS

FULL: Final = "the ring was full"

BATCH_ROWS: Final = 1 << 15
"""Records of a batch at most."""

CANNOT_SEE: Final = (
    "what a system call points to: paths, addresses, names, arguments of what failed to execute",
    "files that are opened, read, written, renamed or removed",
    "arguments of a program that ended before /proc was read, and its working directory",
    "system calls of 32-bit programs, and what is asked for through io_uring",
)
"""What such a recording can't know, for whoever reads it."""

_SLACK_NS: Final = 2_000_000
"""How much later than its time a record may come to stand in its ring."""

_LOOKING_S: Final = 0.1
_AT_ONCE: Final = 64
"""Programs that are asked for together."""


class Rings(Protocol):
    """Where records of tracepoints come from."""

    cpus: list[int]
    """The processors that are recorded."""

    @property
    def fds(self) -> list[int]:
        """What can be waited for."""

    def drain(self) -> tuple[list[Samples], list[Lost]]:
        """Take what is there."""

    def lost(self) -> list[Lost] | None:
        """What had no room since the last time; None where only `drain` tells."""

    def close(self) -> None:
        """Give all of it back to the kernel."""


class TraceRecorder(ABC):
    """Records this host through tracepoints; a `kcap.model.stream.LiveSource`.

    What it is made of says a subclass.

    Args:
        interval_s: Longest time that events wait for their batch.
        events: The names of the events to record; None for the default.
        ring_bytes: Of the ring of one processor; None for what fits this host.
        details: What else is to be known of the recording: filter, case, operator, note.

    Raises:
        PrivilegeError: This user may not record the host.
        KcapError: Not Linux, or a kernel without what it takes.
    """

    name = ""
    reads = ""
    rights: Collection[str] = ()
    look_s = 0.25
    """How long what was executed may wait until /proc is read."""
    clock = time.CLOCK_BOOTTIME
    """The clock of the records' times."""

    def __init__(
        self,
        *,
        interval_s: float = 0.25,
        events: Collection[str] | None = None,
        ring_bytes: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._rings: Rings | None = None
        self._tracefs: Tracefs | None = None
        self._procfs = ProcFS.probed()
        try:
            self._tracefs = Tracefs()
            wanted = catalogue.default() if events is None else events
            self._points = Points(wanted, self._tracefs)
            self._rings = self._opened(self._tracefs, self._points, ring_bytes)
        except BaseException:
            self.close()
            raise
        self._clocks = host.Clocks.measure()
        self._source = host.source(self.name, self._clocks)
        self._details = {
            **(details or {}),
            "events": sorted(self._points.wanted),
            "unavailable": self._points.unavailable,
            "cannot_see": [*CANNOT_SEE, *_lacking(self._points)],
        }
        self._lives = Lives(self._group_of)
        self._decoder = Decoder(self._points, self._lives, self._clocks, self._source.id)
        self._ordering = Ordering()
        self._beats = Beats(self._source.id)
        self._images: dict[tuple[int, int], Image] = {}
        self._losses: list[Loss] = []
        self._ord = 0
        self._lost = 0
        self._unseen: set[int] = set()
        self._looked_ns = time.time_ns()
        self._baseline: Baseline | None = None
        self._looked_at = self._points.looked_at

    @abstractmethod
    def _opened(self, tracefs: Tracefs, points: Points, ring_bytes: int | None) -> Rings:
        """Open the rings that the tracepoints' records come through."""

    @property
    def info(self) -> StreamInfo:
        """What is known before the first event."""
        return StreamInfo(self.name, self.name, (self._source,), live=True)

    def prepare(self) -> None:
        """Look at the host as it is, after the tracepoints began to tell."""
        self._baseline = take(self._source, self._procfs, recording=self._details)
        self._source = self._baseline.source

    def part(self, ask: Callable[[str, bytes], bytes]) -> None:  # noqa: B027  (there is nothing to do)
        """See `kcap.model.stream.LiveSource`; what is needed was opened before."""

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `kcap.model.stream.LiveSource`; there is nothing to ask."""
        raise KcapError(f"{self.name} has no answer to {name!r}")

    def own(self, pids: Sequence[int]) -> None:
        """See `kcap.model.stream.LiveSource`; only their system calls are left out."""
        self._decoder.own = frozenset(pids)

    def stop(self) -> None:
        """Ask for the end. Safe in a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # closed, or full of earlier calls: both will do
            os.write(self._stop_write, b"\0")

    def close(self) -> None:
        """Give the kernel back what was taken; may be called twice."""
        if self._rings is not None:
            self._rings.close()
        if self._tracefs is not None:
            self._tracefs.close()
        self._rings = self._tracefs = None
        self._procfs.close()
        fds, self._stop_read, self._stop_write = (self._stop_read, self._stop_write), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def batches(self) -> Iterator[Batch]:
        """Record until `stop`.

        Yields:
            The host as it was after the tracepoints began to tell, then the events: a batch an
            interval, also when nothing happened, or more where a ring fills.
        """
        assert self._rings is not None
        if self._baseline is None:
            self.prepare()
        baseline, self._baseline = self._baseline, None
        assert baseline is not None
        threads = baseline.tables.get(THREADS)
        if threads is not None:
            self._lives.seed(threads.numpy("tid", -1), threads.numpy("pid", -1))
        processes = baseline.tables[PROCESSES].numpy("pid", -1)
        self._lives.seed(processes, processes)
        # Threads and descriptors are not followed here: what is known of them would grow old.
        known = baseline.sides(without={THREADS, FDS})
        yield Batch(0, {}, (*known, *self._beats.due(0, self._counters)))
        with select.epoll() as poll:
            for fd in (*self._rings.fds, self._stop_read):
                poll.register(fd, select.EPOLLIN)
            while not self._stopping:
                horizon_ns = self._collected(poll)
                yield from self._batches(horizon_ns)
                beat = self._beats.due(self._ord, self._counters)
                if beat:
                    yield Batch(0, {}, (*self._told(), *beat))
        self._drain()
        yield from self._batches(None)
        beat = self._beats.due(self._ord, self._counters, last=True)
        yield Batch(0, {}, (*self._told(), *beat))

    def _collected(self, poll: select.epoll) -> int:
        """Take records for an interval, or until a batch is full; up to when they are complete."""
        deadline_s = time.monotonic() + self._interval_s
        taken = 0
        horizon_ns = 0
        while not self._stopping and taken < BATCH_ROWS:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 and horizon_ns:
                break
            with contextlib.suppress(InterruptedError):
                poll.poll(max(0.0, min(left_s, self.look_s)))
            horizon_ns = time.clock_gettime_ns(self.clock) - _SLACK_NS
            taken += self._drain()
        return horizon_ns + self._offset_ns

    @property
    def _offset_ns(self) -> int:
        """What to add to the records' times to have those since the machine began."""
        return self._clocks.boottime_ns if self.clock == time.CLOCK_MONOTONIC else 0

    def _drain(self) -> int:
        """Take what is there, and look at once at what was executed; how many records it was."""
        assert self._rings is not None
        found, lost = self._rings.drain()
        count = 0
        for samples in found:
            placed = samples._replace(times_ns=samples.times_ns + self._offset_ns)
            self._look(placed)
            self._ordering.add(placed)
            count += len(placed.starts)
        self._note(lost)
        return count

    def _look(self, samples: Samples) -> None:
        """Read what processes have become: later they may be gone.

        Where many began at once the last ones first, and not longer than `_LOOKING_S`: of the
        others most are gone, and more will be if we are late.
        """
        common = self._points.common
        rows = np.flatnonzero(np.isin(samples.field(common, TYPE), self._looked_at))[::-1]
        tids = samples.field(common, TID, rows).tolist()
        every = list(zip(tids, samples.times_ns[rows].tolist(), strict=True))
        until_s = time.monotonic() + _LOOKING_S
        for start in range(0, len(every), _AT_ONCE):
            if start and time.monotonic() > until_s:
                break
            asked = [
                (tid, time_ns, self._procfs.image_soon(tid, started_by_ns=time_ns))
                for tid, time_ns in every[start : start + _AT_ONCE]
            ]
            for tid, time_ns, wait in asked:
                image = wait()
                if image is not None:
                    self._images[tid, time_ns] = image

    def _group_of(self, tid: int) -> int | None:
        """The process of a thread that was never seen."""
        with self._procfs.folder(tid, (STAT, STATUS)) as folder:
            text = None if folder is None else folder.content("status")
        for line in (text or b"").splitlines():
            name, _, value = line.partition(b":")
            if name == b"Tgid":
                return int(value)
        return None

    def _batches(self, horizon_ns: int | None) -> Iterator[Batch]:
        ready = self._ordering.until(horizon_ns)
        for start in range(0, max(1, len(ready.starts)), BATCH_ROWS):
            part = ready.take(np.arange(start, min(start + BATCH_ROWS, len(ready.starts))))
            yield self._batch(part)
        if len(ready.starts):
            last_ns = int(ready.times_ns[-1])
            self._images = {k: v for k, v in self._images.items() if k[1] > last_ns}

    def _batch(self, samples: Samples) -> Batch:
        count, columns, losses = self._decoder.batch(samples, self._images)
        self._place(columns, count)
        late = self._procfs.losses(self._source.id)
        before, self._losses = [*self._losses, *losses, *late], []
        return Batch(count, columns, tuple(before))

    def _place(self, columns: dict[str, Column], count: int) -> None:
        """Events with their place in the recording."""
        source = self._source
        texts = {"origin": source.origin, "source": source.id, "host": source.host, "kind": "event"}
        for name, value in texts.items():
            if value is not None and count:
                columns[name] = constant(TypeClass.STR, value, count)
        if count:
            ords = np.arange(self._ord, self._ord + count, dtype=np.int64)
            columns["ord"] = Decoder.numbers(ords)
        self._ord += count

    def _note(self, lost: Sequence[Lost]) -> None:
        """Keep what was lost for the next batch."""
        now_ns = time.time_ns()
        for count, cpu, number in lost:
            event = catalogue.known()[number].name if number else None
            span = (self._looked_ns, now_ns)
            self._losses.append(Loss("lost", count, FULL, self._source.id, event, cpu, *span))
            self._lost += count
        self._looked_ns = now_ns

    def _told(self) -> list[Side]:
        """What was lost since the last time; before it, the clocks where they have moved."""
        assert self._rings is not None
        sides: list[Side] = []
        clocks = host.Clocks.measure()
        if clocks.drifted(self._clocks):
            self._clocks = self._decoder.clocks = clocks
            self._source = replace(self._source, clocks=(*self._source.clocks, clocks.pair()))
            sides.append(self._source)
        self._note(self._rings.lost() or ())
        for cpu in sorted(set(online_cpus()).difference(self._rings.cpus, self._unseen)):
            self._unseen.add(cpu)
            reason = f"processor {cpu} came later: what happens there is not seen"
            self._losses.append(Loss("blind", None, reason, self._source.id, None, cpu))
        losses, self._losses = self._losses, []
        return [*sides, *losses]

    def _counters(self) -> dict[str, int]:
        """What a heartbeat says beside that we live."""
        return {"lost": self._lost, "late": self._procfs.late}


def _lacking(points: Points) -> list[str]:
    names = [name.rpartition("/")[2].removeprefix("sys_enter_") for name in points.unavailable]
    return [f"{', '.join(names)}: this kernel has no such tracepoints"] if names else []


class PerfRecorder(TraceRecorder):
    """Records this host through rings of perf events."""

    name = "kcap-perf"
    reads = "processes, connections and security calls of this host (Linux, CAP_PERFMON, tracefs)"
    # Rings wake us when a program begins. Their records may be made in an interrupt that cannot be
    # held off, where the clock that goes on in sleep must not be read.
    clock = time.CLOCK_MONOTONIC

    def _opened(self, tracefs: Tracefs, points: Points, ring_bytes: int | None) -> Rings:
        return PerfRings(points.every, self.clock, ring_bytes)


class TracefsRecorder(TraceRecorder):
    """Records this host through an instance of tracefs."""

    name = "kcap-tracefs"
    reads = "processes, connections and security calls of this host (Linux, root)"
    look_s = 0.02

    def _opened(self, tracefs: Tracefs, points: Points, ring_bytes: int | None) -> Rings:
        return Instance(tracefs, points.every, ring_bytes)
