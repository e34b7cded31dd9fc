"""Records of the kernel program as arrays: one a field, over all records at once.

A record is of any length, but begins at a multiple of 8 bytes. So an array of structures whose
items overlap, 8 bytes apart, has each record as an item, and copying many of them is one call. All
fields are taken of some records, then of the next ones, so that a record comes into the cache once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import KcapError, LimitError
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.btf import Btf

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PIECES: Final = 11
"""Pieces of a record at most."""

NUMBERS: Final = 12
"""Numbers of a record."""

BLOCK_BYTES: Final = (1 << 31) - (1 << 20)
"""Bytes of the records of a batch at most: Arrow counts them in 31 bits."""

KIND_NUMBER: Final = 7
"""From this number on, a record with its pieces has nothing that only tells when, who and how."""

_KIND_FIELDS: Final = ("comm", "nr", "event", "flags", "error", "piece")
"""The fields behind the numbers."""

_SAMPLE: Final = 512
"""So many records tell whether a batch has many that are alike."""

_CHUNK: Final = 1024
"""Records of which all fields are taken together: some 300 KiB."""

_ALIGNED: Final = 8
_TIME_MAX_NS: Final = 1 << 62
"""A time since the start of the machine beyond 146 years is none."""


class Block(Protocol):
    """Records in memory."""

    @property
    def data(self) -> memoryview | npt.NDArray[np.uint8]:
        """The memory; may hold other things between the records."""

    @property
    def offsets(self) -> Sequence[int] | Int64s:
        """Where each record begins in it."""


class Layouts(NamedTuple):
    """How the structures of ``record.h`` lie in memory."""

    record: np.dtype[np.void]
    socket: np.dtype[np.void]
    call: np.dtype[np.void]


def layouts(types: Btf) -> Layouts:
    """How the structures of ``record.h`` lie in memory.

    Args:
        types: Those of the kernel program's object.

    Returns:
        The layouts.

    Raises:
        KcapError: A structure is missing, or is not what this version of kcap reads.
    """
    found = Layouts(*(layout(types, f"kcap_{name}") for name in Layouts._fields))
    fields: Mapping[str, Any] = found.record.fields or {}
    for name, count in (("number", NUMBERS), ("piece", PIECES)):
        if name not in fields or fields[name][0].shape != (count,):
            raise KcapError(f"kcap_record.{name} of the kernel program is not as it should be")
    end = fields["number"][1] + 8 * NUMBERS
    for name in _KIND_FIELDS:
        if name not in fields or fields[name][1] != end:
            raise KcapError(f"kcap_record.{name} of the kernel program is not where it should be")
        end += fields[name][0].itemsize
    if end != found.record.itemsize:
        raise KcapError("kcap_record of the kernel program has something behind its pieces")
    return found


class Kinds(NamedTuple):
    """Records that are alike in all but when, who and how: the same was done to the same."""

    which: Int64s | None
    """The kind of each record; None where each is a kind of its own."""
    first: Int64s
    """The first record of each kind, ascending."""


def layout(btf: Btf, name: str) -> np.dtype[np.void]:
    """A structure of integers, and of arrays of them, as numpy has it.

    Args:
        btf: The types.
        name: The structure's name.

    Returns:
        Its layout.

    Raises:
        KcapError: There is no such structure, or it has something else in it.
    """
    found = btf.struct(name)
    names, formats, offsets = [], [], []
    for member in found.members:
        if member.kind not in ("int", "enum") or member.bits:
            raise KcapError(f"{name}.{member.name} is no plain integer")
        code = f"<{'i' if member.signed else 'u'}{member.item_size}"
        names.append(member.name)
        formats.append((code, member.counts))
        offsets.append(member.offset)
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": found.size}
    )


class Records:
    """Records in the order of their time.

    Args:
        layouts: How they lie in memory.
        block: Where they are.

    Raises:
        LimitError: They are more than one batch can hold.
    """

    def __init__(self, layouts: Layouts, block: Block) -> None:
        self._layout = layouts.record
        self.data = np.frombuffer(block.data, np.uint8)
        if len(self.data) > BLOCK_BYTES:
            raise LimitError(
                f"records of {len(self.data)} bytes", expected=f"at most {BLOCK_BYTES} in a batch"
            )
        offsets = np.asarray(block.offsets, np.int64)
        size = self._layout.itemsize
        inside = (offsets >= 0) & (offsets + size <= len(self.data)) & (offsets % _ALIGNED == 0)
        total = len(offsets)
        offsets = offsets if inside.all() else offsets[inside]
        taken = self._take(offsets)
        # One array a piece: numpy adds long arrays far quicker than many short ones.
        sizes = np.ascontiguousarray(taken["piece"].T)
        ends = offsets + size + np.add.reduce(sizes, axis=0, dtype=np.int64)
        told = offsets + taken["bytes"]
        good = (ends <= told) & (told <= len(self.data))
        good &= (taken["ts_ns"] < _TIME_MAX_NS) & _known()[taken["event"]]
        times = taken["ts_ns"]
        if not (good.all() and (times[1:] >= times[:-1]).all()):
            order = np.flatnonzero(good)
            order = order[np.argsort(times[order], kind="stable")]
            offsets, sizes, ends = offsets[order], np.take(sizes, order, axis=1), ends[order]
            taken = {name: values[order] for name, values in taken.items()}
        self.damaged = total - len(offsets)
        """Records that are none: of an unknown kind, or longer than there is room for."""
        self._sizes = sizes
        self._first = offsets + size
        self._ends = ends
        self._taken = taken
        self.event = taken["event"].astype(np.int64)
        self.ts_ns = taken["ts_ns"].astype(np.int64)

    def __len__(self) -> int:
        """The number of records."""
        return len(self._first)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A field of all records; an array a record where the field is one."""
        return self._taken[name]

    def kinds(self) -> Kinds:
        """Find the records that are alike, so that what they say is made of each kind once.

        Returns:
            The kinds. Where few records are alike, each is its own: the search costs more then.
        """
        fields: Mapping[str, Any] = self._layout.fields or {}
        back = self._layout.itemsize - fields["number"][1] - 8 * KIND_NUMBER
        starts, sizes = self._first - back, self._ends - self._first + back
        count = len(self)
        if count > _SAMPLE:
            _, sample = self.encode(starts[:_SAMPLE], sizes[:_SAMPLE])
            if len(sample) > _SAMPLE // 2:
                return Kinds(None, np.arange(count))
        which, entries = self.encode(starts, sizes)
        first = np.empty(len(entries), np.int64)
        first[which[::-1]] = np.arange(count - 1, -1, -1)
        return Kinds(which, first)

    def some(self, rows: Int64s) -> Records:
        """Some of the records.

        Args:
            rows: Which, ascending.

        Returns:
            They alone; all of them are these records themselves.
        """
        if len(rows) == len(self):
            return self
        found = copy(self)
        vars(found).update(
            _sizes=np.take(self._sizes, rows, axis=1),
            _first=self._first[rows],
            _ends=self._ends[rows],
            _taken={name: values[rows] for name, values in self._taken.items()},
            event=self.event[rows],
            ts_ns=self.ts_ns[rows],
        )
        return found

    def _take(self, offsets: Int64s) -> dict[str, npt.NDArray[Any]]:
        """All fields of some records."""
        kind = self._layout
        fields = {name: kind[name] for name in kind.names or ()}
        out = {
            name: np.empty((len(offsets), *field.shape), field.base)
            for name, field in fields.items()
        }
        if len(offsets):
            items = (len(self.data) - kind.itemsize) // _ALIGNED + 1
            whole = np.dtype((np.void, kind.itemsize))
            every = np.ndarray((items,), whole, self.data, 0, (_ALIGNED,))
            places = offsets // _ALIGNED
            for start in range(0, len(offsets), _CHUNK):
                some = slice(start, start + _CHUNK)
                heads = every[places[some]].view(kind)
                for name, into in out.items():
                    into[some] = heads[name]
        return out

    def sizes(self, which: int) -> npt.NDArray[np.uint16]:
        """The bytes of a piece of all records.

        Args:
            which: The number of the piece.

        Returns:
            One a record; 0 where it has no such piece.
        """
        found: npt.NDArray[np.uint16] = self._sizes[which]
        return found

    def pieces(self, rows: Int64s, which: Int64s | int) -> tuple[Int64s, Int64s]:
        """Where pieces lie.

        Args:
            rows: Some of the records, ascending.
            which: The number of the piece: one for all, or one each.

        Returns:
            Where each begins in `data`, and its bytes.
        """
        if not isinstance(which, int):
            wanted = np.unique(which).tolist()
            if len(wanted) > 1:
                starts, sizes = np.empty((2, len(rows)), np.int64)
                for piece in wanted:
                    mine = which == piece
                    starts[mine], sizes[mine] = self.pieces(rows[mine], piece)
                return starts, sizes
            which = wanted[0] if wanted else 0
        before = np.add.reduce(self._sizes[:which], axis=0, dtype=np.int64)
        starts, sizes = self._first + before, self._sizes[which].astype(np.int64)
        return (starts, sizes) if len(rows) == len(self) else (starts[rows], sizes[rows])

    def encode(self, starts: Int64s, sizes: Int64s) -> tuple[Int64s, pa.BinaryArray]:
        """Find the different values among parts of the data.

        Args:
            starts: Where each part begins.
            sizes: Its bytes.

        Returns:
            Which of the values each part is, and the values, each once.
        """
        return different(self.data, starts, sizes)


def different(
    data: npt.NDArray[np.uint8], starts: Int64s, sizes: Int64s
) -> tuple[Int64s, pa.BinaryArray]:
    """Find the different values among parts of a block of memory.

    The offsets of an array over the data name each part and, in turn, what is between two;
    of that nothing is read, so the parts may lie in any order.

    Args:
        data: The memory.
        starts: Where each part begins.
        sizes: Its bytes.

    Returns:
        Which of the values each part is, and the values, each once.
    """
    ends = np.stack([starts, starts + sizes], axis=1).reshape(-1)
    offsets = np.concatenate([[0], ends, [len(data)]]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    every = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)
    coded = every.take(pa.array(np.arange(1, len(ends), 2))).dictionary_encode()
    return np.asarray(coded.indices).astype(np.int64), coded.dictionary


@cache
def _known() -> Mask:
    """Which event numbers there are."""
    known = np.zeros(1 << 16, np.bool_)
    known[list(events.by_number())] = True
    return known
