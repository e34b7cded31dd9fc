"""The live source that every Linux has: the kernel's process events connector.

What forkstat uses. The kernel says that a process forked, executed, ended or changed its ids,
when, and where; what was executed must be read from /proc, which a short-lived process beats.

Measured (Python 3.11, one core, Linux 6.18): 2.4 µs of CPU an event where many wait in the buffer,
8 to 12 µs where each one wakes us, and 26 µs more for each image that is read from /proc.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from kcap import limits
from kcap.errors import KcapError
from kcap.model.batch import Batch, Rows, constant
from kcap.model.classes import TypeClass
from kcap.model.naming import argument
from kcap.model.side import Loss, Side
from kcap.model.stream import StreamInfo
from kcap.readers.live import cn_proc, host, netlink
from kcap.readers.live.baseline import Baseline, take
from kcap.readers.live.beats import Beats
from kcap.readers.live.cn_proc import Columns, Decoded, Gaps
from kcap.readers.live.procfs import Image, ProcFS, provenance
from kcap.state.processes import PASSWD, pairs
from kcap.state.state import FDS, PROCESSES, THREADS

KNOWN_MAX: Final = 1 << 18
"""Processes of which it is remembered that they have been described."""

CANNOT_SEE: Final = (
    "files, connections, and system calls but those that change the ids of a process",
    "path and arguments of a program that ended before /proc was read",
    "executions that failed",
)
"""What such a recording can't know, for whoever reads it."""

_LEAVE: Final = "leave"
_TIMES: Final = struct.Struct("=Q")
_TIME_AT: Final = 44
_PID: Final = struct.Struct("=I")
_PID_AT: Final = 56

_IMAGE_COLUMNS: Final = {
    "process_name": "name",
    "exe": "exe",
    "cmdline": "cmdline",
    "ppid": "ppid",
    "session": "session",
    "uid": "uid",
    "gid": "gid",
    "user": "user",
    "container_id": "container_id",
}
"""The columns that /proc fills, and where an `Image` has their values."""

_NUMBERS: Final = frozenset({"gid", "ppid", "process_start_ns", "session", "uid"})

_DESCRIBED: Final = (cn_proc.UID, cn_proc.GID, cn_proc.COMM)
"""Events, beside forks, for which a process that was never seen before is looked up.

Those that the process table follows, so that it learns the process from the row.
"""


class ProcConnector:
    """Records process events of this host; a `kcap.model.stream.LiveSource`.

    Args:
        interval_s: Longest time that events wait for their batch.
        batch_rows: Events of a batch at most.
        receive_bytes: Receive buffer; the kernel counts more than 700 bytes an event.
        details: What else is to be known of the recording: filter, case, operator, note.

    Raises:
        PrivilegeError: This user, or this namespace, gets no events.
        KcapError: Not Linux, or a kernel without the connector.
    """

    name = "netlink-proc"
    reads = "process events of this host (Linux, root): fork, exec, exit, ids, names"
    rights = ("CAP_NET_ADMIN",)

    def __init__(
        self,
        *,
        interval_s: float = 0.25,
        batch_rows: int = 4096,
        receive_bytes: int = 64 << 20,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._batch_rows = batch_rows
        self._socket = netlink.connect(receive_bytes)
        self._stop_read, self._stop_write = socket.socketpair()
        self._stop_write.setblocking(False)
        self._stopping = False
        self._listening = True
        self.overruns = 0
        """How often the receive buffer was full."""
        self._procfs = ProcFS.probed()
        try:
            self._datagrams = netlink.subscribe(self._socket)
        except BaseException:
            self.close()
            raise
        self._clocks = host.Clocks.measure()
        self._source = host.source(self.name, self._clocks)
        self._details = {**(details or {}), "cannot_see": list(CANNOT_SEE)}
        self._gaps = Gaps()
        self._beats = Beats(self._source.id)
        self._known: set[int] = set()
        self._evicted = 0
        self._ord = 0
        self._images: dict[int, Image] = {}
        self._asked: list[tuple[int, Callable[[], Image | None]]] = []
        self._baseline: Baseline | None = None
        self._ask: Callable[[str, bytes], bytes] = self.serve

    @property
    def info(self) -> StreamInfo:
        """What is known before the first event."""
        return StreamInfo(self.name, self.name, (self._source,), live=True)

    def stop(self) -> None:
        """Ask for the end. Safe in a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # closed, or full of earlier calls: both will do
            self._stop_write.send(b"\0")

    def close(self) -> None:
        """Close the sockets; the kernel ends the subscription."""
        if self._listening:
            self._listening = False  # old kernels count: leaving twice would end others' events
            with contextlib.suppress(OSError):  # the subscription may be what failed
                netlink.send(self._socket, netlink.MCAST_IGNORE)
        for sock in (self._socket, self._stop_read, self._stop_write):
            sock.close()
        self._procfs.close()

    def prepare(self) -> None:
        """Look at the host as it is, after subscribing."""
        self._baseline = take(self._source, self._procfs, recording=self._details)
        self._source = self._baseline.source

    def part(self, ask: Callable[[str, bytes], bytes]) -> None:
        """See `kcap.model.stream.LiveSource`."""
        self._ask = ask

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `kcap.model.stream.LiveSource`."""
        if name != _LEAVE or argument:
            raise KcapError(f"the process connector has no answer to {name!r}")
        netlink.leave(self._socket)
        return b""

    def own(self, pids: Sequence[int]) -> None:
        """Nothing: the kernel tells of all processes, and few of ours begin or end."""

    def batches(self) -> Iterator[Batch]:
        """Record until `stop`.

        Yields:
            The host as it was after subscribing, then the events: a batch an interval,
            also when nothing happened, or a full one earlier. Events that came while /proc was
            read follow its tables, so that these are complete with them.
        """
        if self._baseline is None:
            self.prepare()
        baseline, self._baseline = self._baseline, None
        assert baseline is not None
        self._known = set(baseline.tables[PROCESSES].numpy("pid", 0).tolist())
        # Threads and descriptors are not followed here: what is known of them would grow old.
        known = baseline.sides(without={THREADS, FDS})
        yield Batch(0, {}, (*known, *self._beats.due(0, self._counters)))
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while not self._stopping:
            deadline_s = time.monotonic() + self._interval_s
            while len(self._datagrams) < self._batch_rows:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._stop_read.fileno() in dict(poll.poll(left_s * 1000)):
                    break
                self._drain()
            batch = self._batch()
            beat = self._beats.due(self._ord, self._counters)
            yield batch.with_before((*batch.before, *beat)) if beat else batch
        # No new events from here on; what the socket holds is still ours.
        self._listening = False
        self._ask(_LEAVE, b"")
        while self._drain():
            yield self._batch()
        yield self._batch()
        yield from self._tail()
        yield Batch(0, {}, tuple(self._beats.due(self._ord, self._counters, last=True)))

    def _counters(self) -> dict[str, int]:
        """What a heartbeat says beside that we live."""
        return {
            "lost": self._gaps.lost,
            "overruns": self.overruns,
            "late": self._procfs.late,
            "evicted": self._evicted,
        }

    def _drain(self) -> bool:
        """Take what the socket holds, up to a full batch; True where there may be more.

        An executed image is asked for at once: later the process may be gone.
        """
        more = self._take()
        for at, wait in self._asked:
            image = wait()
            if image is not None:
                self._images[at] = image
        self._asked = []
        return more

    def _take(self) -> bool:
        receive, keep = self._socket.recv, self._datagrams.append
        for at in range(len(self._datagrams), self._batch_rows):
            try:
                datagram = receive(netlink.DATAGRAM_BYTES)
                while not datagram:  # a datagram of no bytes is not the end, but says nothing
                    datagram = receive(netlink.DATAGRAM_BYTES)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KcapError(f"reading process events failed: {error}") from error
                self.overruns += 1  # the numbers of later events tell how many are lost
                return True
            keep(datagram)
            if datagram[cn_proc.WHAT] == cn_proc.WHAT_EXEC:
                self._look(at, datagram)
        return True

    def _look(self, at: int, datagram: bytes) -> None:
        """Read what an event's process executed."""
        if len(datagram) < cn_proc.MESSAGE.itemsize:
            return
        (pid,) = _PID.unpack_from(datagram, _PID_AT)
        (monotonic_ns,) = _TIMES.unpack_from(datagram, _TIME_AT)
        by_ns = monotonic_ns + self._clocks.boottime_ns
        self._asked.append((at, self._procfs.image_soon(pid, started_by_ns=by_ns)))

    def _batch(self) -> Batch:
        """Make a batch of what was received."""
        before: list[Side] = []
        clocks = host.Clocks.measure()
        if clocks.drifted(self._clocks):
            self._clocks = clocks
            pairs = (*self._source.clocks, clocks.pair())
            self._source = replace(self._source, clocks=pairs)
            before.append(self._source)
        datagrams, images = self._datagrams, self._images
        self._datagrams, self._images = [], {}
        decoded = cn_proc.decode(datagrams)
        made = Columns(decoded, self._clocks)
        made.build()
        before += self._gaps.look(decoded.numbered, self._clocks.realtime_ns, self._source.id)
        if made.count:
            self._add_images(made, decoded, images)
            self._add_constants(made)
        if decoded.skipped:
            reason = "datagrams that are no process events"
            before.append(Loss("skipped", decoded.skipped, reason, self._source.id))
        if made.cuts:
            reason = f"values over {limits.VALUE_BYTES} bytes are cut, their length in NAME__size"
            before.append(Loss("cut", made.cuts, reason, self._source.id))
        before += self._procfs.losses(self._source.id)
        return Batch(made.count, made.columns, tuple(before))

    def _tail(self) -> Iterator[Batch]:
        """Account for what was lost behind the last event of a processor."""
        dropped = netlink.dropped(self._socket)
        source = self._source.id
        if dropped is None and self.overruns:
            loss = Loss("lost", None, f"{cn_proc.REASON}; the kernel does not say how many", source)
            yield Batch(0, {}, (loss,))
        elif dropped is not None and dropped > self._gaps.lost:
            count = dropped - self._gaps.lost
            loss = Loss("lost", count, f"{cn_proc.REASON} before the end", source)
            yield Batch(0, {}, (loss,))

    def _add_constants(self, made: Columns) -> None:
        """The columns that have one value in the whole recording, and the event's position."""
        source, count = self._source, made.count
        texts = {"origin": source.origin, "source": source.id, "host": source.host, "kind": "event"}
        for name, value in texts.items():
            if value is not None:
                made.columns[name] = constant(TypeClass.STR, value, count)
        made.put_numbers("ord", np.arange(self._ord, self._ord + count))
        self._ord += count

    def _add_images(self, made: Columns, decoded: Decoded, images: dict[int, Image]) -> None:
        """The columns that /proc fills: of executed images, and of processes never seen before."""
        what, data = decoded.messages["what"], decoded.messages["data"]
        row_of = {at: row for row, at in enumerate(decoded.kept.tolist()) if at in images}
        found = {row: images[at] for at, row in row_of.items()}
        first = data[:, 0] == data[:, 1]
        forking = (what == cn_proc.FORK) & (data[:, 2] == data[:, 3])
        forked = set(data[forking, 3].tolist())
        executed = set(made.pids[what == cn_proc.EXEC].tolist())
        exited = made.pids[(what == cn_proc.EXIT) & first].tolist()
        new = {row for row, image in found.items() if image.pid not in self._known | forked}
        # What /proc says now is not what a process was before it executed in this batch.
        asking = np.flatnonzero(forking | (np.isin(what, _DESCRIBED) & first))
        pids, at = np.unique(made.pids[asking], return_index=True)
        rows_of = dict(zip(pids.tolist(), asking[at].tolist(), strict=True))
        for pid in sorted(rows_of.keys() - self._known - forked - executed):
            row = rows_of[pid]
            monotonic_ns = int(decoded.messages["timestamp_ns"][row])
            by_ns = monotonic_ns + self._clocks.boottime_ns
            if image := self._procfs.image(pid, started_by_ns=by_ns):
                found[row] = image
                new.add(row)
        self._known.update(forked, executed, rows_of)
        self._known.difference_update(exited)
        if len(self._known) > KNOWN_MAX:  # ends that were lost: each one is looked up once more
            self._evicted += len(self._known)
            self._known.clear()
        argv = sorted(row for row in row_of.values() if found[row].argv is not None)
        made.put_values(argument("argv"), _rows(argv), [found[row].argv for row in argv])
        values = _image_values(found, new)
        self._add_ids(made, decoded, values)
        for name, by_row in values.items():
            rows = sorted(by_row)
            if name in _NUMBERS:
                made.put_numbers(name, np.array([by_row[r] for r in rows]), _rows(rows))
            else:
                made.put_values(name, _rows(rows), [by_row[r] for r in rows])

    def _add_ids(self, made: Columns, decoded: Decoded, values: _Values) -> None:
        """The new user or group of a process, in the row that changed it."""
        data, what = decoded.messages["data"], decoded.messages["what"]
        for kind, name in ((cn_proc.UID, "uid"), (cn_proc.GID, "gid")):
            for row in np.flatnonzero((what == kind) & (data[:, 0] == data[:, 1])).tolist():
                new = int(data[row, 2])
                tags = pairs(values["provenance"].get(row)) | {name: ""}
                values[name][row] = new
                if name == "uid":
                    user = self._procfs.user(new)
                    values["user"][row] = user
                    tags |= {"user": PASSWD if user is not None else ""}
                values["provenance"][row] = _tag_text(tags)


_Values = dict[str, dict[int, Any]]
"""Values by column and row."""


def _image_values(found: dict[int, Image], new: set[int]) -> _Values:
    """What images say, and the provenance of it.

    The start time stands only in rows of processes that are ``new``: of the others, the time of
    the fork is known better than /proc has it.
    """
    values: _Values = {name: {} for name in (*_IMAGE_COLUMNS, "process_start_ns", "provenance")}
    for row, image in found.items():
        told = {name: getattr(image, field) for name, field in _IMAGE_COLUMNS.items()}
        if row in new:
            told["process_start_ns"] = image.start_ns
        tags = {}
        for name, value in told.items():
            if value is not None:
                values[name][row] = value
            field = _IMAGE_COLUMNS.get(name, "start_ns")
            tag = provenance(image, field, known=value is not None)
            if tag is not None:
                tags[name] = tag
        values["provenance"][row] = _tag_text(tags)
    return values


def _tag_text(tags: dict[str, str]) -> str | None:
    return ",".join(f"{name}:{tag}" for name, tag in sorted(tags.items()) if tag) or None


def _rows(rows: list[int]) -> Rows:
    return np.array(rows, np.int32)
