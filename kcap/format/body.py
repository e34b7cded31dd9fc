"""Bodies: JSON inside records, compressed where that helps (spec/kcap.md, clause 4)."""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from kcap import limits
from kcap.errors import DamagedError, LimitError
from kcap.format import zstd
from kcap.model.text import depth

_HEAD: Final = struct.Struct("<IBxxx")
_STORED: Final = 0
_ZSTD: Final = 1


def pack(value: object, most: int = limits.BODY_BYTES) -> bytes:
    """Write a JSON value.

    Args:
        value: Plain JSON values.
        most: What its text may take, in bytes.

    Returns:
        The body.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) > most:
        msg = f"a description of {len(raw)} bytes does not fit the format"
        raise LimitError(msg, expected=f"at most {most}")
    small = zstd.compress(raw)
    if len(small) < len(raw):
        return _HEAD.pack(len(raw), _ZSTD) + small
    return _HEAD.pack(len(raw), _STORED) + raw


def unpack(raw: bytes | memoryview, what: str, most: int = limits.BODY_BYTES) -> Any:  # noqa: ANN401
    """Read a JSON value.

    Args:
        raw: A body, and nothing behind it.
        what: The record's name, for errors.
        most: What its text may take, in bytes.

    Returns:
        The value.

    Raises:
        DamagedError: It is no body.
        LimitError: It is longer or deeper than a body may be.
    """
    if len(raw) < _HEAD.size:
        raise DamagedError(f"{what} is too short", expected="a JSON body")
    length, codec = _HEAD.unpack_from(raw)
    if length > most:
        raise LimitError(f"{what} announces {length} bytes", expected=f"at most {most}")
    stored = bytes(raw[_HEAD.size :])
    if codec == _ZSTD:
        stored = zstd.decompress(stored, length)
    elif codec != _STORED or len(stored) != length:
        raise DamagedError(f"{what} has no valid body", expected="stored or zstd bytes")
    if stored.count(b"[") + stored.count(b"{") > limits.BODY_CONTAINERS:
        raise LimitError(f"{what} has too many lists", expected=f"{limits.BODY_CONTAINERS}")
    try:
        value = json.loads(stored)
    except (ValueError, RecursionError) as e:
        raise DamagedError(f"{what} holds no JSON: {e}") from e
    if depth(value) > limits.JSON_DEPTH:
        raise LimitError(f"{what} nests too deep", expected=f"at most {limits.JSON_DEPTH} levels")
    return value


def pack_object(**values: object) -> bytes:
    """Write a JSON object.

    Args:
        **values: Its members.

    Returns:
        The body.
    """
    return pack(values)


def unpack_object(
    raw: bytes | memoryview, what: str, most: int = limits.BODY_BYTES
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        raw: A body.
        what: The record's name, for errors.
        most: What its text may take, in bytes.

    Returns:
        Its members.

    Raises:
        DamagedError: It holds something else.
    """
    value = unpack(raw, what, most)
    if not isinstance(value, dict):
        raise DamagedError(f"{what} holds no JSON object")
    return value


def unpack_objects(
    raw: bytes | memoryview, what: str, most: int = limits.BODY_BYTES
) -> list[dict[str, Any]]:
    """Read a list of JSON objects.

    Args:
        raw: A body.
        what: The record's name, for errors.
        most: What its text may take, in bytes.

    Returns:
        The objects.

    Raises:
        DamagedError: It holds something else.
    """
    value = unpack(raw, what, most)
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise DamagedError(f"{what} holds no list of JSON objects")
    return value
