"""TAIL: events that are not yet in a chunk (spec/kcap.md, clause 7).

All columns and their directory are one zstd frame: a tail of a few events would otherwise be
mostly directory.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from kcap import limits
from kcap.errors import DamagedError, LimitError
from kcap.format import zstd
from kcap.format.chunk import (
    ENTRIES,
    Superseded,
    bounds,
    decode_column,
    encode_columns,
    read_entries,
    size_of,
)
from kcap.format.schema import EVENTS, Schema
from kcap.model.batch import Batch

_HEAD: Final = struct.Struct("<qIII4x")


def encode(batch: Batch, schema: Schema) -> tuple[bytes, int]:
    """Encode events that wait for their chunk.

    Args:
        batch: 1 to 65,536 rows.
        schema: Has an id for every column.

    Returns:
        The payload of a TAIL record, and what the rows take in memory (clause 3.3).

    Raises:
        LimitError: They are more than a tail may hold.
    """
    entries, parts = [], []
    at = size = 0
    for name, entry, form in encode_columns(batch, schema, EVENTS):
        size += size_of(entry, batch.columns[name].cls)
        entries.append(entry._replace(offset=at))
        parts.append(form.data)
        at += entry.decoded
    raw = b"".join([np.array(entries, ENTRIES).tobytes(), *parts])
    if len(raw) > limits.CHUNK_BYTES:
        raise LimitError(f"{batch.rows} events of {len(raw)} bytes in one TAIL")
    first = bounds(batch, "ord").low
    head = _HEAD.pack(first, batch.rows, len(entries), len(raw))
    return head + zstd.compress(raw), size


def rows_in(payload: bytes | memoryview) -> int:
    """The number of events in a tail, which may yet turn out not to be readable.

    Args:
        payload: The payload of a TAIL record.

    Returns:
        Their number.

    Raises:
        DamagedError: The payload is too short.
    """
    return _head(payload)[1]


def decode(payload: bytes | memoryview, schema: Schema) -> Batch:
    """Read a tail.

    Args:
        payload: The payload of a TAIL record.
        schema: The columns.

    Returns:
        Its events.

    Raises:
        DamagedError: It is not well formed.
        LimitError: It announces more than the format allows.
    """
    rows, size, raw = _decompressed(payload)
    entries, memory = read_entries(raw[:size], 0, schema, EVENTS)
    if memory > limits.CHUNK_BYTES + limits.ROW_BYTES:
        raise LimitError(f"a TAIL of {memory} bytes in memory", expected="at most 32 MiB")
    found = {}
    at = size
    for name, entry in entries.items():
        if entry.stored != entry.decoded or entry.crc:
            raise DamagedError(f"a TAIL's entry of column {name} is not as it must be")
        found[name] = decode_column(entry, rows, raw[at : at + entry.decoded])
        at += entry.decoded
    if at != len(raw):
        raise DamagedError(f"a TAIL has {len(raw)} bytes", expected=str(at))
    return Batch(rows, found)


def column_ids(payload: bytes | memoryview) -> list[int]:
    """The columns that have a value in a tail, whether their descriptions are known or not.

    Args:
        payload: The payload of a TAIL record.

    Returns:
        Their ids.

    Raises:
        DamagedError: It is not well formed.
        LimitError: It announces more than the format allows.
    """
    _, size, raw = _decompressed(payload)
    ids: list[int] = np.frombuffer(raw[:size], ENTRIES)["id"].tolist()
    return ids


def _decompressed(payload: bytes | memoryview) -> tuple[int, int, bytes]:
    """Rows, length of the directory, and the directory with the columns behind it."""
    _, rows, columns, decoded = _head(payload)
    size = columns * ENTRIES.itemsize
    if not 0 < rows <= limits.CHUNK_ROWS:
        raise LimitError(f"a TAIL of {rows} rows", expected="1 to 65,536")
    if decoded > limits.CHUNK_BYTES or size > min(decoded, limits.DIRECTORY_BYTES):
        raise LimitError(f"a TAIL of {columns} columns in {decoded} bytes")
    return rows, size, zstd.decompress(memoryview(payload)[_HEAD.size :], decoded)


def _head(payload: bytes | memoryview) -> tuple[int, int, int, int]:
    if len(payload) < _HEAD.size:
        raise DamagedError("a TAIL is too short")
    first, rows, columns, decoded = _HEAD.unpack_from(payload)
    return first, rows, columns, decoded


class Waiting(NamedTuple):
    """A TAIL that no chunk has superseded yet."""

    number: int
    """Of its record."""
    offset: int
    length: int
    rows: int
    payload: bytes


class Tails:
    """Follows which TAILs are superseded, in file order.

    A chunk holds the rows of the tails that it names, which stand before it; tails that wait when
    it names none of them, or later ones, lost their own chunk.
    """

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._bytes = 0
        self.rows = 0
        """Events in the tails that wait."""

    def add(self, tail: Waiting) -> list[Waiting]:
        """Take in a tail.

        Args:
            tail: The next one in the file.

        Returns:
            Tails that no chunk can supersede any more, as they are too many for one.
        """
        rows, size = self.rows + tail.rows, self._bytes + len(tail.payload)
        late = []
        if rows > limits.CHUNK_ROWS or size > limits.RECORD_PAYLOAD_BYTES:
            late = self.rest()
        self._waiting.append(tail)
        self.rows += tail.rows
        self._bytes += len(tail.payload)
        return late

    def chunk(self, number: int, named: Superseded) -> list[Waiting]:
        """Take in an intact chunk.

        Args:
            number: Of its record.
            named: The tails that it supersedes.

        Returns:
            The tails before it whose rows are in no chunk, in order; they come before its rows.
        """
        waiting = self.rest()
        if not named.records:
            return waiting
        return [t for t in waiting if not named.first <= t.number < number]

    def peek(self) -> list[Waiting]:
        """The tails that wait."""
        return list(self._waiting)

    def rest(self) -> list[Waiting]:
        """Let go of the tails that still wait, in order; at the end of a file they are live."""
        waiting, self._waiting = self._waiting, []
        self.rows = self._bytes = 0
        return waiting
