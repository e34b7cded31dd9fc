"""Payloads of fixed layout: FILE_HEADER, CHUNK_INDEX, FOOTER (spec/kcap.md, clauses 4.1 and 8)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from construct import Const, Int16ul, Int32ul, Int64sl, Struct
from construct.core import ConstructError

from kcap import limits
from kcap.errors import DamagedError, LimitError, VersionError
from kcap.format import body
from kcap.format.chunk import Bounds
from kcap.format.record import ALIGNMENT, END_MAGIC, padded
from kcap.model.classes import I64_MAX, I64_MIN

MAJOR: Final = 1
MINOR: Final = 0
FILE_ID_BYTES: Final = 16
TAIL_BYTES: Final = 24

_HEADER: Final = struct.Struct("<16sHH4xq")
_TAIL: Final = struct.Struct("<QQ8s")
_FOOTER: Final = struct.Struct("<16s32sQ")

_INDEX: Final = Struct(
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
    Const(b"\0\0\0\0"),
)
_TYPE: Final = Struct("count" / Int32ul, "length" / Int16ul)

_TOTALS: Final = {
    "backward_steps": int,
    "events": int,
    "loss": list,
    "schema": list,
    "sources": list,
    "state_rows": int,
    "states": list,
    "timeless": int,
    "types": dict,
}

TABLE: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u8"),
        ("index", "<u8"),
        ("number", "<u4"),
        ("rows", "<u4"),
        ("ts_min", "<i8"),
        ("ts_max", "<i8"),
        ("ord_min", "<i8"),
        ("ord_max", "<i8"),
    ]
)
"""One entry of the footer's chunk table, 64 bytes."""


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The first record, twice."""

    file_id: bytes
    created_ns: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    major: int = MAJOR
    minor: int = MINOR

    def pack(self) -> bytes:
        """The payload."""
        head = _HEADER.pack(self.file_id, self.major, self.minor, self.created_ns)
        return head + body.pack(dict(self.meta))

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> FileHeader:
        """Read the payload.

        Args:
            raw: The payload.

        Returns:
            The header.

        Raises:
            DamagedError: It is too short, or its body is damaged.
        """
        if len(raw) < _HEADER.size:
            raise DamagedError("the FILE_HEADER is too short")
        file_id, major, minor, created_ns = _HEADER.unpack_from(raw)
        meta = body.unpack_object(raw[_HEADER.size :], "FILE_HEADER") if major == MAJOR else {}
        return cls(file_id, created_ns, meta, major, minor)

    def check(self) -> None:
        """Refuse what this kcap can't read.

        Raises:
            VersionError: A greater major version, or an unknown required feature.
        """
        hint = "use a newer kcap"
        if self.major != MAJOR:
            what = f"format version {self.major}.{self.minor}"
            raise VersionError(what, expected=f"version {MAJOR}", hint=hint)
        requires = self.meta.get("requires") or []
        if requires:
            raise VersionError(f"the capture needs the features {requires}", hint=hint)


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
    types: Mapping[str, int]

    def pack(self) -> bytes:
        """The payload."""
        parts = [
            _INDEX.build(
                {
                    "number": self.number,
                    "rows": self.rows,
                    "ts_min": self.ts.low,
                    "ts_max": self.ts.high,
                    "seq_min": self.seq.low,
                    "seq_max": self.seq.high,
                    "ord_min": self.ord.low,
                    "ord_max": self.ord.high,
                    "backward": self.backward,
                    "timeless": self.timeless,
                    "types": len(self.types),
                }
            )
        ]
        for name in sorted(self.types):
            # A name is a value of the event column; its first 64 KiB less one are enough here.
            raw = name.encode()[:0xFFFF]
            parts += [_TYPE.build({"count": self.types[name], "length": len(raw)}), raw]
        payload = b"".join(parts)
        return payload.ljust(padded(len(payload)), b"\0")

    @classmethod
    def unpack(cls, raw: bytes) -> ChunkIndex:
        """Read the payload.

        Args:
            raw: The payload.

        Returns:
            The index.

        Raises:
            DamagedError: It is not well formed.
        """
        try:
            head = _INDEX.parse(raw)
            at = _INDEX.sizeof()
            types = {}
            for _ in range(head.types):
                entry = _TYPE.parse(raw[at : at + _TYPE.sizeof()])
                at += _TYPE.sizeof() + entry.length
                types[raw[at - entry.length : at].decode("utf-8", "replace")] = int(entry.count)
        except ConstructError as e:
            raise DamagedError(f"a CHUNK_INDEX is not valid: {e}") from e
        return cls(
            head.number,
            head.rows,
            Bounds(head.ts_min, head.ts_max),
            Bounds(head.seq_min, head.seq_max),
            Bounds(head.ord_min, head.ord_max),
            head.backward,
            head.timeless,
            types,
        )


@dataclass(frozen=True, slots=True)
class Footer:
    """The last record of a closed capture."""

    file_id: bytes
    chain: bytes
    chunks: npt.NDArray[np.void]
    """The chunk table, of type `TABLE`."""
    totals: Mapping[str, Any]

    def pack(self, offset: int) -> bytes:
        """The payload.

        Args:
            offset: Where the record will start.

        Returns:
            The payload, a multiple of 8 long.
        """
        head = _FOOTER.pack(self.file_id, self.chain, len(self.chunks))
        text = body.pack(dict(self.totals), limits.SCHEMA_BYTES)
        payload = head + self.chunks.tobytes() + struct.pack("<Q", len(text)) + text
        payload = payload.ljust(padded(len(payload)), b"\0")
        return payload + _TAIL.pack(offset, len(payload) + TAIL_BYTES, END_MAGIC)

    def fits(self, offset: int) -> bool:
        """Whether it can be true: chunks lie before it, and the totals are what they must be.

        Args:
            offset: Where the record starts.

        Returns:
            False where a reader should not rely on it.
        """
        at, length = self.chunks["offset"], self.chunks["length"]
        if (at > offset).any() or (length > np.uint64(offset) - at).any():
            return False
        return (
            all(isinstance(self.totals.get(n), t) for n, t in _TOTALS.items())
            and all(isinstance(n, int) for n in self.totals["types"].values())
            and all(_is_range(self.totals.get(n)) for n in ("ts", "seq"))
        )

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Footer:
        """Read the payload.

        Args:
            raw: The payload.

        Returns:
            The footer.

        Raises:
            DamagedError: It is not well formed.
        """
        if len(raw) < _FOOTER.size + 8 + TAIL_BYTES:
            raise DamagedError("the FOOTER is too short")
        file_id, chain, count = _FOOTER.unpack_from(raw)
        end = _FOOTER.size + count * TABLE.itemsize
        if end + 8 + TAIL_BYTES > len(raw):
            raise DamagedError(f"a FOOTER of {count} chunks does not fit its record")
        chunks = np.frombuffer(raw, TABLE, count, _FOOTER.size)
        (size,) = struct.unpack_from("<Q", raw, end)
        if end + 8 + size + TAIL_BYTES > len(raw):
            raise LimitError("the FOOTER's body does not fit its record")
        totals = body.unpack_object(raw[end + 8 : end + 8 + size], "FOOTER", limits.SCHEMA_BYTES)
        return cls(file_id, chain, chunks, totals)


def _is_range(value: object) -> bool:
    """Whether a value is [least, greatest] of int64, or null."""
    if value is None:
        return True
    return (
        isinstance(value, list)
        and len(value) == 2  # noqa: PLR2004
        and all(isinstance(v, int) and I64_MIN <= v <= I64_MAX for v in value)
    )


def footer_place(tail: bytes) -> tuple[int, int] | None:
    """Where the last bytes of a file say that its FOOTER is.

    Args:
        tail: The last 24 bytes.

    Returns:
        Offset of the record and length of its payload; None where they are no such tail.
    """
    if len(tail) != TAIL_BYTES:
        return None
    offset, length, magic = _TAIL.unpack(tail)
    if magic != END_MAGIC or offset % ALIGNMENT:
        return None
    return int(offset), int(length)


def pack_state(tables: list[tuple[str, bytes]]) -> bytes:
    """The payload of a STATE record (clause 4.5).

    Args:
        tables: Name and chunk payload of each table.

    Returns:
        The payload.
    """
    head = body.pack([{"bytes": len(p), "name": n} for n, p in tables])
    return struct.pack("<Q", len(head)) + head + b"".join(p for _, p in tables)


def unpack_state(raw: bytes | memoryview) -> list[tuple[str, memoryview]]:
    """Read the payload of a STATE record.

    Args:
        raw: The payload.

    Returns:
        Name and chunk payload of each table.

    Raises:
        DamagedError: It is not well formed.
    """
    view = memoryview(raw)
    if len(view) < 8:  # noqa: PLR2004
        raise DamagedError("a STATE is too short")
    (size,) = struct.unpack_from("<Q", view)
    at = 8 + size
    if at > len(view):
        raise DamagedError("a STATE's body does not fit its record")
    tables = []
    for entry in body.unpack_objects(view[8:at], "STATE"):
        length = entry.get("bytes")
        if not isinstance(length, int) or not 0 <= length <= len(view) - at:
            raise DamagedError("a STATE's table does not fit its record")
        tables.append((str(entry.get("name")), view[at : at + length]))
        at += length
    return tables
