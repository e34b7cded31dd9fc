"""Events back to frames: what exports of packets are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import naming
from kcap.model.batch import Batch, Column, Rows
from kcap.model.classes import TypeClass
from kcap.packets.decode import DIRECTIONS, EVENT, IDENTITY
from kcap.packets.frames import I32, LENGTH_MAX, NONE, Bytes, Frames, LinkType, Owner

_MISSING: Final = -(1 << 63)
_DATA: Final = naming.column_name(naming.argument("data"), TypeClass.BIN, TypeClass.I64)
_REPEATED: Final = (_DATA, naming.argument("comment"), *IDENTITY)
"""Columns that hold a value once, and captures of packets with every packet that has it."""

PORTION_BYTES: Final = 16 << 20
"""What packets that are written together have of such values, unless one alone has more."""


def portions(batch: Batch) -> Iterator[Batch]:
    """Cut events so that what is made of them fits memory.

    A chunk of a few bytes may hold tens of thousands of packets with one long comment, or of a
    process with a long command line.

    Args:
        batch: Events.

    Yields:
        The same in order, in parts.
    """
    sizes = np.zeros(batch.rows, np.int64)
    for name in _REPEATED:
        column = batch.get(name)
        if column is None or not len(column) or not pa.types.is_dictionary(column.values.type):
            continue
        each = pc.binary_length(column.values.dictionary).fill_null(0)
        at = slice(None) if column.rows is None else column.rows
        sizes[at] += np.asarray(each).astype(np.int64)[column.codes()]
    ends = np.cumsum(sizes)
    of = np.maximum(ends - 1, 0) // PORTION_BYTES
    cuts = [*(np.flatnonzero(np.diff(of)) + 1).tolist(), batch.rows]
    for start, stop in zip([0, *cuts], cuts, strict=False):
        yield batch.slice(start, stop)


def frames(batch: Batch) -> tuple[Frames, Rows]:
    """The packets among events.

    Args:
        batch: Events.

    Returns:
        Their frames, of link type RAW where they are IP packets, and the rows that they are of.
    """
    rows = _packets(batch)
    if len(rows) < batch.rows:
        batch = batch.take(rows)
    data, offsets = _bytes(batch.columns.get(_DATA), batch.rows)
    captured = np.diff(offsets).astype(np.int32)

    def number(name: str, missing: int) -> npt.NDArray[np.int64]:
        return batch.numpy(naming.argument(name), missing)

    ts = batch.numpy("ts", _MISSING)
    interface, interfaces = _codes(batch.get(naming.argument("interface")), batch.rows)
    comment, comments = _codes(batch.get(naming.argument("comment")), batch.rows)
    owner, owners = _owners(batch)
    timed = ts != _MISSING
    found = Frames(
        data=data,
        offsets=offsets[:-1],
        captured=captured,
        length=np.clip(number("length", 0), captured, LENGTH_MAX),
        ts_ns=np.where(timed, ts, 0),
        link_type=number("link_type", LinkType.RAW).astype(np.uint16),
        timed=None if timed.all() else timed,
        direction=_direction(batch),
        interface=interface,
        interfaces=interfaces,
        owner=owner,
        owners=owners,
        comment=comment,
        comments=comments,
        packet_id=number("packet_id", NONE),
    )
    return found, rows


def _packets(batch: Batch) -> Rows:
    """The rows that are packets and have their bytes."""
    event, data = batch.get("event"), batch.get(_DATA)
    if event is None or data is None:
        return np.zeros(0, np.int32)
    named = np.array([name == EVENT for name in event.values.dictionary.to_pylist()], np.bool_)
    mine = np.zeros(batch.rows, np.bool_)
    mine[slice(None) if event.rows is None else event.rows] = named[event.codes()]
    return np.flatnonzero(mine & batch.mask(_DATA)).astype(np.int32)


def _bytes(column: Column | None, count: int) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """A column that every row has a value of: all bytes, and where each value starts and ends."""
    if column is None or not count:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    values = column.values.dictionary.take(column.values.indices)
    _, edges, held = values.buffers()
    offsets = np.frombuffer(edges, np.int32)[values.offset : values.offset + count + 1]
    data = np.zeros(0, np.uint8) if held is None else np.frombuffer(held, np.uint8)
    return data, offsets.astype(np.int64)


def _codes(column: Column | None, count: int) -> tuple[I32 | None, list[str]]:
    """A text column as codes and texts."""
    if column is None:
        return None, []
    codes = np.full(count, NONE, np.int32)
    codes[slice(None) if column.rows is None else column.rows] = column.codes()
    return codes, column.values.dictionary.to_pylist()


def _direction(batch: Batch) -> Bytes | None:
    codes, texts = _codes(batch.get(naming.argument("direction")), batch.rows)
    if codes is None:
        return None
    ways = {text: int(way) for way, text in DIRECTIONS.items()}
    return np.array([*(ways.get(text, 0) for text in texts), 0], np.uint8)[codes]


def _owners(batch: Batch) -> tuple[I32 | None, list[Owner]]:
    """Each different owner once, and which of them each row has."""
    number = np.zeros(batch.rows, np.int64)
    columns: dict[str, tuple[npt.NDArray[np.int64], list[Any]]] = {}
    for name, field in IDENTITY.items():
        column = batch.get(name)
        if column is None or not len(column):
            continue
        codes, values = _values(column, batch.rows)
        columns[field] = codes, values
        _, number = np.unique(number * (len(values) + 1) + codes, return_inverse=True)
        number = number.reshape(-1).astype(np.int64)
    if not columns:
        return None, []
    _, first, which = np.unique(number, return_index=True, return_inverse=True)
    owners = [
        Owner(**{field: values[codes[row]] for field, (codes, values) in columns.items()})
        for row in first.tolist()
    ]
    unknown = np.array(
        [entry.pid is None and entry.tid is None and not entry.nobody for entry in owners], np.bool_
    )
    of = which.reshape(-1).astype(np.int32)
    return np.where(unknown[of], NONE, of).astype(np.int32), owners


def _values(column: Column, count: int) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """The code of each row, and the value of each code; the last is that of no value."""
    if pa.types.is_dictionary(column.values.type):
        column = column.compact()
        found: npt.NDArray[np.int64] = column.codes().astype(np.int64)
        values = column.values.dictionary.to_pylist()
    else:
        held = column.values.dictionary_encode()
        found, values = np.asarray(held.indices).astype(np.int64), held.dictionary.to_pylist()
    codes = np.full(count, len(values), np.int64)
    codes[slice(None) if column.rows is None else column.rows] = found
    return codes, [*values, None]
