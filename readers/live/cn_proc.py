"""Datagrams of the kernel's process events connector, decoded many at a time.

A datagram is one netlink message: ``nlmsghdr``, ``cn_msg`` and ``proc_event`` as
``<linux/netlink.h>``, ``<linux/connector.h>`` and ``<linux/cn_proc.h>`` have them, in the
byte order of the machine. The kernel calls a thread's id ``pid`` and a process's ``tgid``;
here they are ``tid`` and ``pid``, as in user space.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model import catalogue
from kcap.model.batch import Column, Rows, dictionary
from kcap.model.builder import Field, columns_of
from kcap.model.classes import TypeClass
from kcap.model.naming import argument, column_name
from kcap.model.side import Loss
from kcap.readers.live.host import Clocks

MESSAGE: Final = np.dtype(
    [
        # struct nlmsghdr
        ("nlmsg_len", "u4"),
        ("nlmsg_type", "u2"),
        ("nlmsg_flags", "u2"),
        ("nlmsg_seq", "u4"),
        ("nlmsg_pid", "u4"),
        # struct cn_msg
        ("idx", "u4"),
        ("val", "u4"),
        ("seq", "u4"),
        ("ack", "u4"),
        ("len", "u2"),
        ("flags", "u2"),
        # struct proc_event
        ("what", "u4"),
        ("cpu", "u4"),
        ("timestamp_ns", "u8"),
        ("data", "u4", (6,)),
    ]
)
"""A datagram with one event; a kernel of the future may append to it."""

EVENT_BYTES: Final = 40
"""Size of ``struct proc_event``."""

CN_IDX_PROC: Final = 1
CN_VAL_PROC: Final = 1
NLMSG_DONE: Final = 3

NONE: Final = 0x00000000
FORK: Final = 0x00000001
EXEC: Final = 0x00000002
UID: Final = 0x00000004
GID: Final = 0x00000040
SID: Final = 0x00000080
PTRACE: Final = 0x00000100
COMM: Final = 0x00000200
COREDUMP: Final = 0x40000000
EXIT: Final = 0x80000000

EVENTS: Final = {
    FORK: "fork",
    EXEC: "exec",
    UID: "uid",
    GID: "gid",
    SID: "sid",
    PTRACE: "ptrace",
    COMM: "comm",
    COREDUMP: "coredump",
    EXIT: "exit",
}
"""The events and the names that the kernel has for them."""

FAMILY: Final = "proc"
"""The events' family in the catalogue."""

NO_CPU: Final = 0xFFFFFFFF
"""The processor of an acknowledgement of an old kernel."""

WHAT: Final = slice(36, 40)
"""Where a datagram says what happened."""

WHAT_EXEC: Final = EXEC.to_bytes(4, sys.byteorder)

REASON: Final = "the receive buffer was full"
"""Why events are lost."""

_COMM_BYTES: Final = 16

_THREADS: Final = {"fork": ("thread_start", "thread"), "exit": ("thread_stop", "thread")}
"""Action and category of events that concern a thread which is not its process's first."""

# Argument: the 32-bit words of the event data that hold it, by event.
_WORDS: Final[dict[str, dict[int, int]]] = {
    "parent_tid": {FORK: 0, EXIT: 4, COREDUMP: 2},
    "parent_pid": {FORK: 1, EXIT: 5, COREDUMP: 3},
    "child_tid": {FORK: 2},
    "child_pid": {FORK: 3},
    "tracer_tid": {PTRACE: 2},
    "tracer_pid": {PTRACE: 3},
    "ruid": {UID: 2},
    "euid": {UID: 3},
    "rgid": {GID: 2},
    "egid": {GID: 3},
    "wait_status": {EXIT: 2},
    "exit_signal": {EXIT: 3},
}
_SIGNED: Final = frozenset({"exit_signal"})
"""Signed words; a user id of 4294967295 is no -1."""


class Decoded(NamedTuple):
    """Events out of datagrams."""

    messages: npt.NDArray[np.void]
    """The good ones, of dtype `MESSAGE`."""
    numbered: npt.NDArray[np.void]
    """Those and acknowledgements, as far as they count in a processor's numbers."""
    kept: Rows
    """Which of the datagrams they are."""
    tails: dict[int, bytes]
    """Bytes behind a known event's end, by message: what a newer kernel says beyond."""
    skipped: int
    """Datagrams that are no event."""


def decode(datagrams: Sequence[bytes]) -> Decoded:
    """Read datagrams.

    Args:
        datagrams: Datagrams as they were received.

    Returns:
        The events in them. Acknowledgements are neither events nor skipped; what is cut short or
        not of this protocol is skipped and counted.
    """
    size = MESSAGE.itemsize
    lengths = np.fromiter(map(len, datagrams), np.int64, len(datagrams))
    whole = np.flatnonzero(lengths >= size).astype(np.int32)
    if len(whole) == len(datagrams) and (lengths == size).all():
        joined = b"".join(datagrams)
    else:
        joined = b"".join([datagrams[i][:size] for i in whole.tolist()])
    messages = np.frombuffer(joined, MESSAGE)
    good = (
        (messages["nlmsg_len"] <= lengths[whole])
        & (messages["nlmsg_len"] >= size)
        & (messages["nlmsg_type"] == NLMSG_DONE)
        & (messages["idx"] == CN_IDX_PROC)
        & (messages["val"] == CN_VAL_PROC)
        & (messages["len"] >= EVENT_BYTES)
        & (messages["len"].astype(np.int64) + size - EVENT_BYTES <= lengths[whole])
    )
    skipped = len(datagrams) - int(np.count_nonzero(good))
    # Since Linux 6 an acknowledgement takes a number of the processor; before, it names none.
    numbered = messages[good & (messages["cpu"] != NO_CPU)]
    good &= messages["what"] != NONE
    kept = whole[good]
    longer = np.flatnonzero(lengths[kept] > size).tolist()
    tails = {i: datagrams[kept[i]][size:] for i in longer}
    return Decoded(messages[good], numbered, kept, tails, skipped)


def acknowledgement(datagram: bytes, token: int) -> int | None:
    """Look for the answer to a subscription.

    Args:
        datagram: A datagram.
        token: The number that the subscription had. Old kernels give it back; newer ones give
            no hint whom they answer, and the first answer counts.

    Returns:
        The kernel's error number, 0 for success; None where this is no answer to it.
    """
    if len(datagram) < MESSAGE.itemsize:
        return None
    message = np.frombuffer(datagram, MESSAGE, 1)[0]
    if message["what"] != NONE or message["idx"] != CN_IDX_PROC:
        return None
    mine = message["cpu"] != NO_CPU or message["seq"] == token
    return int(message["data"][0]) if mine else None


class Columns:
    """The columns of decoded events.

    Args:
        decoded: The events.
        clocks: What to add to the kernel's times.
    """

    def __init__(self, decoded: Decoded, clocks: Clocks) -> None:
        self._messages = decoded.messages
        self._tails = decoded.tails
        self._clocks = clocks
        self._words = decoded.messages["data"].astype(np.int64)
        self._what = decoded.messages["what"]
        self._thread = (self._what == FORK) & (self._words[:, 2] != self._words[:, 3])
        self.pids = np.where(self._thread, self._words[:, 3], self._words[:, 1])
        """Process id of each event, if it is one of `EVENTS`."""
        self.count = len(decoded.messages)
        self.cuts = 0
        """Values that were cut because of their length."""
        self.columns: dict[str, Column] = {}

    def build(self) -> None:
        """Make all columns that the datagrams alone can fill."""
        messages = self._messages
        # The kernel stamps events with ktime_get_ns, which is CLOCK_MONOTONIC, although its
        # header says "since system boot". When an event is received plays no part.
        times_ns = messages["timestamp_ns"].astype(np.int64) + self._clocks.realtime_ns
        self.put_numbers("ts", times_ns)
        self.put_numbers("seq", messages["seq"])
        self.put_numbers("cpu", messages["cpu"])
        self._names()
        self._ids()
        for name, words in _WORDS.items():
            rows = self._rows(*words)
            word = np.zeros(self.count, np.int64)
            for what, at in words.items():
                word[self._what == what] = at
            values = self._words[rows, word[rows]]
            self._argument(name, values.astype(np.int32) if name in _SIGNED else values, rows)
        self._exits()
        self._comms()
        self._unknown()

    def _rows(self, *what: int) -> Rows:
        return np.flatnonzero(np.isin(self._what, what)).astype(np.int32)

    def _names(self) -> None:
        """Event, action and category; what happened to a thread alone has its own action."""
        known = catalogue.events(FAMILY)
        kinds, codes = np.unique(self._what, return_inverse=True)
        first = self._words[:, 0] == self._words[:, 1]
        of_thread = self._thread | ((self._what == EXIT) & ~first)
        texts: list[tuple[str, str | None, str | None]] = []
        for kind in kinds.tolist():
            name = EVENTS.get(kind, f"what_0x{kind:08x}")
            info = known.get(name)
            action, category = (info.action, info.category) if info else (None, None)
            texts += [(name, action, category), (name, *_THREADS.get(name, (None, None)))]
        which = codes * 2 + of_thread
        for column, at in (("event", 0), ("action", 1), ("category", 2)):
            entries = [text[at] for text in texts]
            self._texts(column, entries, which)

    def _texts(self, name: str, entries: Sequence[str | None], which: npt.NDArray[np.intp]) -> None:
        has = np.array([entry is not None for entry in entries] or [False])[which]
        rows = np.flatnonzero(has).astype(np.int32)
        if len(rows):
            plain = pa.array([entry or "" for entry in entries]).take(pa.array(which[rows]))
            self._column(name, TypeClass.STR, dictionary(plain), rows)

    def _ids(self) -> None:
        """The process and thread that an event is about: for a fork, who forked.

        The kernel names the parent of the process as the parent of its new threads, so that the
        thread which started another one is not known. (The same is true of a fork with
        CLONE_PARENT: it looks as if the parent had forked.)
        """
        words, known, thread = self._words, np.isin(self._what, list(EVENTS)), self._thread
        rows = np.flatnonzero(known).astype(np.int32)
        self.put_numbers("pid", self.pids[rows], rows)
        rows = np.flatnonzero(known & ~thread).astype(np.int32)
        self.put_numbers("tid", words[rows, 0], rows)
        parent = np.where(self._what == EXIT, words[:, 5], words[:, 3])
        parent = np.where(thread, words[:, 1], parent)
        # Of a task that is gone already, as threads are when they end, the kernel says 0.
        with_parent = (thread | np.isin(self._what, (EXIT, COREDUMP))) & (parent > 0)
        rows = np.flatnonzero(with_parent).astype(np.int32)
        self.put_numbers("ppid", parent[rows], rows)

    def _exits(self) -> None:
        """The two parts of a wait status; bit 7 of it says that a core was dumped."""
        rows = self._rows(EXIT)
        status = self._words[rows, 2]
        self._argument("exit_code", status >> 8 & 0xFF, rows)
        self._argument("signal_code", status & 0x7F, rows)
        rows = self._rows(FORK)
        monotonic = self._messages["timestamp_ns"][rows].astype(np.int64)
        self._argument("start_time", monotonic + self._clocks.boottime_ns, rows)

    def _comms(self) -> None:
        rows = self._rows(COMM)
        raw = self._messages["data"][rows, 2:].tobytes()
        names = [raw[i : i + _COMM_BYTES].partition(b"\0")[0] for i in range(0, len(raw), 16)]
        self.put_values(argument("comm"), rows, names)

    def _unknown(self) -> None:
        """The data of events of another kind, and what stands behind those of a known kind."""
        unknown = ~np.isin(self._what, list(EVENTS))
        rows = np.flatnonzero(unknown).astype(np.int32)
        data = {i: self._messages["data"][i].tobytes() for i in rows.tolist()}
        for row, tail in self._tails.items():
            data[row] = data.get(row, b"") + tail
        at = np.array(sorted(data), np.int32)
        self.put_values(argument("event_data"), at, [data[i] for i in at.tolist()])

    def put_numbers(
        self, name: str, values: npt.NDArray[np.generic], rows: Rows | None = None
    ) -> None:
        """Add values to an integer column; those that it has already stay.

        Args:
            name: The column.
            values: One value a row.
            rows: Ascending rows; None for all.
        """
        values = values.astype(np.int64)
        old = self.columns.get(name)
        if old is not None and rows is not None and old.rows is not None:
            fresh = ~np.isin(rows, old.rows)
            rows = np.concatenate([old.rows, rows[fresh]])
            values = np.concatenate([np.asarray(old.values), values[fresh]])
            order = np.argsort(rows)
            rows, values = rows[order], values[order]
        elif old is not None:
            return
        if len(values):
            self._column(name, TypeClass.I64, pa.array(values), rows)

    def _argument(self, name: str, values: npt.NDArray[np.generic], rows: Rows) -> None:
        base = argument(name)
        self.put_numbers(column_name(base, TypeClass.I64, catalogue.home(base)), values, rows)

    def _column(self, name: str, cls: TypeClass, values: pa.Array, rows: Rows | None) -> None:
        full = rows is None or len(rows) == self.count
        self.columns[name] = Column(cls, values, None if full else rows)

    def put_values(self, base: str, rows: Rows, values: Sequence[object]) -> None:
        """Add a field out of Python values.

        Args:
            base: Its column base.
            rows: Ascending rows.
            values: One value a row; None is no value.
        """
        if len(rows):
            made, cuts = columns_of(Field(base, catalogue.home(base)), rows, values, self.count)
            self.columns |= made
            self.cuts += cuts


class Gaps:
    """Finds lost events: every processor counts its own, in 32 bits."""

    def __init__(self) -> None:
        self.lost = 0
        """Events found missing so far."""
        self._last: dict[int, tuple[int, int]] = {}

    def look(self, messages: npt.NDArray[np.void], realtime_ns: int, source: str) -> list[Loss]:
        """Compare the numbers of events with those before.

        Args:
            messages: Messages of dtype `MESSAGE`, in the order they arrived.
            realtime_ns: What to add to their times.
            source: Id of the source, for the losses.

        Returns:
            One loss a gap, with the time of the events around it.
        """
        losses = []
        times_ns = messages["timestamp_ns"].astype(np.int64) + realtime_ns
        for cpu in np.unique(messages["cpu"]).tolist():
            at = np.flatnonzero(messages["cpu"] == cpu)
            seqs, times = messages["seq"][at], times_ns[at]
            if cpu in self._last:
                last, last_ns = self._last[cpu]
                seqs = np.concatenate([np.array([last], np.uint32), seqs])
                times = np.concatenate([np.array([last_ns], np.int64), times])
            # Signed steps, so that the counters may wrap and an event may come late; what is
            # missing counts from the furthest one so far.
            steps = np.diff(seqs).view(np.int32).astype(np.int64)
            place = np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])
            furthest = np.maximum.accumulate(place)
            missing = np.maximum(place[1:] - furthest[:-1] - 1, 0)
            for gap in np.flatnonzero(missing).tolist():
                count = int(missing[gap])
                self.lost += count
                start_ns, end_ns = int(times[gap]), int(times[gap + 1])
                losses.append(Loss("lost", count, REASON, source, None, cpu, start_ns, end_ns))
            head = int(furthest.argmax())
            self._last[cpu] = int(seqs[head]), int(times[head])
        return losses
