"""CHUNK_INDEX: what a chunk holds, so that it need not be read (spec/kcap.md, clause 8.1)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from construct import Int32ul, Int64sl, Struct
from construct.core import ConstructError

from kcap import limits
from kcap.errors import DamagedError, LimitError
from kcap.format import bloom, zstd
from kcap.format.bloom import Bloom
from kcap.format.chunk import Bounds, bounds
from kcap.format.cursor import Cursor
from kcap.format.integers import decode_integers, encode_integers
from kcap.format.record import padded
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass

_HEAD: Final = Struct(
    "number" / Int32ul,
    "rows" / Int32ul,
    "ts_min" / Int64sl,
    "ts_max" / Int64sl,
    "seq_min" / Int64sl,
    "seq_max" / Int64sl,
    "ord_min" / Int64sl,
    "ord_max" / Int64sl,
    "backward" / Int32ul,
    "timeless" / Int32ul,
    "types" / Int32ul,
    "state_rows" / Int32ul,
)
_TYPE: Final = struct.Struct("<IH")
"""Count of a type and length of its name; construct takes 2 ms for the types of a chunk."""
_SECTION: Final = struct.Struct("<HxxI")
_PIDS: Final = struct.Struct("<IBxxxQI4x")
_PID_TAG: Final = 1
_BLOOM_TAG: Final = 2


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """What one chunk holds."""

    number: int
    rows: int
    ts: Bounds
    seq: Bounds
    ord: Bounds
    backward: int
    timeless: int
    state_rows: int
    types: Mapping[str, int]
    """Event name to count; of a name its first 65,535 bytes."""
    pids: npt.NDArray[np.int64] | None = field(default=None, compare=False)
    """The values of the ``pid`` column, ascending; None where the index does not say."""
    strings: Bloom | None = field(default=None, compare=False)
    """The values of text columns and of lists of text; None where the index does not say."""

    def pack(self) -> bytes:
        """The payload."""
        head: dict[str, Any] = {n: getattr(self, n) for n in ("number", "rows", "backward")}
        head |= {"timeless": self.timeless, "state_rows": self.state_rows}
        head["types"] = len(self.types)
        for name in ("ts", "seq", "ord"):
            head[f"{name}_min"], head[f"{name}_max"] = getattr(self, name)
        parts = [_HEAD.build(head)]
        for name in sorted(self.types):
            # A name is a value of the event column; its first 64 KiB less one are enough here.
            raw = name.encode()[:0xFFFF]
            parts += [_TYPE.pack(self.types[name], len(raw)), raw]
        payload = _aligned(b"".join(parts))
        if self.pids is not None:
            payload += _section(_PID_TAG, _packed_pids(self.pids))
        if self.strings is not None:
            payload += _section(_BLOOM_TAG, self.strings.bits)
        return payload

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> ChunkIndex:
        """Read the payload.

        Args:
            raw: The payload.

        Returns:
            The index.

        Raises:
            DamagedError: It is not well formed.
        """
        raw = bytes(raw)
        try:
            head = _HEAD.parse(raw)
        except ConstructError as e:
            raise DamagedError(f"a CHUNK_INDEX is not valid: {e}") from e
        at = _HEAD.sizeof()
        types = {}
        for _ in range(head.types):
            if at + _TYPE.size > len(raw):
                raise DamagedError("a CHUNK_INDEX is not valid: its types are cut")
            count, length = _TYPE.unpack_from(raw, at)
            at += _TYPE.size + length
            types[raw[at - length : at].decode("utf-8", "replace")] = count
        sections = _sections(raw, padded(at))
        strings = sections.get(_BLOOM_TAG)
        if strings is not None and len(strings) % bloom.BLOCK_BYTES:
            raise DamagedError(f"a bloom filter has {len(strings)} bytes", expected="32 a block")
        return cls(
            head.number,
            head.rows,
            Bounds(head.ts_min, head.ts_max),
            Bounds(head.seq_min, head.seq_max),
            Bounds(head.ord_min, head.ord_max),
            head.backward,
            head.timeless,
            head.state_rows,
            types,
            _unpacked_pids(sections[_PID_TAG]) if _PID_TAG in sections else None,
            None if strings is None else Bloom(strings),
        )


class Indexer:
    """Makes the index of one chunk after another."""

    def __init__(self) -> None:
        self.last_ts: int | None = None
        """The time of the last row that has one; to be set where the rows before were not seen."""

    def index(self, batch: Batch, number: int, strings: Bloom | None = None) -> ChunkIndex:
        """Look at the rows of a chunk.

        Args:
            batch: Its rows.
            number: Its number.
            strings: Tells which strings it holds.

        Returns:
            Its index.
        """
        times = batch.get("ts")
        stamps = np.asarray(times.values) if times is not None else np.zeros(0, np.int64)
        if self.last_ts is not None:
            stamps = np.concatenate([[self.last_ts], stamps])
        if len(stamps):
            self.last_ts = int(stamps[-1])
        return ChunkIndex(
            number=number,
            rows=batch.rows,
            ts=bounds(batch, "ts"),
            seq=bounds(batch, "seq"),
            ord=bounds(batch, "ord"),
            backward=int((stamps[1:] < stamps[:-1]).sum()),
            timeless=batch.rows - (0 if times is None else len(times)),
            state_rows=counts(batch, "kind").get("state", 0),
            types=counts(batch, "event"),
            pids=pids_of(batch),
            strings=strings,
        )


def pids_of(batch: Batch) -> npt.NDArray[np.int64]:
    """The process ids of a chunk.

    Args:
        batch: Its rows.

    Returns:
        The distinct values of the column ``pid``, ascending.
    """
    column = batch.get("pid")
    if column is None or column.cls is not TypeClass.I64:
        return np.zeros(0, np.int64)
    return np.sort(np.asarray(pc.unique(column.values)))


def counts(batch: Batch, name: str) -> dict[str, int]:
    """How often each value of a text column occurs.

    Args:
        batch: The events.
        name: The column.

    Returns:
        Value to count, of the values that occur.
    """
    column = batch.get(name)
    if column is None:
        return {}
    numbers = np.bincount(column.codes(), minlength=len(column.values.dictionary))
    entries = column.values.dictionary.to_pylist()
    found: Counter[str] = Counter()
    for entry, count in zip(entries, numbers.tolist(), strict=True):
        if count:
            found[entry] += count
    return dict(found)


def _aligned(payload: bytes) -> bytes:
    return payload.ljust(padded(len(payload)), b"\0")


def _section(tag: int, content: bytes) -> bytes:
    return _aligned(_SECTION.pack(tag, len(content)) + content)


def _sections(raw: bytes, at: int) -> dict[int, bytes]:
    """The sections behind the types, by tag; unknown ones too, as nobody asks for them."""
    found = {}
    while at < len(raw):
        if at + _SECTION.size > len(raw):
            raise DamagedError("a section of a CHUNK_INDEX is cut")
        tag, length = _SECTION.unpack_from(raw, at)
        at += _SECTION.size
        if at + length > len(raw):
            raise DamagedError(f"a section of {length} bytes does not fit its CHUNK_INDEX")
        if tag in found:
            raise DamagedError(f"section {tag} of a CHUNK_INDEX comes twice")
        found[tag] = raw[at : at + length]
        at += padded(length)
    return found


def _packed_pids(pids: npt.NDArray[np.int64]) -> bytes:
    if not len(pids):
        return _PIDS.pack(0, 0, 0, 0)
    encoded = encode_integers(pids)
    frame = zstd.compress(encoded.data) if encoded.data else b""
    head = _PIDS.pack(len(pids), encoded.encoding, encoded.base, len(encoded.data))
    return head + frame


def _unpacked_pids(raw: bytes) -> npt.NDArray[np.int64]:
    if len(raw) < _PIDS.size:
        raise DamagedError("a set of pids is cut")
    count, encoding, base, decoded = _PIDS.unpack_from(raw)
    if count > limits.CHUNK_ROWS or decoded > 8 * count + 8:
        raise LimitError(f"a set of {count} pids", expected=f"at most {limits.CHUNK_ROWS}")
    data = zstd.decompress(raw[_PIDS.size :], decoded) if decoded else b""
    cursor = Cursor(data)
    values: npt.NDArray[np.int64] = decode_integers(encoding, base, count, cursor, signed=True)
    cursor.end()
    if not bool((values[1:] > values[:-1]).all()):
        raise DamagedError("a set of pids is not sorted")
    return values
