"""Records of the kernel program to columns, many at a time.

Who, when and where stands at the same place in every record, and is taken of all together. What
an event's arguments are says the table of events. Nothing here is done once a record, and what is
not a number is done once for each kind of records that are alike (`Records.kinds`): of 14,000 opens
of 17 files beside the doings of a busy host there are 80 to 320.

Measured so (Python 3.11, one core that others use): 0.8 µs of CPU an open with all its columns,
of which a fifth is the copy of its fields and a seventh finding its kind.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model import catalogue
from kcap.model.batch import Column
from kcap.model.classes import TypeClass
from kcap.model.distinct import integers
from kcap.model.side import Loss
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.arguments import Arguments
from kcap.readers.live.bpf.columns import Columns, Texts
from kcap.readers.live.bpf.records import Block, Int64s, Layouts, Mask, Records, layouts
from kcap.readers.live.bpf.sockets import Sockets
from kcap.readers.live.host import Clocks

__all__ = ["FAMILY", "Decoded", "Decoder", "layouts", "syscalls"]

FAMILY: Final = "kcap-bpf"
"""The collector of such events, and their family in the catalogue."""

STRING_BYTES: Final = 4095
"""Bytes that the kernel program takes of a string at most."""

_COMPAT, _FAULT, _CUT, _ELSEWHERE = 1, 2, 4, 8
_OUTSIDE: Final = 0xFFFFFFFF
"""Number of the call of an event that is outside of one."""

_STACK: Final = 8
"""Piece with the addresses of the call stack."""

_ADDRESS: Final = 8

_SUCCESS: Final = "SUCCESS"
_STATE: Final = "state"
"""Kind of the events that may come in the middle of anything: little is known of their process."""

_ALWAYS: Final = {"cpu": "cpu"}
_OWN: Final = {"pid": "pid", "tid": "tid"}
"""Columns of who did it, and the fields that they are."""

_OWN_IF_KNOWN: Final = {
    "cgroup_id": "cgroup_id",
    "process_start_ns": "start_ns",
}
"""The same of fields in which 0 stands for what the kernel program could not find."""

_WHOLE: Final = {
    "gid": "gid",
    "ns_ppid": "ns_ppid",
    "ppid": "ppid",
    "uid": "uid",
}
"""What events in the middle of anything do not have."""

_WHOLE_IF_KNOWN: Final = {
    "mount_ns": "mount_ns",
    "ns_pid": "ns_pid",
    "ns_tid": "ns_tid",
    "pid_ns": "pid_ns",
    "thread_start_ns": "thread_start_ns",
}


class Decoded(NamedTuple):
    """Events of one batch."""

    rows: int
    columns: dict[str, Column]
    before: tuple[Loss, ...]
    """What was damaged, cut or could not be read."""

    @staticmethod
    def numbers(values: Int64s) -> Column:
        """A column of integers that all rows have.

        Args:
            values: One a row.

        Returns:
            The column.
        """
        return Column(TypeClass.I64, pa.array(values))


class Decoder:
    """Makes columns of records; remembers accepted sockets from batch to batch.

    Args:
        layouts: How the kernel program's structures lie in memory.
        clocks: The clocks when the records were made; may be replaced between batches.
        source: Id of the source, for losses.
        variables: The variables of the environment to keep; None for all that there are.

    Example:
        >>> decoder = Decoder(layouts(object_types), Clocks.measure())
        >>> decoder.batch(ring.take()).columns["event"].values.to_pylist()
        ['openat', 'openat', 'sched_process_exec']
    """

    def __init__(
        self,
        layouts: Layouts,
        clocks: Clocks,
        *,
        source: str | None = None,
        variables: Collection[str] | None = None,
    ) -> None:
        self.clocks = clocks
        self._layouts = layouts
        self._source = source
        self._variables = None if variables is None else frozenset(variables)
        self._sockets = Sockets()

    @staticmethod
    def name_of(number: int) -> str:
        """The name of an event.

        Args:
            number: Its number.

        Returns:
            The name; the number as text for an unknown one.
        """
        known = events.by_number().get(number)
        return str(number) if known is None else known.name

    def batch(self, block: Block) -> Decoded:
        """Make the columns of some records, in the order of their time.

        Args:
            block: The records.

        Returns:
            The events; all columns but those that are the same in the whole recording, and their
            position in it.

        Raises:
            LimitError: The records are more than one batch can hold.
        """
        records = Records(self._layouts, block)
        kinds = records.kinds()
        columns = Columns(len(records), kinds.which, len(kinds.first))
        if len(records):
            few = records.some(kinds.first)
            _Envelope(records, few, columns, self.clocks).build()
            found = self._sockets.find(few, self._layouts.socket)
            Arguments(records, few, columns, found, self._variables).build()
        made = columns.finish()
        return Decoded(len(records), made, tuple(self._losses(records, columns.cuts)))

    def _losses(self, records: Records, cuts: int) -> list[Loss]:
        counts = [
            ("damaged", records.damaged, "records of the kernel program that are none"),
            ("cut", cuts, f"values over {limits.VALUE_BYTES} bytes, their length in NAME__size"),
        ]
        if len(records):
            flags = records["flags"]
            cut = int(np.count_nonzero(flags & _CUT))
            reason = (
                f"events with more than {STRING_BYTES} bytes of a string, or what is not measured"
            )
            counts.append(("cut", cut, reason))
            # What a call that failed points to may be anything.
            unread = int(np.count_nonzero((flags & _FAULT != 0) & (records["retval"] >= 0)))
            counts.append(("cut", unread, "memory of processes that could not be read"))
        return [Loss(kind, count, reason, self._source) for kind, count, reason in counts if count]


class _Envelope:
    """The columns of who, when and where."""

    def __init__(self, records: Records, few: Records, columns: Columns, clocks: Clocks) -> None:
        self._records = records
        self._few = few
        self._columns = columns
        self._clocks = clocks

    def build(self) -> None:
        """Make them."""
        records, columns = self._records, self._columns
        offset_ns = self._clocks.realtime_ns - self._clocks.boottime_ns
        columns.numbers("ts", records.ts_ns + offset_ns)
        flags = records["flags"]
        own = flags & _ELSEWHERE == 0
        whole = own & ~_of_state()[records.event]
        every = np.ones(len(records), np.bool_)
        for fields, rows, or_zero in (
            (_ALWAYS, every, True),
            (_OWN, own, True),
            (_OWN_IF_KNOWN, own, False),
            (_WHOLE, whole, True),
            (_WHOLE_IF_KNOWN, whole, False),
        ):
            for name, field in fields.items():
                values = records[field]
                columns.some(name, values, rows if or_zero else rows & (values != 0))
        self._session()
        columns.numbers("is_compat", flags & _COMPAT != 0)
        few_own = self._few["flags"] & _ELSEWHERE == 0
        self._process_name(few_own)
        self._events()
        self._syscall(few_own)
        self._result()
        self._stacks()

    def _session(self) -> None:
        number = events.events()[events.EXECUTION].number
        rows = np.flatnonzero(self._records.event == number)
        if len(rows):
            self._columns.numbers("session", self._records["number"][rows, 3] & 0xFFFFFFFF, rows)

    def _process_name(self, own: Mask) -> None:
        rows = np.flatnonzero(own)
        names = np.ascontiguousarray(self._few["comm"][rows])
        width = names.shape[1]
        values = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(rows), [None, pa.py_buffer(names)]
        ).dictionary_encode()
        texts = [name.split(b"\0", 1)[0] or None for name in values.dictionary.to_pylist()]
        codes = np.asarray(values.indices).astype(np.int64)
        self._columns.texts("process_name", Texts(rows, codes, pa.array(texts, pa.binary())))

    def _events(self) -> None:
        """The event's name, and what it is in kcap's terms."""
        numbers, codes = integers(self._few.event)
        names = [events.by_number()[number].name for number in numbers]
        known = catalogue.events(FAMILY)
        infos = [known.get(name) for name in names]
        self._columns.words("event", names, codes)
        self._columns.words("action", [info and info.action for info in infos], codes)
        self._columns.words("category", [info and info.category for info in infos], codes)

    def _syscall(self, own: Mask) -> None:
        records = self._few
        nr = records["nr"].astype(np.int64)
        compat = (records["flags"] & _COMPAT != 0) & (nr != _OUTSIDE)
        nr = np.where(own, nr, _OUTSIDE) * 2 + compat
        numbers, codes = integers(nr)
        self._columns.words("syscall", [_call_name(n >> 1, bool(n & 1)) for n in numbers], codes)

    def _result(self) -> None:
        """How calls ended."""
        is_call = _of_calls()[self._records.event]
        self._columns.some("retval", self._records["retval"], is_call)
        outcome = np.where(_of_calls()[self._few.event], self._few["error"].astype(np.int64), -1)
        numbers, codes = integers(outcome)
        names = {0: _SUCCESS, **catalogue.decoder("errno")}
        words = [None if n < 0 else names.get(n, str(-n)) for n in numbers]
        self._columns.words("status", words, codes)

    def _stacks(self) -> None:
        """The calls that led there: return addresses, the innermost first."""
        records = self._few
        lengths = records.sizes(_STACK).astype(np.int64) // _ADDRESS
        rows = np.flatnonzero(lengths)
        if not len(rows):
            return
        starts, _ = records.pieces(rows, _STACK)
        codes, entries = records.encode(starts, lengths[rows] * _ADDRESS)
        addresses = np.frombuffer(b"".join(entries.to_pylist()), "<i8")
        ends = np.cumsum(np.asarray(pc.binary_length(entries)) // _ADDRESS)
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(addresses))
        rows, places = self._columns.spread(rows, codes)
        self._columns.made["stack_addresses"] = Column(
            TypeClass.LIST_I64,
            lists.take(pa.array(places)),
            None if len(rows) == len(self._records) else rows.astype(np.int32),
        )


@cache
def _of_calls() -> Mask:
    """By event number, whether it is a system call."""
    return _events_where({e.number for e in events.events().values() if e.is_call})


@cache
def _of_state() -> Mask:
    """By event number, whether it may come in the middle of anything."""
    return _events_where({e.number for e in events.events().values() if e.handler == _STATE})


def _events_where(numbers: Collection[int]) -> npt.NDArray[np.bool_]:
    flags = np.zeros(events.EVENTS, np.bool_)
    flags[sorted(numbers)] = True
    return flags


@cache
def syscalls() -> tuple[dict[int, str], dict[int, str]]:
    """The names of system calls by number: the native ones, and those of 32-bit programs."""
    text = resources.files("kcap.readers.data").joinpath("linux_syscalls.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    native, compat = ({int(row[0]): row[i] for row in rows if row[i]} for i in (1, 2))
    return native, compat


def _call_name(number: int, compat: bool) -> str | None:
    """The name of a system call, None where there was none."""
    if number == _OUTSIDE:
        return None
    return syscalls()[compat].get(number, f"syscall_{number}")
