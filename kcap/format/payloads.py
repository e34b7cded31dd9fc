"""Payloads of fixed layout: FILE_HEADER, STATE, FOOTER (spec/kcap.md, clauses 4.1, 4.5, 8.2)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.errors import DamagedError, LimitError, VersionError
from kcap.format import body
from kcap.format.record import ALIGNMENT, END_MAGIC, HEADER_BYTES, padded
from kcap.model.classes import I64_MAX, I64_MIN

MAJOR: Final = 1
MINOR: Final = 1
FEATURES: Final = ("planes",)
"""What a reader must know of this version that one of 1.0 does not."""

FILE_ID_BYTES: Final = 16
END_BYTES: Final = 24

_HEADER: Final = struct.Struct("<16sHH4xq")
_END: Final = struct.Struct("<QQ8s")
_FOOTER: Final = struct.Struct("<16s32sQ")
_CHECKPOINT: Final = struct.Struct("<16s32sQ32sQ")
_SIZE: Final = struct.Struct("<Q")

_TOTALS: Final = {
    "backward_steps": int,
    "events": int,
    "loss": list,
    "records": dict,
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

NO_CHUNK: Final = (1 << 32) - 1
"""The number of a table entry that stands for a TAIL."""


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
        named = requires if isinstance(requires, list) else [requires]
        unknown = [name for name in named if name not in FEATURES]
        if unknown:
            raise VersionError(f"the capture needs the features {unknown}", hint=hint)


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
        payload = head + _packed_part(self.chunks, self.totals)
        payload = payload.ljust(padded(len(payload)), b"\0")
        return payload + _END.pack(offset, len(payload) + END_BYTES, END_MAGIC)

    def fits(self, offset: int) -> bool:
        """Whether it can be true: chunks lie before it, in order; totals are what they must be.

        Args:
            offset: Where the record starts.

        Returns:
            False where a reader should not rely on it.
        """
        return _fits(self.chunks, self.totals, 0, offset)

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
        if len(raw) < _FOOTER.size + _SIZE.size + END_BYTES:
            raise DamagedError("the FOOTER is too short")
        file_id, chain, count = _FOOTER.unpack_from(raw)
        rest = memoryview(raw)[_FOOTER.size : len(raw) - END_BYTES]
        return cls(file_id, chain, *_unpacked_part(rest, count, "FOOTER"))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is new since the CHECKPOINT before."""

    file_id: bytes
    chain: bytes
    previous: int
    """Offset of the CHECKPOINT before, 0 for none."""
    previous_hash: bytes
    """SHA-256 of that record, all its bytes."""
    chunks: npt.NDArray[np.void]
    totals: Mapping[str, Any]

    def pack(self) -> bytes:
        """The payload."""
        head = _CHECKPOINT.pack(
            self.file_id, self.chain, self.previous, self.previous_hash, len(self.chunks)
        )
        return head + _packed_part(self.chunks, self.totals)

    def fits(self, offset: int) -> bool:
        """Whether it can be true; as `Footer.fits`, and the one before it stands before it.

        Args:
            offset: Where the record starts.

        Returns:
            False where a reader should not rely on it.
        """
        return self.previous < offset and _fits(self.chunks, self.totals, self.previous, offset)

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Checkpoint:
        """Read the payload.

        Args:
            raw: The payload.

        Returns:
            The checkpoint.

        Raises:
            DamagedError: It is not well formed.
        """
        if len(raw) < _CHECKPOINT.size + _SIZE.size:
            raise DamagedError("a CHECKPOINT is too short")
        file_id, chain, previous, digest, count = _CHECKPOINT.unpack_from(raw)
        rest = memoryview(raw)[_CHECKPOINT.size :]
        return cls(file_id, chain, previous, digest, *_unpacked_part(rest, count, "CHECKPOINT"))


def _packed_part(chunks: npt.NDArray[np.void], totals: Mapping[str, Any]) -> bytes:
    """Table entries and a body, as FOOTER and CHECKPOINT have them."""
    text = body.pack(dict(totals), limits.SCHEMA_BYTES)
    return chunks.tobytes() + _SIZE.pack(len(text)) + text


def _unpacked_part(
    raw: memoryview, count: int, what: str
) -> tuple[npt.NDArray[np.void], dict[str, Any]]:
    """`_packed_part` undone."""
    end = count * TABLE.itemsize
    if end + _SIZE.size > len(raw):
        raise DamagedError(f"a {what} of {count} chunks does not fit its record")
    chunks = np.frombuffer(raw, TABLE, count)
    (size,) = _SIZE.unpack_from(raw, end)
    end += _SIZE.size
    if end + size > len(raw):
        raise LimitError(f"the body of a {what} does not fit its record")
    return chunks, body.unpack_object(raw[end : end + size], what, limits.SCHEMA_BYTES)


def _fits(chunks: npt.NDArray[np.void], totals: Mapping[str, Any], start: int, end: int) -> bool:
    at, length = chunks["offset"], chunks["length"]
    if (at > end).any() or (length > np.uint64(end) - at).any() or (length < HEADER_BYTES).any():
        return False
    # One behind the other: a table that leads back and forth would have a reader search the same
    # bytes again for each of its entries.
    before = np.concatenate([np.array([start], np.uint64), at + length])
    if (at < before[:-1]).any():
        return False
    return (
        all(isinstance(totals.get(n), t) for n, t in _TOTALS.items())
        and all(isinstance(n, int) for d in ("types", "records") for n in totals[d].values())
        and all(_is_range(totals.get(n)) for n in ("ts", "seq"))
    )


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
    if len(tail) != END_BYTES:
        return None
    offset, length, magic = _END.unpack(tail)
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
    entries, at = _state_entries(view)
    tables = []
    for entry in entries:
        length = entry.get("bytes")
        if not isinstance(length, int) or not 0 <= length <= len(view) - at:
            raise DamagedError("a STATE's table does not fit its record")
        tables.append((str(entry.get("name")), view[at : at + length]))
        at += length
    return tables


def state_names(raw: bytes | memoryview) -> list[str]:
    """The tables that a STATE record has.

    Args:
        raw: The start of its payload, with all of its body.

    Returns:
        The name of each table.

    Raises:
        DamagedError: It is not well formed.
    """
    return [str(entry.get("name")) for entry in _state_entries(memoryview(raw))[0]]


def _state_entries(view: memoryview) -> tuple[list[dict[str, Any]], int]:
    """The entries of a STATE's body, and where it ends."""
    if len(view) < _SIZE.size:
        raise DamagedError("a STATE is too short")
    (size,) = _SIZE.unpack_from(view)
    end = _SIZE.size + size
    if end > len(view):
        raise DamagedError("a STATE's body does not fit its record")
    return body.unpack_objects(view[_SIZE.size : end], "STATE"), end
