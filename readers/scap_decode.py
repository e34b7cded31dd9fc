"""From event blocks of a .scap file to batches of raw rows, one for each enter or exit.

Nothing here loops over events: headers and lengths of all events of a run are gathered at once
from wherever they lie in the data.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap import limits
from kcap.errors import BadInputError
from kcap.model import catalogue, naming, shape
from kcap.model.batch import Batch, Column, coded, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, SourceInfo
from kcap.readers import scap_table
from kcap.readers.scap_blocks import FIRST_VERSION, LARGE, WITH_FLAGS, Events
from kcap.readers.scap_columns import (
    PARAMETERS_MAX,
    UNKNOWN_KIND,
    Int64s,
    Mask,
    Parameters,
    columns,
    gather,
    integers,
    layout,
)

_HEADER: Final = np.dtype(
    [("ts", "<u8"), ("tid", "<i8"), ("size", "<u4"), ("type", "<u2"), ("count", "<u4")]
)
"""Of an event; those of the first version lack the last field."""

_BLOCK_HEAD: Final = 10
"""Bytes of a block before its event: type, length, processor; flags may follow."""

_PADDED: Final = 4
"""A block is filled up to a multiple of this."""

_STATE_ONLY: Final = 1
"""Flag of an event that a filter left out, but for what it says of the state."""

_ERRORS: Final = 4095
"""Error numbers; a call that gives a lesser result than their negatives did not fail."""

_MASK_BITS: Final = 52
"""Parameters whose being null fits into the exact part of a double."""

FLAGS: Final = naming.column_name(naming.extension("flags"), TypeClass.I64, None)
"""Column of the flags that some blocks have beside their event."""


class RawEvents(NamedTuple):
    """What became of a run of event blocks."""

    batch: Batch
    """A row for each event that could be read."""
    number: Int64s
    """Number of each row's event in the file, from 1."""
    tid: Int64s
    type_id: Int64s
    """Number of its event type, for `kcap.readers.scap_table`."""
    failure: BadInputError | None = None
    """Why the event behind the last row can't be read, where not lenient."""


class _Headers(NamedTuple):
    """Where the events of a run are, and what stands in front of their parameters."""

    begin: Int64s
    end: Int64s
    """Where the event says that it ends."""
    lengths: Int64s
    """Where the lengths of its parameters start."""
    width: Int64s
    """Bytes of such a length."""
    declared: Int64s
    """How many parameters it has; -1 where its version does not say."""
    ts: npt.NDArray[np.uint64]
    tid: Int64s
    type: Int64s
    bad: Mask
    """Which of them can't be."""


class Decoder:
    """Makes batches of event blocks.

    Args:
        source: Where the events come from.
        file: The file's name, for errors.
        lenient: Skip and count events that can't be read.
    """

    def __init__(self, source: SourceInfo, file: str, *, lenient: bool = False) -> None:
        self.source = source
        self._file = file
        self._lenient = lenient

    def decode(self, events: Events) -> RawEvents:
        """Decode a run of event blocks.

        Args:
            events: The blocks.

        Returns:
            The rows, in the order of the file. An event that can't be read ends them where not
            lenient, else it is left out and counted in a `Loss` before them.
        """
        headers = _headers(events)
        parameters, bad = _parameters(events.data, headers)
        failure = None
        sides: list[Side] = []
        if bad.any():
            first = int(np.argmax(bad))
            place = events.offset + int(events.starts[first])
            reason = f"no event of type {int(headers.type[first])}: its lengths don't add up"
            if self._lenient:
                sides.append(Loss("skipped", int(bad.sum()), f"{reason} at byte {place}"))
                kept = np.flatnonzero(~bad)
            else:
                kept = np.arange(first)
                hint = "--lenient skips and counts such events"
                failure = BadInputError(reason, file=self._file, offset=place, hint=hint)
            headers = _Headers._make(field[kept] for field in headers)
            parameters, _ = _parameters(events.data, headers)
        else:
            kept = np.arange(len(events.starts))
        count = len(kept)
        number = events.first + kept
        found, cuts = columns(parameters, count)
        if cuts:
            reason = f"values over {limits.VALUE_BYTES} bytes are cut, their length in NAME__size"
            sides.append(Loss("cut", cuts, reason))
        if count:
            found |= self._envelope(events, headers, kept, number)
            found |= _result(headers, parameters, count)
            found |= _shape(headers, parameters)
            found |= _syscall(found, headers.type)
        batch = Batch(count, found, tuple(sides))
        return RawEvents(batch, number, headers.tid, headers.type, failure)

    def _envelope(
        self, events: Events, headers: _Headers, kept: Int64s, number: Int64s
    ) -> dict[str, Column]:
        """The columns that every event has."""
        count = len(kept)
        types, code = _distinct(headers.type)
        starts = events.starts[kept]
        ways = ["exit" if number & 1 else "enter" for number in types.tolist()]
        columns: dict[str, Column | None] = {
            "cpu": _integers(gather(events.data, "<u2", starts + 8)),
            "direction": coded(ways, code),
            "event": coded([scap_table.name_of(number) for number in types.tolist()], code),
            "event_id": _integers(headers.type),
            **_flags(events, kept),
            "ord": _integers(number - 1),
            "seq": _integers(number),
            "source": constant(TypeClass.STR, self.source.id, count),
            "tid": _integers(headers.tid),
            **_times(headers.ts),
        }
        for name in ("host", "origin"):
            value = getattr(self.source, name)
            if value is not None:
                columns[name] = constant(TypeClass.STR, value, count)
        return {name: column for name, column in columns.items() if column is not None}


def _integers(values: npt.NDArray[np.integer], some: Mask | None = None) -> Column | None:
    """A column of integers, of all rows or of some."""
    values = values.astype(np.int64)
    if some is None or some.all():
        return Column(TypeClass.I64, pa.array(values))
    rows = np.flatnonzero(some).astype(np.int32)
    return Column(TypeClass.I64, pa.array(values[rows]), rows) if len(rows) else None


def _flags(events: Events, kept: Int64s) -> dict[str, Column | None]:
    """The flags that some blocks have, and whether the event only serves to know the state.

    sysdig -F writes such events besides those that its filter chose, and does not show them.
    """
    flagged = np.isin(events.types[kept], sorted(WITH_FLAGS))
    if not flagged.any():
        return {"kind": constant(TypeClass.STR, "event", len(kept))}
    flags = np.zeros(len(kept), np.int64)
    flags[flagged] = gather(events.data, "<u4", events.starts[kept[flagged]] + _BLOCK_HEAD)
    kinds = coded(["event", "state"], flags & _STATE_ONLY)
    return {"kind": kinds, FLAGS: _integers(flags, flags != 0)}


def _times(ts: npt.NDArray[np.uint64]) -> dict[str, Column | None]:
    """The time of each event; 0 is none, and one beyond 2262 only text can hold."""
    values = ts.view(np.int64)
    known = values > 0
    found = {"ts": _integers(values, known)}
    if not known.all():
        texts, code = np.unique(ts[~known], return_inverse=True)
        all_codes = np.full(len(ts), len(texts))
        all_codes[~known] = code
        found["ts_raw"] = coded([*map(str, texts.tolist()), None], all_codes)
    return found


def _distinct(values: Int64s) -> tuple[Int64s, Int64s]:
    """The distinct values, and which of them each is; small numbers need no sorting."""
    if not len(values) or values.min() < 0 or values.max() > 1 << 16:
        return np.unique(values, return_inverse=True)
    found = np.flatnonzero(np.bincount(values))
    code = np.zeros(int(found[-1]) + 1, np.int64)
    code[found] = np.arange(len(found))
    return found, code[values]


def _headers(events: Events) -> _Headers:
    """Read the headers of a run's events."""
    first = np.isin(events.types, sorted(FIRST_VERSION))
    large = np.isin(events.types, sorted(LARGE))
    begin = events.starts + _BLOCK_HEAD
    begin = begin + 4 * np.isin(events.types, sorted(WITH_FLAGS))
    found = gather(events.data, _HEADER, begin)
    lengths = begin + np.where(first, _HEADER.itemsize - 4, _HEADER.itemsize)
    width = np.where(large, 4, 2)
    end = begin + found["size"].astype(np.int64)
    count = np.where(first, -1, found["count"].astype(np.int64))
    bad = (lengths > end) | (end > events.ends) | (end <= events.ends - _PADDED)
    bad |= (count > PARAMETERS_MAX) | (lengths + count * width > end)
    types = found["type"].astype(np.int64)
    tid = np.ascontiguousarray(found["tid"])
    ts = np.ascontiguousarray(found["ts"])
    return _Headers(begin, end, lengths, width, count, ts, tid, types, bad)


def _known(types: Int64s) -> Int64s:
    """Event types, the number behind the table's last one for all beyond it."""
    return np.minimum(types, scap_table.traits().size)


def _counts(data: bytes, headers: _Headers) -> Int64s:
    """How many parameters each event has.

    The first version does not say. It is the greatest number, not beyond the table's, for which
    the lengths use up the event exactly; of a type that is not in the table the least such one.
    """
    count = headers.declared.copy()
    open_ = np.flatnonzero((count < 0) & ~headers.bad)
    size = scap_table.traits().size
    for kind in np.unique(headers.type[open_]).tolist():
        todo = open_[headers.type[open_] == kind]
        known = kind in scap_table.event_types()
        most = int(layout().counts[kind if known else size])
        for guess in range(most, -1, -1) if known else range(_GUESSES):
            lengths, end = headers.lengths[todo], headers.end[todo]
            fitting = lengths + 2 * guess <= end
            tried = todo[fitting]
            each = gather(data, "<u2", lengths[fitting, None] + 2 * np.arange(guess))
            values = lengths[fitting] + 2 * guess + each.sum(axis=1, dtype=np.int64)
            exact = tried[values == end[fitting]]
            count[exact] = guess
            todo = np.setdiff1d(todo, exact, assume_unique=True)
            if not len(todo):
                break
    return count


_GUESSES: Final = 64
"""Numbers of parameters that are tried for an unknown event without one."""


def _parameters(data: bytes, headers: _Headers) -> tuple[Parameters, Mask]:
    """The parameters of all events, and which events can't be read; those have none."""
    count = _counts(data, headers)
    bad = headers.bad | (count < 0)
    count[bad] = 0
    ends = np.cumsum(count)
    rows = np.repeat(np.arange(len(count)), count)
    index = np.arange(len(rows)) - np.repeat(ends - count, count)
    places = headers.lengths[rows] + index * headers.width[rows]
    if (headers.width == 2).all():  # noqa: PLR2004
        sizes = gather(data, "<u2", places).astype(np.int64)
    else:
        sizes = gather(data, "<u4", places).astype(np.int64)
        sizes[headers.width[rows] == 2] &= 0xFFFF  # noqa: PLR2004
    total = np.concatenate([[0], np.cumsum(sizes)])
    before = total[ends - count]
    values = headers.lengths + count * headers.width
    bad |= values + (total[ends] - before) != headers.end
    starts = (values - before)[rows] + total[:-1]
    ids = layout().ids(_known(headers.type)[rows], index)
    return Parameters(data, rows, ids, starts, sizes), bad


def _result(headers: _Headers, parameters: Parameters, count: int) -> dict[str, Column]:
    """How calls ended: the ``retval`` of exits, and the name of an error in ``status``."""
    of = layout()
    first = np.flatnonzero(np.diff(parameters.rows, prepend=-1))
    has_result = of.has_result[_known(headers.type)[parameters.rows[first]]]
    first = first[has_result]
    first = first[parameters.sizes[first] == of.width[parameters.ids[first]]]
    if not len(first):
        return {}
    values, great = integers(parameters, first)
    rows = parameters.rows[first].astype(np.int32)
    found: dict[str, Column] = {}
    if great.any():
        unsigned = pa.array(values[great].view(np.uint64))
        found["retval__u64"] = Column(TypeClass.U64, unsigned, rows[great])
    if not great.all():
        some = None if len(rows) == count and not great.any() else rows[~great]
        found["retval"] = Column(TypeClass.I64, pa.array(values[~great]), some)
    names = catalogue.decoder("errno")
    failed = (values < 0) & (values >= -_ERRORS) & ~great
    errors, code = _distinct(np.where(failed, -values, 0))
    words = [names.get(e, str(-e)) if e else "SUCCESS" for e in errors.tolist()]
    codes = np.full(count, len(words))
    codes[rows] = code
    status = coded([*words, None], codes)
    return found if status is None else {**found, "status": status}


def _shape(headers: _Headers, parameters: Parameters) -> dict[str, Column]:
    """Which parameters each record had, and which of them without a value."""
    count = np.bincount(parameters.rows, minlength=len(headers.type))
    kinds, code = _distinct(headers.type * (PARAMETERS_MAX + 1) + count)
    empty = np.flatnonzero(parameters.sizes == 0)
    nulls: dict[int, int] = {}
    if len(empty):
        rows = parameters.rows[empty]
        index = empty - np.searchsorted(parameters.rows, rows)
        simple = index < _MASK_BITS
        weights = np.ldexp(1.0, index[simple])
        masks = np.bincount(rows[simple], weights, len(count)).astype(np.int64)
        masks, mask_code = np.unique(masks, return_inverse=True)
        both, code = _distinct(code * len(masks) + mask_code)
        kinds = kinds[both // len(masks)]
        masks = masks[both % len(masks)]
        for row, bit in zip(rows[~simple].tolist(), index[~simple].tolist(), strict=True):
            nulls[row] = nulls.get(row, 0) | 1 << bit
    else:
        masks = np.zeros(len(kinds), np.int64)
    texts = [
        _shape_text(*divmod(kind, PARAMETERS_MAX + 1), mask)
        for kind, mask in zip(kinds.tolist(), masks.tolist(), strict=True)
    ]
    for row, mask in nulls.items():
        kind, known = int(kinds[code[row]]), int(masks[code[row]])
        code[row] = len(texts)
        texts.append(_shape_text(*divmod(kind, PARAMETERS_MAX + 1), mask | known))
    column = coded(texts, code)
    return {} if column is None else {"shape": column}


@lru_cache(maxsize=4096)
def _shape_text(number: int, count: int, nulls: int) -> str:
    """The shape of a record of an event type with so many parameters."""
    event = scap_table.event_types().get(number)
    known = [(p.name, p.kind) for p in event.parameters] if event else []
    pairs = known + [(str(i), UNKNOWN_KIND) for i in range(len(known), count)]
    return shape.encode(
        [shape.Item(name, kind, bool(nulls >> i & 1)) for i, (name, kind) in enumerate(pairs)][
            :count
        ]
    )


def _syscall(found: dict[str, Column], types: Int64s) -> dict[str, Column]:
    """The name of the call that an event without a type of its own stands for."""
    base = naming.argument("ID")
    column = found.get(naming.column_name(base, TypeClass.I64, catalogue.home(base)))
    rows = np.flatnonzero(types <= 1)
    if column is None or not len(rows):
        return {}
    numbers = Batch(len(types), {"id": column}).numpy("id", -1)
    distinct, code = np.unique(np.where(types <= 1, numbers, -1), return_inverse=True)
    names = catalogue.decoder("scap_syscall")
    made = coded([names.get(number) for number in distinct.tolist()], code)
    return {} if made is None else {"syscall": made}
