"""HEARTBEAT records: the recorder was alive (spec/kcap.md, clause 4.6)."""

from __future__ import annotations

import struct
from typing import Final

from kcap.errors import DamagedError
from kcap.format import body
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Heartbeat

_HEAD: Final = struct.Struct("<qQ")
_SIZE: Final = struct.Struct("<Q")


def pack(beat: Heartbeat) -> bytes:
    """Write a HEARTBEAT record.

    Args:
        beat: What it says.

    Returns:
        The payload.
    """
    told = {"boot_ns": beat.boot_ns, "details": dict(beat.details), "source": beat.source}
    packed = body.pack(told)
    return _HEAD.pack(beat.ts_ns, beat.events) + _SIZE.pack(len(packed)) + packed


def unpack(payload: bytes | memoryview) -> Heartbeat:
    """Read a HEARTBEAT record.

    Args:
        payload: Its payload.

    Returns:
        What it says; the boot time is 0 where it has no body.

    Raises:
        DamagedError: It is not well formed.
    """
    if len(payload) < _HEAD.size:
        raise DamagedError("the HEARTBEAT is too short", expected="a time and a count")
    ts_ns, events = _HEAD.unpack_from(payload)
    rest = payload[_HEAD.size :]
    if not rest:
        return Heartbeat(ts_ns, 0, events)
    if len(rest) < _SIZE.size:
        raise DamagedError("the HEARTBEAT is too short", expected="the length of its body")
    (length,) = _SIZE.unpack_from(rest)
    if length > len(rest) - _SIZE.size:
        raise DamagedError("the HEARTBEAT's body goes beyond its end")
    told = body.unpack_object(rest[_SIZE.size : _SIZE.size + length], "HEARTBEAT")
    boot_ns, details, source = told.get("boot_ns"), told.get("details"), told.get("source")
    if (
        type(boot_ns) is not int
        or not I64_MIN <= boot_ns <= I64_MAX
        or not isinstance(details, dict)
        or not isinstance(source, str | None)
    ):
        raise DamagedError(
            "the HEARTBEAT's body is not what it must be",
            expected="boot_ns, details and source: a number, an object, a text or null",
        )
    return Heartbeat(ts_ns, boot_ns, events, source, details)
