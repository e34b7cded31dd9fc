"""Messages as bytes: how they go through the pipe to a courier, and into its spool.

A block is some messages, column by column, so that it can be made from columns without a step in
Python for each event. Little-endian::

    count u32, columns of values u16, for each of those: length u16, name
    times: count x i64 (the least i64 for none)
    for ids, bodies and each column of values:
        lengths: count x u32
        data: each text with a newline behind it

This module imports nothing of Arrow or numpy: a courier has neither.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from typing import BinaryIO, Final, NamedTuple

from kcap.errors import DamagedError
from kcap.writers.sinks.transport import Message

BLOCK: Final = b"B"
"""Kind of frame: a block of messages."""
END: Final = b"E"
"""Kind of frame: there are no more."""

BLOCK_BYTES: Final = 256 << 10
"""About how long a block is; one of a single message may be longer."""

FRAME_BYTES: Final = 256 << 20
"""Longest frame: JSON of the longest event that there may be."""

NO_TIME: Final = -(1 << 63)
"""What stands for no time."""

_FRAME: Final = struct.Struct("<cI")
_HEAD: Final = struct.Struct("<IH")
_LENGTH: Final = struct.Struct("<H")

Buffer = bytes | bytearray | memoryview


class Texts(NamedTuple):
    """A column of texts."""

    lengths: Buffer
    """The length of each, u32."""
    data: Buffer
    """The texts, a newline behind each, which the lengths do not count."""


def encode(
    count: int, times: Buffer, ids: Texts, bodies: Texts, values: Mapping[str, Texts]
) -> bytes:
    """Put a block together.

    Args:
        count: How many messages.
        times: The time of each, i64 ns; `NO_TIME` for none.
        ids: Their ids, UTF-8.
        bodies: Their bodies.
        values: Options that differ from message to message, UTF-8.

    Returns:
        The block.
    """
    parts: list[Buffer] = [_HEAD.pack(count, len(values))]
    for name in values:
        spelled = name.encode()
        parts += [_LENGTH.pack(len(spelled)), spelled]
    parts.append(times)
    for column in (ids, bodies, *values.values()):
        parts += [column.lengths, column.data]
    return b"".join(parts)


def count_of(block: bytes) -> int:
    """How many messages a block has.

    Args:
        block: What `encode` gave.

    Returns:
        Their number.

    Raises:
        DamagedError: It is no block.
    """
    if len(block) < _HEAD.size:
        raise DamagedError("a block of messages is shorter than its head")
    count: int = _HEAD.unpack_from(block)[0]
    return count


def decode(block: bytes, constants: Mapping[str, str]) -> list[Message]:
    """Take a block apart.

    Args:
        block: What `encode` gave.
        constants: Options that are the same for every message.

    Returns:
        The messages, in order.

    Raises:
        DamagedError: It is no block.
    """
    try:
        count, columns = _HEAD.unpack_from(block)
        at = _HEAD.size
        names = []
        for _ in range(columns):
            (length,) = _LENGTH.unpack_from(block, at)
            at += _LENGTH.size + length
            names.append(block[at - length : at].decode())
        times = struct.unpack_from(f"<{count}q", block, at)
        at += 8 * count
        ids, at = _texts(block, at, count)
        bodies, at = _texts(block, at, count)
        values = []
        for _ in names:
            column, at = _texts(block, at, count)
            values.append([value.decode() for value in column])
    except (struct.error, UnicodeDecodeError) as e:
        raise DamagedError(f"a block of messages can't be understood: {e}") from e
    if at != len(block):
        raise DamagedError("a block of messages is not as long as it says")
    # One dict serves all messages where nothing differs among them.
    rows: Iterator[Mapping[str, str]] = (
        {**constants, **dict(zip(names, row, strict=True))} for row in zip(*values, strict=True)
    )
    each = list(rows) if names else [constants] * count
    return [
        Message(id.decode(), body, None if ts == NO_TIME else ts, of)
        for id, body, ts, of in zip(ids, bodies, times, each, strict=True)  # noqa: A001
    ]


def _texts(block: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    """A column's texts, and where the next one begins."""
    lengths = struct.unpack_from(f"<{count}I", block, at)
    start = at + 4 * count
    ends = list(accumulate((n + 1 for n in lengths), initial=start))
    if ends[-1] > len(block):
        raise DamagedError("a block of messages ends within its texts")
    return [block[a : b - 1] for a, b in pairwise(ends)], ends[-1]


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Put a head before what goes through a pipe.

    Args:
        kind: `BLOCK` or `END`.
        payload: The block.

    Returns:
        The frame.
    """
    return _FRAME.pack(kind, len(payload)) + payload


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Read a frame.

    Args:
        stream: The pipe.

    Returns:
        Its kind and what it carries; None where the pipe ends, if within a frame.

    Raises:
        DamagedError: It announces more than a frame can have.
    """
    head = stream.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    kind, length = _FRAME.unpack(head)
    if length > FRAME_BYTES:
        raise DamagedError(f"a frame of {length} bytes", expected=f"at most {FRAME_BYTES}")
    payload = stream.read(length)
    return None if len(payload) < length else (kind, payload)
