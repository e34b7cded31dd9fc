"""Records of tracepoints to columns, many at a time.

What the kernel program tells of an event (`kcap.readers.live.bpf`) has the same names here, so that
filters, views and derived events need not know which of the two a recording is from. What only the
program sees is null: nothing is made up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap import limits
from kcap.model import catalogue, distinct
from kcap.model.batch import Column
from kcap.model.classes import TypeClass
from kcap.model.side import Loss
from kcap.readers.live.bpf.columns import Columns
from kcap.readers.live.host import Clocks
from kcap.readers.live.procfs import Image
from kcap.readers.live.trace import points as known
from kcap.readers.live.trace.calls import Calls, Returned
from kcap.readers.live.trace.formats import FLAGS, TID, TYPE, Format
from kcap.readers.live.trace.lives import FOLLOWED, Lives, Task
from kcap.readers.live.trace.points import Points, Role
from kcap.readers.live.trace.rows import FAMILY, Rows
from kcap.readers.live.trace.samples import Int64s, Samples

_IN_INTERRUPT: Final = 0x08 | 0x10
"""Common flags: an interrupt, or what is done soon after one, whoever runs."""

_HARMLESS: Final = frozenset({17, 18, 19, 20, 21, 22, 23, 28})
"""Signals that by default end nothing: of children, of jobs, of windows, urgent data."""

_EXECVE: Final = ("execve", "execveat")
_ERRORS: Final = 4095
_SUCCESS: Final = "SUCCESS"
_STATUS_SHIFT: Final = 8


class Decoder:
    """Makes batches' columns of records.

    Args:
        points: The tracepoints that they are of.
        lives: Follows tasks.
        clocks: The clocks when the records were made; may be replaced between batches.
        source: Id of the source, for losses.
    """

    def __init__(self, points: Points, lives: Lives, clocks: Clocks, source: str) -> None:
        self.clocks = clocks
        self.own: Collection[int] = ()
        """Processes whose calls are left out."""
        self._points = points
        self._lives = lives
        self._source = source
        self._calls = Calls(points)
        numbers = {event.name: number for number, event in known.known().items()}
        self._failing = np.array([numbers[name] for name in _EXECVE])

    @staticmethod
    def numbers(values: Int64s) -> Column:
        """A column of integers that all rows have.

        Args:
            values: One a row.

        Returns:
            The column.
        """
        return Column(TypeClass.I64, pa.array(values))

    def batch(
        self, samples: Samples, images: Mapping[tuple[int, int], Image]
    ) -> tuple[int, dict[str, Column], list[Loss]]:
        """Make the columns of some records, in order of their time.

        Args:
            samples: The records.
            images: What /proc said, by thread and time of what it was read upon.

        Returns:
            How many events there are; all their columns but those that are the same in the whole
            recording and their position in it; and what was damaged.
        """
        damaged = len(samples.starts)
        kind = samples.field(self._points.common, TYPE).astype(np.int64)
        role = self._points.roles[kind]
        good = (role != Role.NONE) & (samples.sizes >= self._points.sizes[kind])
        if not good.all():
            samples, kind, role = samples.take(good), kind[good], role[good]
        damaged -= len(samples.starts)
        tids = samples.field(self._points.common, TID).astype(np.int64)
        pids = self._followed(samples, kind, role, tids)
        returned = self._calls.match(samples, kind, role, tids)
        self._calls.forget(tids[role == Role.EXIT])
        rows, call = self._events(samples, kind, role, pids, returned)
        made = Columns(len(rows))
        event = self._points.events[kind[rows]].astype(np.int64)
        tasks = (tids[rows], pids[rows])
        told = Rows(made, samples, rows, event, role[rows], tasks, self._lives, self._points)
        if len(rows):
            self._envelope(made, samples, rows, role, tids, pids, event)
            self._results(made, event, returned, call)
            told.build(images, returned, call)
        columns = made.finish()
        losses = []
        if damaged:
            reason = "records of tracepoints that are none"
            losses.append(Loss("damaged", damaged, reason, self._source))
        if made.cuts:
            reason = f"values over {limits.VALUE_BYTES} bytes, their length in NAME__size"
            losses.append(Loss("cut", made.cuts, reason, self._source))
        return len(rows), columns, losses

    def _followed(
        self, samples: Samples, kind: Int64s, role: npt.NDArray[np.int8], tids: Int64s
    ) -> Int64s:
        """The processes of all records; what they say of tasks is followed."""
        rows = np.flatnonzero(np.isin(role, FOLLOWED))
        value, flags = np.zeros((2, len(rows)), np.int64)
        before, after = np.full((2, len(rows)), b"", object)
        roles = role[rows]
        for wanted in FOLLOWED:
            for found in self._points.formats(wanted):
                mine = np.flatnonzero((roles == wanted) & (kind[rows] == found.number))
                if not len(mine):
                    continue
                at = rows[mine]
                value[mine], flags[mine] = _values(samples, wanted, found, at)
                if wanted is Role.RENAME:
                    for into, name in ((before, "oldcomm"), (after, "newcomm")):
                        into[mine] = names_of(samples.field(found.layout, name, at))
        usable = (value > 0) | ~np.isin(roles, (Role.SIGNAL, Role.SENT))
        rows, roles, value, flags = rows[usable], roles[usable], value[usable], flags[usable]
        columns = (
            rows,
            roles,
            tids[rows],
            samples.pids[rows],
            samples.times_ns[rows],
            value,
            flags,
        )
        names = zip(before[usable].tolist(), after[usable].tolist(), strict=True)
        every = zip(*(column.tolist() for column in columns), names, strict=True)
        then = self._lives.follow([Task(*fields) for fields in every])
        pids = samples.pids.copy()
        pids[rows] = then
        unknown = np.flatnonzero(samples.pids < 0)
        unknown = unknown[~np.isin(unknown, rows)]
        # A thread that lived in this batch has its records of that time between those of its life.
        pids[unknown] = self._between(tids, unknown, rows, then)
        return pids

    def _between(self, tids: Int64s, unknown: Int64s, rows: Int64s, then: Int64s) -> Int64s:
        """The processes of other records of a thread: what its last record about a task said."""
        found = np.full(len(unknown), -1, np.int64)
        if not len(unknown):
            return found
        if len(rows):
            width = int(max(rows[-1], unknown[-1])) + 2
            order = np.argsort(tids[rows] * width + rows, kind="stable")
            keys = (tids[rows] * width + rows)[order]
            at = np.searchsorted(keys, tids[unknown] * width + unknown) - 1
            same = (at >= 0) & (tids[rows][order][at] == tids[unknown])
            # Nothing before it, but something behind: the thread had that process then, too.
            later = np.minimum(at + 1, len(keys) - 1)
            behind = ~same & (tids[rows][order][later] == tids[unknown])
            found[same] = then[order][at[same]]
            found[behind] = then[order][later[behind]]
        left = found < 0
        found[left] = self._lives.groups(tids[unknown[left]])
        return found

    def _events(
        self,
        samples: Samples,
        kind: Int64s,
        role: npt.NDArray[np.int8],
        pids: Int64s,
        returned: Returned,
    ) -> tuple[Int64s, Int64s]:
        """The records that are events, and for each which of the calls it is, below zero for none.

        Calls that succeeded to execute are told as executions; a call that was to be left out has
        an end without a beginning.
        """
        event = self._points.events[kind]
        keep = (event > 0) & (role != Role.ENTER) & (role != Role.NEWTASK)
        call = np.full(len(kind), -1, np.int64)
        call[returned.rows] = np.arange(len(returned.rows))
        ended = np.flatnonzero(role == Role.LEAVE)
        left_out = self._points.filtered[event[ended]] & ~returned.matched
        executed = np.isin(event[ended], self._failing) & (returned.result >= 0)
        mine = np.isin(pids[ended], list(self.own)) if self.own else np.zeros(len(ended), np.bool_)
        keep[ended[left_out | executed | mine]] = False
        rows = np.flatnonzero(keep)
        return rows, call[rows]

    def _envelope(
        self,
        made: Columns,
        samples: Samples,
        rows: Int64s,
        role: npt.NDArray[np.int8],
        tids: Int64s,
        pids: Int64s,
        event: Int64s,
    ) -> None:
        """The columns of who, when and where."""
        offset_ns = self.clocks.realtime_ns - self.clocks.boottime_ns
        made.numbers("ts", samples.times_ns[rows] + offset_ns)
        made.numbers("cpu", samples.cpus[rows])
        flags = samples.field(self._points.common, FLAGS, rows).astype(np.int64)
        whose = (flags & _IN_INTERRUPT == 0) | (role[rows] != Role.STATE)
        tid = np.where(role[rows] == Role.EXEC, pids[rows], tids[rows])
        # The idle task of each processor is nobody.
        made.some("tid", tid, whose & (tid > 0))
        made.some("pid", pids[rows], whose & (pids[rows] > 0))
        numbers, codes = distinct.integers(event)
        names = [known.known()[number].name for number in numbers]
        infos = [catalogue.events(FAMILY).get(name) for name in names]
        made.words("event", names, codes)
        made.words("action", [info and info.action for info in infos], codes)
        made.words("category", [info and info.category for info in infos], codes)

    def _results(self, made: Columns, event: Int64s, returned: Returned, call: Int64s) -> None:
        """How calls ended."""
        of_call = call >= 0
        if not of_call.any():
            return
        values = np.zeros(len(call), np.int64)
        values[of_call] = returned.result[call[of_call]]
        made.some("retval", values, of_call)
        made.some("is_compat", np.zeros(len(call), np.bool_), of_call)
        failed = (values < 0) & (values >= -_ERRORS)
        outcome = np.where(of_call, np.where(failed, -values, 0), -1)
        numbers, codes = distinct.integers(outcome)
        texts = {0: _SUCCESS, **catalogue.decoder("errno")}
        made.words("status", [None if n < 0 else texts.get(n, str(-n)) for n in numbers], codes)
        numbers, codes = distinct.integers(np.where(of_call, event, 0))
        made.words("syscall", [known.known()[n].name if n else None for n in numbers], codes)


def _values(
    samples: Samples, role: Role, found: Format, rows: Int64s
) -> tuple[Int64s, Int64s | int]:
    """What a record about a task says, and its flags: see `Task`."""

    def of(name: str) -> Int64s:
        return samples.field(found.layout, name, rows).astype(np.int64)

    if role is Role.FORK:
        return of("child_pid"), 0
    if role is Role.NEWTASK:
        return of("pid"), of("clone_flags")
    if role is Role.EXEC:
        return of("pid"), 0
    if role is Role.QUIT:
        only_thread = int(found.name.endswith("exit"))
        return (of("error_code") & 0xFF) << _STATUS_SHIFT, only_thread
    if role in (Role.SIGNAL, Role.SENT):
        signal = of("sig")
        harmless = np.isin(signal, list(_HARMLESS))
        return np.where(harmless, 0, signal), of("pid") if role is Role.SENT else 0
    return np.zeros(len(rows), np.int64), 0


def names_of(fixed: npt.NDArray[np.generic]) -> list[bytes]:
    """Names out of arrays of bytes that a NUL ends.

    Args:
        fixed: One array each, of the same length.

    Returns:
        The names; one object for equal ones.
    """
    whole = np.ascontiguousarray(fixed)
    array = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(whole.shape[1]), len(whole), [None, pa.py_buffer(whole)]
    ).dictionary_encode()
    texts = [name.split(b"\0", 1)[0] for name in array.dictionary.to_pylist()]
    return [texts[code] for code in np.asarray(array.indices).tolist()]
