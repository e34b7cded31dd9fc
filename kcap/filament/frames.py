"""Messages between a run and a filament: a kind, a length, and that many bytes.

What the run sends is events in columns, and answers; what the filament sends is JSON, because its
process runs code that nobody here wrote: reading JSON can do no harm.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO, Final

from kcap.errors import DamagedError
from kcap.filament.limits import FRAME_BYTES

START: Final = b"B"
"""Run to filament: begin."""

EVENTS: Final = b"E"
"""Run to filament: events and ticks."""

ANSWER: Final = b"A"
"""Run to filament: what it asked for."""

STOP: Final = b"S"
"""Run to filament: no event follows."""

READY: Final = b"R"
"""Filament to run: it has begun, and this is what it set."""

ITEMS: Final = b"I"
"""Filament to run: what it printed, drew and raised."""

ASK: Final = b"Q"
"""Filament to run: what is known of a process or a handle."""

DONE: Final = b"D"
"""Filament to run: that is all of the last request."""

FAILED: Final = b"F"
"""Filament to run: why it ends."""

HEADER: Final = struct.Struct("<cI")

BATCH: Final = struct.Struct("<III")
"""Head of `EVENTS`: events, ticks, bytes of packed columns."""


def frame(kind: bytes, body: bytes = b"") -> bytes:
    """A message.

    Args:
        kind: One of the kinds above.
        body: What it says.

    Returns:
        Its bytes.
    """
    return HEADER.pack(kind, len(body)) + body


def said(kind: bytes, value: object) -> bytes:
    """A message in JSON.

    Args:
        kind: One of the kinds above.
        value: What it says.

    Returns:
        Its bytes.
    """
    return frame(kind, json.dumps(value, separators=(",", ":")).encode())


def read(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Read a message.

    Args:
        stream: A pipe.

    Returns:
        Its kind and what it says; None where the pipe has ended.

    Raises:
        DamagedError: It is longer than any is.
    """
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    kind, size = HEADER.unpack(head)
    check(size)
    body = stream.read(size)
    return (kind, body) if len(body) == size else None


def check(size: int) -> None:
    """Refuse a message that is too long.

    Args:
        size: What its head says.

    Raises:
        DamagedError: It is.
    """
    if size > FRAME_BYTES:
        raise DamagedError(
            f"a message of {size:,} bytes", expected=f"at most {FRAME_BYTES:,}", hint="report it"
        )


def loads(body: bytes) -> Any:  # noqa: ANN401  (any JSON)
    """What a message in JSON says.

    Args:
        body: Its bytes.

    Returns:
        The value.

    Raises:
        DamagedError: It is no JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise DamagedError("a message that is no JSON", expected="what kcap's worker says") from e
