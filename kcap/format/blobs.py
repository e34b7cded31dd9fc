"""Blobs: what BLOB_BLOCK and BLOB_MANIFEST records hold (spec/kcap.md, clause 9)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from kcap import limits
from kcap.errors import DamagedError, LimitError
from kcap.format import body, zstd
from kcap.format.record import MAGIC
from kcap.model.artifact import Gap
from kcap.model.classes import I64_MAX, I64_MIN

__all__ = ["Block", "Extent", "Gap", "Manifest"]

HASH_BYTES: Final = 32

_BLOCK: Final = struct.Struct("<IB3sI")
_STORED: Final = 0
_ZSTD: Final = 1
BLOCK_HEAD_BYTES: Final = _BLOCK.size + HASH_BYTES
BLOCK_PAYLOAD_BYTES: Final = BLOCK_HEAD_BYTES + limits.BLOB_BLOCK_BYTES
"""Longest payload of a BLOB_BLOCK: no block grows by being stored."""

_MANIFEST: Final = struct.Struct("<II")
_RANGE: Final = struct.Struct("<QII32s")
_RANGES: Final = np.dtype(
    [("length", "<u8"), ("form", "<u4"), ("reason", "<u4"), ("sha256", "<u8", (4,))]
)


class Block(NamedTuple):
    """A part of one or more blobs."""

    sha256: bytes
    data: bytes
    """1 byte to 1 MiB."""

    @classmethod
    def of(cls, data: bytes) -> Block:
        """The block of some bytes.

        Args:
            data: 1 byte to 1 MiB.

        Returns:
            They and their hash.
        """
        return cls(hashlib.sha256(data).digest(), data)


def pack_block(block: Block, level: int = zstd.LEVEL) -> bytes:
    """Write a block.

    Args:
        block: The block.
        level: zstd's level.

    Returns:
        The payload of a BLOB_BLOCK record.
    """
    digest, data = block
    assert 0 < len(data) <= limits.BLOB_BLOCK_BYTES
    codec, stored = _ZSTD, zstd.compress(data, level)
    if len(stored) >= len(data):
        codec, stored = _STORED, data
    raw = digest + stored
    mask = least_mask(raw)
    return _BLOCK.pack(len(data), codec, bytes(3), mask) + masked(raw, mask)


def unpack_block(payload: bytes | memoryview) -> Block:
    """Read a block.

    Args:
        payload: The payload of a BLOB_BLOCK record.

    Returns:
        The block; its bytes have the hash that it says.

    Raises:
        DamagedError: It is not well formed, or its bytes have another hash.
        LimitError: It announces more than the format allows.
    """
    length, codec, mask = _block_head(payload)
    if len(payload) > BLOCK_PAYLOAD_BYTES:
        raise LimitError(f"a BLOB_BLOCK of {len(payload)} bytes", expected="at most 1 MiB")
    if MAGIC in bytes(payload):
        raise DamagedError("a BLOB_BLOCK holds what begins a record", expected="a mask over it")
    raw = masked(payload[_BLOCK.size :], mask)
    digest, data = raw[:HASH_BYTES], raw[HASH_BYTES:]
    if codec == _ZSTD:
        data = zstd.decompress(data, length)
    elif codec != _STORED or len(data) != length:
        raise DamagedError("a BLOB_BLOCK has no valid form", expected="stored or zstd bytes")
    if hashlib.sha256(data).digest() != digest:
        raise DamagedError("a BLOB_BLOCK's bytes do not have its hash")
    return Block(digest, data)


def block_hash(payload: bytes | memoryview) -> bytes:
    """Which block a payload says it holds.

    Args:
        payload: At least the first 44 bytes of a BLOB_BLOCK's payload.

    Returns:
        The SHA-256, not compared with anything.

    Raises:
        DamagedError: It is too short.
        LimitError: It announces more than the format allows.
    """
    _, _, mask = _block_head(payload)
    return masked(payload[_BLOCK.size : BLOCK_HEAD_BYTES], mask)


def _block_head(payload: bytes | memoryview) -> tuple[int, int, int]:
    """Decoded length, codec and mask."""
    if len(payload) < BLOCK_HEAD_BYTES:
        raise DamagedError("a BLOB_BLOCK is too short")
    length, codec, zeros, mask = _BLOCK.unpack_from(payload)
    if not 0 < length <= limits.BLOB_BLOCK_BYTES:
        raise LimitError(f"a BLOB_BLOCK announces {length} bytes", expected="1 byte to 1 MiB")
    if any(zeros):
        raise DamagedError("a BLOB_BLOCK has no valid form", expected="zeros behind its codec")
    return length, codec, mask


def least_mask(raw: bytes) -> int:
    """The mask under which bytes hold nothing that begins a record (clause 9.3).

    Whoever is recorded may know everything about the capture, and put whole records of it into
    his files: behind damage no search may find them.

    Args:
        raw: At most 1 MiB and 32 bytes.

    Returns:
        32 bits; 0 where no mask is needed. As each place rules out one mask alone, there is always
        one that is not much greater than 2^20.
    """
    if MAGIC not in raw:
        return 0
    values, magic = np.frombuffer(raw, np.uint8), np.frombuffer(MAGIC, np.uint8)
    ruled_out = [np.empty(0, "<u4")]
    for phase in range(min(4, len(values) - 3)):
        words = values[phase : phase + (len(values) - phase) // 4 * 4].reshape(-1, 4)
        # What would make the magic of each word, turned to where the mask begins.
        needed = np.roll(words ^ magic, phase, axis=1).view("<u4").reshape(-1)
        ruled_out.append(needed[needed <= len(values)])
    taken = np.unique(np.concatenate(ruled_out))
    free = np.flatnonzero(taken != np.arange(len(taken)))
    return int(free[0]) if len(free) else len(taken)


def masked(raw: bytes | memoryview, mask: int) -> bytes:
    """Bytes under a mask, or, of such bytes, those below it.

    Args:
        raw: The bytes.
        mask: 32 bits, which come again every four bytes.

    Returns:
        As many bytes.
    """
    if not mask:
        return bytes(raw)
    word = np.frombuffer(mask.to_bytes(4, "little"), np.uint8)
    return (np.frombuffer(raw, np.uint8) ^ np.resize(word, len(raw))).tobytes()


class Extent(NamedTuple):
    """A range of a blob."""

    offset: int
    length: int
    sha256: bytes | None
    """Of its block; None where it has no bytes."""
    reason: str | None
    """Why its bytes are missing; None for a block and for a hole."""


class _Form:
    """Plain numbers: members of an enumeration cost a listing a third of its time."""

    BLOCK: Final = 0
    HOLE: Final = 1
    MISSING: Final = 2


_FEW: Final = 32
"""Ranges that are checked one by one: below, numpy takes longer to be called than to work."""
_NO_HASH: Final = bytes(HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a blob is, and of which blocks it consists."""

    sha256: str | None
    """Of the whole content in hex, holes as zeros; None where the capture does not have all of
    it, or where more than 1 GiB of it is holes."""
    size: int
    """Length in bytes, with all that is missing; what was cut off at the end is not counted."""
    path: str | None = None
    origin: str | None = None
    """With ``ord`` the event for which the blob was taken."""
    ord: int | None = None
    truncated: str | None = None
    """Why an end of unknown length is not there; None where the end is known."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping: inode, mode, times."""
    reasons: tuple[str, ...] = ()
    """Why ranges are missing."""
    table: bytes = field(default=b"", repr=False)
    """The ranges, as the record has them; see `extents`."""

    @property
    def complete(self) -> bool:
        """Whether all of the content is there."""
        return self.truncated is None and not self.reasons

    @property
    def missing(self) -> list[Extent]:
        """The ranges whose bytes are missing."""
        return [e for e in self.extents() if e.reason is not None]

    @property
    def holes(self) -> list[Extent]:
        """The ranges that are sparse."""
        return [e for e in self.extents() if e.sha256 is None and e.reason is None]

    @property
    def title(self) -> str:
        """The blob in messages."""
        return f"the blob {self.path!r}" if self.path else f"the blob {self.sha256 or 'of no name'}"

    def extents(self) -> Iterator[Extent]:
        """The ranges.

        Yields:
            One behind the other, from the first byte to the last.
        """
        offset = 0
        for length, form, reason, digest in _RANGE.iter_unpack(self.table):
            block = digest if form == _Form.BLOCK else None
            why = self.reasons[reason] if form == _Form.MISSING else None
            yield Extent(offset, length, block, why)
            offset += length

    def pack(self) -> bytes:
        """The payload of a BLOB_MANIFEST record.

        Raises:
            LimitError: Its path or details are more than the format allows.
        """
        names = ("details", "ord", "origin", "path", "reasons", "sha256", "size", "truncated")
        text = body.pack({name: getattr(self, name) for name in names})
        return _MANIFEST.pack(len(text), len(self.table) // _RANGE.size) + self.table + text

    @classmethod
    def unpack(cls, payload: bytes | memoryview) -> Manifest:
        """Read the payload of a BLOB_MANIFEST record.

        Args:
            payload: The payload.

        Returns:
            The manifest.

        Raises:
            DamagedError: It is not well formed.
            LimitError: It announces more than the format allows.
        """
        view = memoryview(payload)
        if len(view) < _MANIFEST.size:
            raise DamagedError("a BLOB_MANIFEST is too short")
        length, count = _MANIFEST.unpack_from(view)
        if count > limits.BLOB_RANGES:
            raise LimitError(f"a blob of {count} ranges", expected="at most 1,048,576")
        end = _MANIFEST.size + count * _RANGE.size
        if end + length > len(view):
            raise DamagedError("the parts of a BLOB_MANIFEST do not fit its record")
        said = body.unpack_object(view[end : end + length], "BLOB_MANIFEST")
        _check_types(said)
        reasons = tuple(said.pop("reasons"))
        known = {name: said.get(name) for name in ("origin", "ord", "path", "truncated")}
        made = cls(
            said["sha256"],
            said["size"],
            details=said["details"],
            reasons=reasons,
            table=bytes(view[_MANIFEST.size : end]),
            **known,
        )
        if count <= _FEW:
            made._check_few()
        else:
            made._check_many()
        return made

    def _check_few(self) -> None:
        """As `_check_many`, a range at a time."""
        length_sum = hole_bytes = 0
        named, too_long, wrong = set(), not 0 <= self.size <= limits.BLOB_BYTES, False
        for length, form, reason, digest in _RANGE.iter_unpack(self.table):
            block, missing = form == _Form.BLOCK, form == _Form.MISSING
            too_long |= length > (limits.BLOB_BLOCK_BYTES if block else limits.BLOB_BYTES)
            length_sum += length
            if form == _Form.HOLE:
                hole_bytes += length
            if missing:
                named.add(reason)
            wrong |= not length or form > _Form.MISSING or (bool(reason) and not missing)
            wrong |= (digest == _NO_HASH) == block
        wrong |= named != set(range(len(self.reasons)))
        self._refuse(too_long=too_long, length_sum=length_sum, wrong=wrong, hole_bytes=hole_bytes)

    def _check_many(self) -> None:
        """Refuse ranges that make no sense, or do not make the blob's size."""
        ranges = np.frombuffer(self.table, _RANGES)
        length, form, reason = ranges["length"], ranges["form"], ranges["reason"]
        # Each limit comes before the sum that could wrap without it.
        most = np.where(form == _Form.BLOCK, limits.BLOB_BLOCK_BYTES, limits.BLOB_BYTES)
        too_long = bool((length > most.astype(np.uint64)).any())
        if too_long or not 0 <= self.size <= limits.BLOB_BYTES:
            self._refuse(too_long=True, length_sum=0, wrong=True, hole_bytes=0)
        missing, block = form == _Form.MISSING, form == _Form.BLOCK
        named = np.unique(reason[missing]).tolist()
        empty = ~ranges["sha256"].any(axis=1)
        wrong = (
            (length == 0).any()
            or (form > _Form.MISSING).any()
            or reason[~missing].any()
            or named != list(range(len(self.reasons)))
            or (empty == block).any()
        )
        hole_bytes = int(length[form == _Form.HOLE].sum())
        length_sum = int(length.sum())
        self._refuse(
            too_long=False, length_sum=length_sum, wrong=bool(wrong), hole_bytes=hole_bytes
        )

    def _refuse(self, *, too_long: bool, length_sum: int, wrong: bool, hole_bytes: int) -> None:
        """Raise what is wrong with the ranges, if anything is."""
        if too_long:
            raise LimitError("a blob, or a range of one, is too long", expected="at most 8 TiB")
        if length_sum != self.size:
            raise DamagedError("the ranges of a blob do not make its size")
        if wrong:
            raise DamagedError("a range of a blob makes no sense")
        hashed = self.complete and holes_hashed(hole_bytes)
        if (self.sha256 is not None) != hashed:
            raise DamagedError("a blob has a hash of what is not there, or none of what is")


def holes_hashed(size: int) -> bool:
    """Whether a blob with holes has a hash: they cost nothing to announce, but hours to hash.

    Args:
        size: Of all its holes.

    Returns:
        Whether they are at most 1 GiB.
    """
    return size <= limits.BLOB_HASHED_HOLES


def pack_range(length: int, digest: bytes | None, reason: int | None = None) -> bytes:
    """A range of a blob as a manifest has it.

    Args:
        length: Its bytes.
        digest: SHA-256 of its block; None for a hole and where its bytes are missing.
        reason: Why they are missing: position in the manifest's reasons.

    Returns:
        48 bytes.
    """
    form = _Form.BLOCK if digest else _Form.HOLE if reason is None else _Form.MISSING
    return _RANGE.pack(length, form, reason or 0, digest or bytes(HASH_BYTES))


def _check_types(said: dict[str, Any]) -> None:
    """Refuse a body whose members are not of the right types."""
    texts = all(isinstance(said.get(n), str | None) for n in ("path", "origin", "truncated"))
    reasons = said.get("reasons")
    position = said.get("ord")
    if (
        not texts
        or type(said.get("size")) is not int
        or not isinstance(said.get("details"), dict)
        or not isinstance(reasons, list)
        or len(reasons) > limits.BLOB_REASONS
        or not all(isinstance(r, str) for r in reasons)
        or "sha256" not in said
        or not _is_hash(said["sha256"])
        or not (position is None or (type(position) is int and I64_MIN <= position <= I64_MAX))
    ):
        raise DamagedError("the body of a BLOB_MANIFEST is not what it must be")


def _is_hash(value: object) -> bool:
    """Whether a value is a SHA-256 in lower-case hex, or null."""
    if value is None:
        return True
    digits = set("0123456789abcdef")
    return isinstance(value, str) and len(value) == 2 * HASH_BYTES and set(value) <= digits
