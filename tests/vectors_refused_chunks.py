"""Vectors of chunks whose payload, or its sizes, make no sense; as vectors_refused_frames."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import forge
from forge import ChunkParts
from support import SOURCE
from vectors import Vector, base, column, events, head_bytes, made, rows_of
from vectors_refused_frames import NAMES, refused

from kcap.format.record import Kind
from kcap.model.batch import Batch


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from payloads()
    yield floats()
    yield bomb_of_constants()


def with_payload(change: Callable[[bytes], bytes]) -> bytes:
    """The capture with another payload in its first chunk."""
    edit = lambda part: replace(part, payload=change(part.payload))  # noqa: E731
    return forge.with_part(base(), Kind.CHUNK, edit)


def sized(raw: bytes, size: int) -> bytes:
    """Another length of the directory."""
    return struct.pack("<I", size) + raw[4:]


def poked(raw: bytes, at: int, value: int) -> bytes:
    """Another number in the directory, whose CRC holds again."""
    (size,) = struct.unpack_from("<I", raw)
    found = bytearray(raw[4 : 4 + size])
    struct.pack_into("<I", found, at, value)
    return raw[:4] + found + struct.pack("<I", zlib.crc32(found)) + raw[8 + size :]


def columns(raw: bytes, count: int) -> bytes:
    """Another count of columns."""
    return poked(raw, 44, count)


def tail_zero(raw: bytes) -> bytes:
    """No zero at the end of the directory's head."""
    return poked(raw, head_bytes() - 4, 1 << 24)


def gap(raw: bytes) -> bytes:
    """The second frame a byte behind its place."""
    at = head_bytes() + 40 + 24
    (offset,) = struct.unpack_from("<I", raw, 4 + at)
    return poked(raw, at, offset + 1)


def crc(raw: bytes) -> bytes:
    """A CRC of the directory that does not hold."""
    (size,) = struct.unpack_from("<I", raw)
    return raw[: 4 + size] + bytes(4) + raw[8 + size :]


def payloads() -> Iterator[Vector]:
    """Payloads whose directory can't be found in them."""
    cases: list[tuple[str, str, str, Callable[[bytes], bytes], str]] = [
        ("chunk-empty", "6.1", "A payload of no bytes.", lambda _: b"", "too short"),
        ("directory-cut", "6.1", "A payload of 40 bytes.", lambda raw: raw[:40], "too short"),
        (
            "directory-longer-than-chunk",
            "3.1 6.1",
            "A directory longer than the payload.",
            lambda raw: sized(raw, len(raw)),
            "does not fit its chunk",
        ),
        (
            "directory-17-mib",
            "3.1",
            "A directory that is said to have 17 MiB.",
            lambda raw: sized(raw, 17 << 20),
            "a directory of 17825792 bytes",
        ),
        ("directory-crc", "6.1", "The directory's CRC does not hold.", crc, "fails its CRC"),
        (
            "directory-2-32-columns",
            "3.1 6.2",
            "A directory of 2^32-1 columns.",
            lambda raw: columns(raw, (1 << 32) - 1),
            "a directory has",
        ),
        (
            "directory-column-too-few",
            "6.2",
            "A column less than there are entries.",
            lambda raw: columns(raw, len(NAMES) - 1),
            "a directory has",
        ),
        ("directory-head-zero-set", "6.2", "The last field is not zero.", tail_zero, "directory"),
        (
            "directory-gap",
            "6.2",
            "A gap in front of the second frame.",
            gap,
            "is not in its place in the directory",
        ),
        (
            "frames-cut",
            "6.1 6.3",
            "The payload ends before its last frame.",
            lambda raw: raw[:-1],
            "fails its CRC",
        ),
    ]
    for name, clauses, says, change, finding in cases:
        yield refused(name, says, clauses, with_payload(change), finding)


def floats() -> Vector:
    """Floats in a form that they do not have."""
    real = column("f64", [i / 8 for i in range(4)])
    data = made(Batch(4, {"arg_real__f64": real}).with_before([SOURCE]), events(4, 4))
    edit = lambda taken: vars(taken.entries[0]).update(encoding=1)  # noqa: E731
    data = forge.with_chunk(data, edit)
    return refused("f64-encoding", "Floats of encoding 1.", "6.6", data, "no encoding 1")


def bomb_of_constants() -> Vector:
    """Columns that take no byte in the file and 8 a value in memory."""
    wide = Batch(1, {f"arg_c{i:03}__i64": column("i64", [i]) for i in range(130)})
    data = made(wide.with_before([SOURCE]), events(4), rows=1)

    def edit(taken: ChunkParts) -> None:
        taken.head.rows = 65_536
        for found in taken.entries:
            found.present = 65_536

    return refused(
        "chunk-of-65-mib-of-constants",
        "130 columns of 65,536 equal values, without a frame: more than a chunk may take.",
        "3.1 3.3",
        forge.with_chunk(data, edit),
        "bytes in memory",
        rows_of(events(4)),
        1,
    )
