"""The live source that needs no BPF and yet has the arguments of programs: the audit system.

A copy of all audit records comes, whoever else reads them. What is recorded beyond the host's own
rules is by rules that are added at the start and taken away at the end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kcap.errors import KcapError
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Side
from kcap.model.stream import StreamInfo
from kcap.readers.audit_batches import Batches
from kcap.readers.audit_groups import Groups
from kcap.readers.audit_records import BadRecordError, parse, type_name
from kcap.readers.live import host, netlink
from kcap.readers.live.audit import link, rules
from kcap.readers.live.audit.link import Control
from kcap.readers.live.audit.serials import Serials
from kcap.readers.live.audit.settings import Settings
from kcap.readers.live.baseline import Baseline, take
from kcap.readers.live.beats import Beats
from kcap.readers.live.procfs import ProcFS
from kcap.state.state import FDS, THREADS

BATCH_ROWS: Final = 8192
"""Events of a batch at most."""

RECEIVE_BYTES: Final = 64 << 20
"""Receive buffer; the kernel counts some 1 KiB a record, and an execution has eight."""

STATUS: Final = "status"
"""What `AuditRecorder.serve` is asked: how many records the kernel has lost, and the like."""

MARK: Final = "mark"
"""What it is asked where records found no room: one more, behind those that are missing."""

_DRAIN_S: Final = 30.0
"""How long, at the end, is waited for records that the kernel has not sent yet, at most."""

_QUIET_S: Final = 0.1
_CMDLINE: Final = Path("/proc/cmdline")


class AuditRecorder:
    """Records this host by its audit system; a `kcap.model.stream.LiveSource`.

    Args:
        interval_s: Longest time that events wait for their batch.
        events: Names of the events to record, files that are opened for reading among them; None
            for those of the default set, and files only where they may be written.
        details: What else is to be known of the recording: filter, case, operator, note.
        receive_bytes: Receive buffer.

    Raises:
        PrivilegeError: This user may not read audit records, or not add rules.
        KcapError: Not Linux, or a kernel without an audit system.
    """

    name = "kcap-audit"
    reads = "executions, files, sockets and security events of this host by its audit system (root)"
    rights = ("CAP_AUDIT_CONTROL", "CAP_AUDIT_READ")

    def __init__(
        self,
        *,
        interval_s: float = 0.25,
        events: Collection[str] | None = None,
        details: Mapping[str, Any] | None = None,
        receive_bytes: int = RECEIVE_BYTES,
    ) -> None:
        self._interval_s = interval_s
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._proc = ProcFS.probed()
            stack.callback(self._proc.close)
            self._control = Control()
            stack.callback(self._control.close)
            self._socket = link.listen(receive_bytes)
            stack.callback(self._socket.close)
            self._stop_read, self._stop_write = socket.socketpair()
            self._stop_write.setblocking(False)
            stack.callback(self._stop_read.close)
            stack.callback(self._stop_write.close)
            self._settings = Settings(self._control)
            stack.callback(self._settings.restore)
            told = rules.default() if events is None else rules.told() & {*events}
            self._settings.change(told, all_opens=events is not None)
            self._stack = stack.pop_all()
        self._pid = os.getpid()
        self._clocks = host.Clocks.measure()
        self._source = host.source(self.name, self._clocks)
        self._details = {**(details or {}), **self._described(told)}
        self._baseline: Baseline | None = None
        self._ask: Callable[[str, bytes], bytes] = self.serve
        self._groups = Groups()
        self._batches = Batches(self._source)
        self._batches.left_out.add(self._pid)
        self._batches.keys = self._settings.keys
        self._serials = Serials()
        self._dropped = 0
        self._told_lost = self._settings.before.lost
        self._kernel_lost = 0
        self._whole_lost = 0
        self._counts_all = bool(self._settings.before.pid) or not _from_the_start()
        self._had_drops = 0
        self._newest_ms = 0
        self._stopping = False

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
        """Take our rules away, put the settings back, close the sockets.

        Raises:
            KcapError: The kernel refuses that.
        """
        if os.getpid() == self._pid:  # in a process without rights, the sockets end with it
            self._stack.close()

    def part(self, ask: Callable[[str, bytes], bytes]) -> None:
        """See `kcap.model.stream.LiveSource`."""
        self._ask = ask

    def own(self, pids: Sequence[int]) -> None:
        """See `kcap.model.stream.LiveSource`."""
        self._batches.left_out.update(pids)

    def prepare(self) -> None:
        """Look at the host as it is; what happens meanwhile waits in the socket."""
        self._baseline = take(self._source, self._proc, recording=self._details)
        self._source = self._batches.source = self._baseline.source

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `kcap.model.stream.LiveSource`."""
        if name not in (MARK, STATUS) or argument:
            raise KcapError(f"the audit source has no answer to {name!r}")
        if name == MARK:
            self._settings.mark()
            return b""
        return json.dumps(self._settings.status()._asdict()).encode()

    def batches(self) -> Iterator[Batch]:
        """Record until `stop`.

        Yields:
            The state of the host, then the events: a batch an interval, also when nothing
            happened, or a full one earlier.
        """
        if self._baseline is None:
            self.prepare()
        assert self._baseline is not None
        # Threads and descriptors are not followed here: what is known of them would grow old.
        yield EMPTY.with_before(self._baseline.sides(without={THREADS, FDS}))
        beats = Beats(self._source.id)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while not self._stopping:
            self._collect(poll)
            yield self._batches.finish()
            beat = beats.due(self._batches.ord, self._counters)
            if beat:
                yield EMPTY.with_before((*self._clock_sides(), *self._losses(), *beat))
        yield from self._rest()
        losses = self._losses(last=True)
        beat = beats.due(self._batches.ord, self._counters, last=True)
        yield EMPTY.with_before((*losses, *beat))

    def _collect(self, poll: select.poll) -> None:
        """Take records until the interval is over, a batch is full, or the end is asked for."""
        deadline_s = time.monotonic() + self._interval_s
        while len(self._batches) < BATCH_ROWS:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self._stop_read.fileno() in dict(poll.poll(left_s * 1000)):
                break
            self._drain()
        for event in self._groups.older(_now_ms()):
            self._batches.add(event)

    def _rest(self) -> Iterator[Batch]:
        """What is on its way: the kernel sends records some time after it has made them."""
        until_ms = time.time_ns() // 1_000_000
        yield from self._drained(until_ms)
        if (netlink.dropped(self._socket) or 0) > self._dropped:
            self._ask(MARK, b"")
            yield from self._drained(until_ms)
        left = 0 if self._newest_ms > until_ms else json.loads(self._ask(STATUS, b""))["backlog"]
        if left:
            reason = "records that the kernel had not sent when the recording ended"
            yield EMPTY.with_before([Loss("lost", left, reason, self._source.id)])
        for event in self._groups.rest():
            if event.ms <= until_ms:  # what began later is not of this recording
                self._batches.add(event)
        yield self._batches.finish()

    def _drained(self, until_ms: int) -> Iterator[Batch]:
        """What was made before a time: the kernel sends it in order, but some time after."""
        limit_s = time.monotonic() + _DRAIN_S
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while time.monotonic() < limit_s:
            if self._newest_ms > until_ms and not self._groups.waits_for(until_ms):
                break
            if poll.poll(_QUIET_S * 1000):
                self._drain()
                if len(self._batches) >= BATCH_ROWS:
                    yield self._batches.finish()
            elif not json.loads(self._ask(STATUS, b""))["backlog"]:
                break

    def _drain(self) -> None:
        """Take what the socket holds, up to a full batch."""
        receive, now_ms = self._socket.recv, _now_ms()
        while len(self._batches) < BATCH_ROWS:
            try:
                datagram = receive(link.DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KcapError(f"reading audit records failed: {error}") from error
                continue  # the socket counts what it had no room for
            self._take(datagram, now_ms)

    def _take(self, datagram: bytes, now_ms: int) -> None:
        if len(datagram) < link.HEADER.size:
            self._batches.refuse("a datagram that is no netlink message")
            return
        kind = link.HEADER.unpack_from(datagram)[1]
        try:
            record = parse(type_name(kind), datagram[link.HEADER.size :])
        except BadRecordError as error:
            self._batches.refuse(str(error))
            return
        self._newest_ms = max(self._newest_ms, record.ms)
        self._serials.add(record.serial)
        for event in self._groups.add(record, now_ms):
            self._batches.add(event)

    def _clock_sides(self) -> list[Side]:
        clocks = host.Clocks.measure()
        if not clocks.drifted(self._clocks):
            return []
        self._clocks = clocks
        self._source = replace(self._source, clocks=(*self._source.clocks, clocks.pair()))
        self._batches.source = self._source
        return [self._source]

    def _losses(self, *, last: bool = False) -> list[Side]:
        """What was lost since the last time: in our socket, and before it in the kernel."""
        source = self._source.id
        found: list[Side] = []
        missing = self._serials.missing(last=last)
        headless, self._batches.headless = self._batches.headless, set()
        headless.discard(self._serials.first or 0)  # its first records came before we listened
        dropped = netlink.dropped(self._socket) or 0
        records, self._dropped = dropped - self._dropped, dropped
        if records and not last:
            self._ask(MARK, b"")
        whole = len(headless) + (missing if self._recent_drops(records) else 0)
        if records or whole:
            self._whole_lost += whole
            reason = (
                f"the receive buffer was full: {dropped:,} audit records so far, of others parts"
            )
            found.append(Loss("lost", whole, reason, source))
        told = json.loads(self._ask(STATUS, b""))["lost"]
        # Whoever resets the counter makes it begin anew.
        lost, self._told_lost = told - self._told_lost if told >= self._told_lost else told, told
        if lost and self._counts_all:
            self._kernel_lost += lost
            reason = "records that found no room in the kernel's audit queue"
            found.append(Loss("lost", lost, reason, source))
        return found

    def _recent_drops(self, records: int) -> bool:
        """Whether numbers may be missing because of what the socket had no room for.

        A number is given up only at the second look behind it.
        """
        recent = records > 0 or self._had_drops > 0
        self._had_drops = 2 if records else max(0, self._had_drops - 1)
        return recent

    def _counters(self) -> dict[str, Any]:
        """What a heartbeat says beside that we live."""
        return {
            "dropped_records": self._dropped,
            "lost": self._whole_lost,
            "lost_records": self._kernel_lost,
            "open": len(self._groups),
        }

    def _described(self, told: Collection[str]) -> dict[str, Any]:
        """What an analyst must know of such a recording."""
        before, settings = self._settings.before, self._settings
        return {
            "audit": {
                "auditd": before.pid,
                "backlog_limit": before.backlog_limit,
                "enabled": before.enabled,
                "foreign_rules": len(settings.foreign),
                "rules": settings.added,
            },
            "cannot_see": cannot_see(settings),
            "events": sorted(told) if settings.added else [],
        }


_CANNOT: Final = (
    "forks and ends of processes",
    "which thread it was, and in which namespaces, control group or container",
    "the environment of programs",
    "the time within a tick of the kernel, some milliseconds; that of a call is when it began",
    "the arguments of programs that could not be executed",
    "the fifth and later arguments of a call, and addresses of a socket's own end",
    "paths that begin at a descriptor: path_arg has what the process said",
    "code that is made writable and executable one after the other",
    "what a program does through io_uring, or as an x32 program",
)


def cannot_see(settings: Settings) -> list[str]:
    """What such a recording does not tell.

    Args:
        settings: What was found and changed.

    Returns:
        A part of a sentence each.
    """
    found = list(_CANNOT)
    if not settings.before.enabled:
        found.append(
            "system calls of processes that began before audit was first on: theirs are told only"
            " of what they start"
        )
    if settings.refused:
        found.append(f"more than the host's own rules record: {settings.refused}")
    hidden = {rules.hides(rule) for rule in settings.foreign} - {None}
    found += sorted(sentence for sentence in hidden if sentence)
    if settings.before.rate_limit:
        found.append(f"more than {settings.before.rate_limit} records a second (rate_limit)")
    if not settings.before.pid and _from_the_start():
        found.append(
            "how much the kernel lost: without auditd it counts what only the daemon would take"
        )
    return found


def _from_the_start() -> bool:
    """Whether the kernel was told to audit from its start, and keeps records for a daemon."""
    try:
        words = _CMDLINE.read_text("utf-8", "replace").split()
    except OSError:
        return False
    return bool({"audit=1", "audit=on"} & set(words))


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
