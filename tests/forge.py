"""Captures that no writer makes: every checksum right, and something wrong all the same."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from support import FILE_ID, opened

from kcap.format import chunk, payloads, record, scan
from kcap.format.record import MAGIC, NEEDED, Kind

_HEADER = struct.Struct("<4sBBHQQI")
_ENTRY = struct.Struct("<IBBBBIQIIIII")
_NAMES = (
    *("id", "cls", "presence", "encoding", "zero", "present"),
    *("base", "distinct", "offset", "stored", "decoded", "crc"),
)
_BODY = struct.Struct("<IBxxx")


@dataclass(frozen=True)
class Part:
    """A record as it is to be written; None is what a writer would take."""

    kind: int
    payload: bytes
    flags: int | None = None
    number: int | None = None
    length: int | None = None
    version: int = 1
    was_at: int | None = None
    """Its offset in the capture that it was taken from."""


def parts_of(data: bytes) -> list[Part]:
    """The records of an intact capture."""
    found = [r for r in opened(data).scanner().records() if isinstance(r, scan.Record)]
    return [Part(r.header.kind, bytes(r.payload), flags=_flags(r), was_at=r.offset) for r in found]


def _flags(found: scan.Record) -> int | None:
    """The flags of a record whose kind nothing is known of."""
    return None if found.header.kind in list(Kind) else found.header.flags


def packed(part: Part, number: int, file_id: bytes = FILE_ID) -> bytes:
    """A record whose checksums hold."""
    needed = part.kind in NEEDED
    flags = part.flags if part.flags is not None else 0 if needed else record.ANCILLARY
    length = len(part.payload) if part.length is None else part.length
    number = number if part.number is None else part.number
    head = _HEADER.pack(
        MAGIC, part.kind, flags, part.version, length, number, zlib.crc32(part.payload)
    )
    crc = struct.pack("<I", zlib.crc32(file_id + head))
    return head + crc + part.payload.ljust(record.padded(len(part.payload)), b"\0")


def assembled(
    parts: Sequence[Part], *, edit: Callable[..., Any] | None = None, file_id: bytes = FILE_ID
) -> bytes:
    """A capture of these records; CHECKPOINTs and FOOTER get the chain and the places that fit.

    Args:
        parts: The records.
        edit: Changes the FOOTER's chunk table, a writable array, and its totals; may return
            other totals.
        file_id: The file's 16 bytes.

    Returns:
        Its bytes.
    """
    out = b""
    chain = record.Chain(file_id)
    places: dict[int, tuple[int, int]] = {}
    before = (0, bytes(32))
    for number, part in enumerate(parts):
        if part.kind == Kind.FOOTER:
            footer = payloads.Footer.unpack(part.payload)
            table, totals = _placed(footer.chunks, footer.totals, places)
            if edit is not None:
                totals = edit(table, totals) or totals
            made = payloads.Footer(footer.file_id, chain.value, table, totals)
            part = replace(part, payload=made.pack(len(out)))  # noqa: PLW2901
        elif part.kind == Kind.CHECKPOINT:
            point = payloads.Checkpoint.unpack(part.payload)
            table, totals = _placed(point.chunks, point.totals, places)
            fresh = payloads.Checkpoint(point.file_id, chain.value, *before, table, totals)
            part = replace(part, payload=fresh.pack())  # noqa: PLW2901
        raw = packed(part, number, file_id)
        chain.add(raw)
        if part.kind == Kind.CHECKPOINT:
            before = (len(out), hashlib.sha256(raw).digest())
        if part.was_at is not None:
            places[part.was_at] = (len(out), len(raw))
        out += raw
    return out


def _placed(table: Any, totals: Any, places: dict[int, tuple[int, int]]) -> tuple[Any, Any]:
    """A chunk table, and totals, with the places to which records have come."""
    table, totals = table.copy(), dict(totals)
    for row in table:
        old = int(row["offset"])
        row["offset"], row["length"] = places.get(old, (old, row["length"]))
        row["index"] = places.get(int(row["index"]), (row["index"], 0))[0]
    states = totals.get("states")
    if isinstance(states, list):  # else it was forged, and stays so
        totals["states"] = [_state_place(state, places) for state in states]
    return table, totals


def _state_place(state: Any, places: dict[int, tuple[int, int]]) -> Any:
    """The new place of a STATE; of what is none, itself."""
    known = isinstance(state, list) and state and isinstance(state[0], int)
    return list(places.get(state[0], state)) if known else state


def with_part(data: bytes, kind: Kind, edit: Callable[[Part], Part], nth: int = 0) -> bytes:
    """A capture with one of its records changed, and every checksum made right again."""
    parts = parts_of(data)
    at = [i for i, p in enumerate(parts) if p.kind == kind][nth]
    parts[at] = edit(parts[at])
    return assembled(parts)


def inserted(data: bytes, part: Part) -> bytes:
    """A capture with a record more, in front of its first chunk's SCHEMA."""
    parts = parts_of(data)
    at = next(i for i, p in enumerate(parts) if p.kind == Kind.SCHEMA)
    return assembled([*parts[:at], part, *parts[at:]])


def body(stored: bytes, length: int | None = None, codec: int = 0) -> bytes:
    """A body around any bytes."""
    return _BODY.pack(len(stored) if length is None else length, codec) + stored


def raw_frame(content: bytes) -> bytes:
    """A zstd frame that stores its content as it is."""
    assert len(content) < 1 << 17
    head = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(content))
    return head + (len(content) << 3 | 1).to_bytes(3, "little") + content


class ChunkParts:
    """The payload of a CHUNK record, taken apart."""

    def __init__(self, payload: bytes) -> None:
        directory = chunk.directory_bytes(memoryview(payload))
        size = chunk.HEAD.sizeof()
        self.head = chunk.HEAD.parse(directory)
        self.entries = [
            SimpleNamespace(**dict(zip(_NAMES, values, strict=True)))
            for values in _ENTRY.iter_unpack(directory[size:])
        ]
        start = len(directory) + 8
        self.frames = [
            payload[start + e.offset : start + e.offset + e.stored] for e in self.entries
        ]

    def packed(self) -> bytes:
        """The payload, with offsets, lengths and checksums that fit the frames."""
        offset = 0
        for entry, frame in zip(self.entries, self.frames, strict=True):
            entry.offset, entry.stored, entry.crc = offset, len(frame), zlib.crc32(frame)
            offset += len(frame)
        self.head.columns = len(self.entries)
        packed = [_ENTRY.pack(*(getattr(e, n) for n in _NAMES)) for e in self.entries]
        directory = chunk.HEAD.build(self.head) + b"".join(packed)
        crc = struct.pack("<I", zlib.crc32(directory))
        return struct.pack("<I", len(directory)) + directory + crc + b"".join(self.frames)


def with_chunk(data: bytes, edit: Callable[[ChunkParts], object], nth: int = 0) -> bytes:
    """A capture with one of its chunks changed, and every checksum made right again."""

    def change(part: Part) -> Part:
        taken = ChunkParts(part.payload)
        edit(taken)
        return replace(part, payload=taken.packed())

    return with_part(data, Kind.CHUNK, change, nth)
