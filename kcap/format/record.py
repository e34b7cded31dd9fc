"""Records: the header, its checksums, the hash chain (spec/kcap.md, clause 2)."""

from __future__ import annotations

import hashlib
import struct
import zlib
from enum import IntEnum
from typing import Final, NamedTuple

from kcap.errors import VersionError

MAGIC: Final = b"\x89KCP"
END_MAGIC: Final = b"KCAPEND\n"
HEADER_BYTES: Final = 32
ALIGNMENT: Final = 8
ANCILLARY: Final = 1
VERSION: Final = 1
"""Version of every kind's layout so far."""

LAST_NUMBER: Final = (1 << 63) - 1
"""The greatest number that a record can have."""

_HEADER: Final = struct.Struct("<4sBBHQQI")
_CRC: Final = struct.Struct("<I")


class Kind(IntEnum):
    """What a record holds (clause 2.5)."""

    FILE_HEADER = 1
    SOURCE = 2
    SCHEMA = 3
    CHUNK = 4
    CHUNK_INDEX = 5
    TAIL = 6
    STATE = 7
    LOSS = 8
    HEARTBEAT = 9
    BLOB_BLOCK = 10
    BLOB_MANIFEST = 11
    NOTE = 12
    CHECKPOINT = 13
    FOOTER = 14
    RECOVERY = 15
    SEGMENT = 16
    SEAL = 17


NEEDED: Final = frozenset(
    {Kind.FILE_HEADER, Kind.SCHEMA, Kind.CHUNK, Kind.TAIL, Kind.FOOTER, Kind.SEGMENT}
)
"""Kinds without the ancillary flag: who does not know them can't read the capture."""


_READ: Final = frozenset(Kind) - {Kind.SEGMENT}
"""Kinds that this version reads."""


class Header(NamedTuple):
    """The 32 bytes in front of a payload."""

    kind: int
    flags: int
    version: int
    length: int
    """Length of the payload."""
    number: int
    payload_crc: int

    @property
    def size(self) -> int:
        """Length of the whole record with header and padding."""
        return HEADER_BYTES + padded(self.length)

    @property
    def name(self) -> str:
        """The kind as text."""
        return kind_name(self.kind)


def kind_name(kind: int) -> str:
    """A kind as text.

    Args:
        kind: Its number.

    Returns:
        Its name; of an unknown kind the number.
    """
    try:
        return Kind(kind).name
    except ValueError:
        return f"kind {kind}"


def skipped(header: Header, file: str | None = None, offset: int | None = None) -> bool:
    """Whether a reader passes over a record that it does not know (clause 2.4).

    Args:
        header: The record's header.
        file: The capture's name, for errors.
        offset: Where the record is, for errors.

    Returns:
        True for an ancillary record of an unknown kind or version.

    Raises:
        VersionError: The record is unknown and not ancillary, or has unknown flags.
    """
    unknown = header.version != VERSION or header.kind not in _READ
    if header.flags & ~ANCILLARY or (unknown and not header.flags & ANCILLARY):
        raise VersionError(
            f"this kcap can't read {header.name} records of version {header.version}"
            f" (flags {header.flags})",
            file=file,
            offset=offset,
            record=header.number,
            hint="use a newer kcap",
        )
    return unknown


def padded(length: int) -> int:
    """A length rounded up to the alignment of records.

    Args:
        length: Bytes.

    Returns:
        The least multiple of 8 that is not less.
    """
    return -(-length // ALIGNMENT) * ALIGNMENT


def pack(kind: Kind, number: int, payload: bytes | bytearray, file_id: bytes) -> bytes:
    """A record's header.

    Args:
        kind: What the payload holds.
        number: The record's number.
        payload: The payload.
        file_id: The file's 16 random bytes.

    Returns:
        32 bytes.
    """
    flags = 0 if kind in NEEDED else ANCILLARY
    first = _HEADER.pack(MAGIC, kind, flags, VERSION, len(payload), number, zlib.crc32(payload))
    return first + _CRC.pack(zlib.crc32(file_id + first))


def whole(kind: Kind, number: int, payload: bytes | bytearray, file_id: bytes) -> bytes:
    """A record with header and padding.

    Args:
        kind: What the payload holds.
        number: The record's number.
        payload: The payload.
        file_id: The file's 16 random bytes.

    Returns:
        All of its bytes.
    """
    return pack(kind, number, payload, file_id) + payload.ljust(padded(len(payload)), b"\0")


def unpack(raw: bytes, file_id: bytes) -> Header | None:
    """Read a header.

    Args:
        raw: At least 32 bytes.
        file_id: The file's 16 random bytes.

    Returns:
        The header; None where magic or CRC do not hold.
    """
    if raw[:4] != MAGIC or len(raw) < HEADER_BYTES:
        return None
    (crc,) = _CRC.unpack_from(raw, HEADER_BYTES - 4)
    if zlib.crc32(file_id + raw[: HEADER_BYTES - 4]) != crc:
        return None
    return unchecked(raw)


def unchecked(raw: bytes | bytearray | memoryview) -> Header:
    """Read a header without a look at its CRC.

    Args:
        raw: At least 32 bytes.

    Returns:
        What stands there.
    """
    return Header(*_HEADER.unpack_from(raw)[1:])


class Chain:
    """The hash chain over the records of a file (clause 2.6)."""

    def __init__(self, file_id: bytes) -> None:
        self.value = hashlib.sha256(file_id).digest()

    def add(self, *parts: bytes | bytearray | memoryview) -> None:
        """Take in one record.

        Args:
            parts: Header, payload and padding, in any division.
        """
        record = hashlib.sha256()
        for part in parts:
            record.update(part)
        self.value = hashlib.sha256(self.value + record.digest()).digest()
