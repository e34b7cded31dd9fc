"""Parameters of many .scap events at once to columns.

All numbers are gathered together, whatever their columns and widths, and then handed out in
slices. Texts and bytes become one Arrow array over the data itself, of which each column takes
its own. Only structures are read one by one, and only the distinct ones of a batch.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model import catalogue, naming, text
from kcap.model.batch import Column, dictionary
from kcap.model.builder import Field, RawText, columns_of
from kcap.model.classes import I64_MAX, TypeClass
from kcap.readers import scap_table, scap_values

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PARAMETERS_MAX: Final = 256
"""Parameters of one event; the table has 32 at most."""

UNKNOWN_KIND: Final = "BYTEBUF"
"""Kind of a parameter that the table lacks: its bytes are kept."""

_INTEGERS: Final = {
    **dict.fromkeys(("INT8",), -1),
    **dict.fromkeys(("INT16",), -2),
    **dict.fromkeys(("INT32", "FD32", "PID32"), -4),
    **dict.fromkeys(("INT64", "ERRNO", "FD", "PID", "RELTIME", "ABSTIME"), -8),
    **dict.fromkeys(("UINT8", "FLAGS8", "ENUMFLAGS8", "SIGTYPE", "L4PROTO", "SOCKFAMILY"), 1),
    **dict.fromkeys(("UINT16", "FLAGS16", "ENUMFLAGS16", "SYSCALLID", "PORT"), 2),
    **dict.fromkeys(("UINT32", "FLAGS32", "ENUMFLAGS32", "UID", "GID", "MODE"), 4),
    **dict.fromkeys(("BOOL", "SIGSET"), 4),
    **dict.fromkeys(("UINT64",), 8),
}
"""Bytes of an integer by kind, negative for signed ones."""

_TEXTS: Final = frozenset({"CHARBUF", "FSPATH", "FSRELPATH"})
_INTEGER, _TEXT, _LIST, _BYTES, _OTHER = range(5)
"""Ways to read a parameter."""


class Parameters(NamedTuple):
    """Parameters of all events of a batch, in the order in which they lie in the data."""

    data: bytes
    rows: Int64s
    """The event of each."""
    ids: Int64s
    """What each is, see `Layout`."""
    starts: Int64s
    sizes: Int64s
    """0 for a parameter without a value."""


class Layout:
    """All parameters of all event types, numbered, and arrays over these numbers."""

    def __init__(self) -> None:
        types = scap_table.event_types()
        size = scap_table.traits().size
        self.first: Int64s = np.zeros(size + 1, np.int64)
        """Number of each event type's first parameter; the last type stands for unknown ones."""
        self.counts: Int64s = np.zeros(size + 1, np.int64)
        """How many parameters each event type has."""
        self.has_result: Mask = np.zeros(size + 1, np.bool_)
        """Whether the first one says how the call ended."""
        self.events: list[str] = []
        """The event's name of each parameter."""
        self.kinds: list[str] = []
        bases: list[str] = []
        ways: list[int] = []
        stored: list[bool] = []
        for number, event in sorted(types.items()):
            self.first[number] = len(bases)
            self.counts[number] = len(event.parameters)
            self.has_result[number] = event.result is not None
            for index, parameter in enumerate(event.parameters):
                bases.append(naming.argument(parameter.name))
                ways.append(_LIST if parameter.is_list else _way(parameter.kind))
                stored.append(not (index == event.result and parameter.name == "res"))
                self.kinds.append(parameter.kind)
                self.events.append(event.name)
        self.beyond = len(bases)
        """Number of the first parameter of an unknown type, or behind those of a known one."""
        for index in range(PARAMETERS_MAX):
            bases.append(f"{naming.ARGUMENT}_{index}")
            ways.append(_BYTES)
            stored.append(True)
            self.kinds.append(UNKNOWN_KIND)
            self.events.append("")
        numbers = {base: i for i, base in enumerate(dict.fromkeys(bases))}
        self.bases = list(numbers)
        self.base: npt.NDArray[np.int16] = np.array([numbers[b] for b in bases], np.int16)
        self.way: npt.NDArray[np.int8] = np.array(ways, np.int8)
        widths = np.array([_INTEGERS.get(kind, 0) for kind in self.kinds], np.int64)
        self.width: Int64s = np.abs(widths)
        self.signed: Mask = widths < 0
        self.stored: Mask = np.array(stored)
        """False for a result: it stands in ``retval`` alone."""

    def ids(self, types: Int64s, index: Int64s) -> Int64s:
        """The numbers of parameters.

        Args:
            types: Event types, none greater than the number of types in the table.
            index: Which parameter of the event each is, from 0.

        Returns:
            Their numbers.
        """
        known = index < self.counts[types]
        return np.where(known, self.first[types] + index, self.beyond + index)


def _way(kind: str) -> int:
    if kind in _INTEGERS:
        return _INTEGER
    if kind in _TEXTS:
        return _TEXT
    return _OTHER if kind in scap_values.KINDS else _BYTES


@cache
def layout() -> Layout:
    """The parameters of the event table."""
    return Layout()


def gather(data: bytes, dtype: npt.DTypeLike, at: Int64s) -> npt.NDArray[Any]:
    """Values that lie anywhere in data.

    Args:
        data: The data.
        dtype: Type of the values, fixed in size.
        at: Where each starts; all of it must lie in the data.

    Returns:
        One value a place.
    """
    kind = np.dtype(dtype)
    found: npt.NDArray[Any] = np.ndarray((len(data) - kind.itemsize + 1,), kind, data, 0, (1,))[at]
    return found


def integers(parameters: Parameters, wanted: Int64s) -> tuple[Int64s, Mask]:
    """The values of integer parameters of the right size.

    Args:
        parameters: All parameters.
        wanted: Which of them; eight bytes are read of each, so some must lie behind the last.

    Returns:
        The values, and which of them are too great for a signed integer (and stand here as if
        they were negative).
    """
    of = layout()
    ids = parameters.ids[wanted]
    shift = (64 - 8 * of.width[ids]).astype(np.uint64)
    bits = gather(parameters.data, "<u8", parameters.starts[wanted]) << shift
    signed = of.signed[ids]
    values = np.where(signed, bits.view(np.int64) >> shift.view(np.int64), 0)
    unsigned = (bits >> shift).view(np.int64)
    values = np.where(signed, values, unsigned)
    return values, ~signed & (values < 0)


class _Parts:
    """Values of columns, as they come up."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, TypeClass], list[tuple[Int64s, pa.Array]]] = defaultdict(list)

    def add(self, base: str, cls: TypeClass, rows: Int64s, values: pa.Array) -> None:
        self._parts[base, cls].append((rows, values))

    def columns(self, count: int) -> tuple[dict[str, Column], int]:
        """The columns, and how many values were cut."""
        made: dict[str, Column] = {}
        cuts = 0
        for (base, cls), parts in self._parts.items():
            rows, values = parts[0]
            if len(parts) > 1:
                rows = np.concatenate([r for r, _ in parts])
                order = np.argsort(rows, kind="stable")
                rows = rows[order]
                values = pa.concat_arrays([v for _, v in parts]).take(pa.array(order))
            columns, cut = _columns(base, cls, rows.astype(np.int32), values, count)
            made |= columns
            cuts += cut
        return made, cuts


def columns(parameters: Parameters, count: int) -> tuple[dict[str, Column], int]:
    """The columns of parameters.

    Args:
        parameters: The parameters.
        count: Events of the batch.

    Returns:
        The columns by name, and how many values were cut because they are too long.
    """
    of = layout()
    way = of.way[parameters.ids]
    has_value = parameters.sizes > 0
    fits = parameters.sizes == of.width[parameters.ids]
    parts = _Parts()
    _add_integers(
        parts,
        parameters,
        np.flatnonzero((way == _INTEGER) & fits & of.stored[parameters.ids]),
    )
    misfits = (way == _INTEGER) & ~fits
    others = np.flatnonzero(has_value & (way == _OTHER))
    unread = _add_others(parts, parameters, others)
    in_bytes = has_value & ((way == _BYTES) | misfits)
    in_bytes[unread] = True
    _add_strings(parts, parameters, np.flatnonzero(has_value & (way == _TEXT)), TypeClass.STR)
    _add_strings(parts, parameters, np.flatnonzero(has_value & (way == _LIST)), TypeClass.LIST)
    _add_strings(parts, parameters, np.flatnonzero(in_bytes), TypeClass.BIN)
    return parts.columns(count)


def _by_base(parameters: Parameters, wanted: Int64s) -> list[tuple[str, Int64s]]:
    """Parameters by column base: indices into ``wanted``, ascending."""
    if not len(wanted):
        return []
    of = layout()
    base = of.base[parameters.ids[wanted]]
    order = np.argsort(base, kind="stable")
    in_order = base[order]
    turns = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    return [(of.bases[base[group[0]]], group) for group in np.split(order, turns)]


def _add_integers(parts: _Parts, parameters: Parameters, wanted: Int64s) -> None:
    values, great = integers(parameters, wanted)
    any_great = bool(great.any())
    rows = parameters.rows[wanted]
    for base, group in _by_base(parameters, wanted):
        small = group
        if any_great and great[group].any():
            small, big = group[~great[group]], group[great[group]]
            unsigned = pa.array(values[big].view(np.uint64))
            parts.add(base, TypeClass.U64, rows[big], unsigned)
        if len(small):
            parts.add(base, TypeClass.I64, rows[small], pa.array(values[small]))


def _add_strings(parts: _Parts, parameters: Parameters, wanted: Int64s, cls: TypeClass) -> None:
    if not len(wanted):
        return
    every = _strings(parameters, wanted, ends_with_nul=cls is not TypeClass.BIN)
    rows = parameters.rows[wanted]
    for base, group in _by_base(parameters, wanted):
        parts.add(base, cls, rows[group], every.take(pa.array(group)))


def _strings(parameters: Parameters, wanted: Int64s, *, ends_with_nul: bool) -> pa.Array:
    """The bytes of parameters, without the NUL at their end where they have one.

    The offsets of an array over the data name each value and the gap behind it in turn.
    """
    starts = parameters.starts[wanted]
    ends = starts + parameters.sizes[wanted]
    if ends_with_nul:
        ends -= np.frombuffer(parameters.data, np.uint8)[ends - 1] == 0
    offsets = np.stack([starts, ends], axis=1).astype(np.int32).reshape(-1)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(parameters.data)]
    values = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)
    return values.take(pa.array(np.arange(0, len(offsets), 2)))


def _add_others(parts: _Parts, parameters: Parameters, wanted: Int64s) -> Int64s:
    """Add structures; which of them are none, and are to be kept as bytes."""
    if not len(wanted):
        return wanted
    of = layout()
    coded = _strings(parameters, wanted, ends_with_nul=False).dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    both = parameters.ids[wanted] * len(distinct) + np.asarray(coded.indices)
    keys, code = np.unique(both, return_inverse=True)
    groups: dict[tuple[str, TypeClass | None], list[int]] = defaultdict(list)
    values = []
    for index, key in enumerate(keys.tolist()):
        number, which = divmod(key, len(distinct))
        value = scap_values.read(of.kinds[number], of.events[number], distinct[which])
        values.append(value.encode() if isinstance(value, str) else value)
        groups[of.bases[of.base[number]], _class(value)].append(index)
    unread = np.zeros(len(wanted), np.bool_)
    place = np.zeros(len(keys), np.int64)
    for (base, cls), members in groups.items():
        chosen = np.zeros(len(keys), np.bool_)
        chosen[members] = True
        at = np.flatnonzero(chosen[code])
        if cls is None:
            unread[at] = True
            continue
        place[members] = np.arange(len(members))
        number_type = cls.arrow if cls in (TypeClass.I64, TypeClass.U64) else pa.binary()
        found = pa.array([values[i] for i in members], number_type)
        parts.add(base, cls, parameters.rows[wanted[at]], found.take(pa.array(place[code[at]])))
    return wanted[unread]


def _class(value: str | int | bytes | None) -> TypeClass | None:
    """The class of a structure's value, None for one that is none."""
    if isinstance(value, int):
        return TypeClass.U64 if value > I64_MAX else TypeClass.I64
    if value is None:
        return None
    return TypeClass.STR if isinstance(value, str) else TypeClass.BIN


def _columns(
    base: str, cls: TypeClass, rows: npt.NDArray[np.int32], values: pa.Array, count: int
) -> tuple[dict[str, Column], int]:
    """The columns for values of one class: usually one, more where some need care."""
    if cls in (TypeClass.I64, TypeClass.U64):
        return {_name(base, cls): Column(cls, values, _some(rows, count))}, 0
    if cls is TypeClass.LIST:
        return _list_columns(base, rows, values, count)
    home = catalogue.home(base)
    coded = values.dictionary_encode()
    entries = coded.dictionary
    if pc.max(pc.binary_length(entries)).as_py() <= limits.VALUE_BYTES:
        try:
            if cls is TypeClass.STR:
                entries = entries.cast(pa.utf8())
        except pa.ArrowInvalid:
            pass
        else:
            array = pa.DictionaryArray.from_arrays(coded.indices, entries)
            return {_name(base, cls): Column(cls, array, _some(rows, count))}, 0
    if cls is TypeClass.STR:
        return columns_of(Field(base, home), rows, [RawText(v) for v in values.to_pylist()], count)
    home = home if home is TypeClass.BIN else None
    return columns_of(Field(base, home), rows, values.to_pylist(), count)


def _list_columns(
    base: str, rows: npt.NDArray[np.int32], values: pa.Array, count: int
) -> tuple[dict[str, Column], int]:
    """The columns of lists of text; the exact bytes of a list with text that is none beside it."""
    name = _name(base, TypeClass.LIST)
    try:
        lists = pc.split_pattern(values.cast(pa.utf8()), "\0")
        if pc.max(pc.list_value_length(lists)).as_py() <= limits.LIST_VALUE_ITEMS:
            return {name: Column(TypeClass.LIST, lists, _some(rows, count))}, 0
    except pa.ArrowInvalid:
        pass
    raws = values.to_pylist()
    cleaned = [[text.clean(item)[0] for item in raw.split(b"\0")] for raw in raws]
    columns, cuts = columns_of(Field(base, catalogue.home(base)), rows, cleaned, count)
    at = [i for i, raw in enumerate(raws) if text.clean(raw)[1] is not None]
    if at:
        array = dictionary(pa.array([raws[i] for i in at], pa.binary()))
        columns[f"{name}__{naming.RAW}"] = Column(
            TypeClass.BIN, array, _some(rows[np.array(at)], count)
        )
    return columns, cuts


def _some(rows: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32] | None:
    return None if len(rows) == count else rows


@cache
def _name(base: str, cls: TypeClass) -> str:
    return naming.column_name(base, cls, catalogue.home(base))
