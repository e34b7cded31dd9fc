"""Values that every gob stream knows: numbers, text, bytes, as what JSON has for them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

BOOL, INT, UINT, FLOAT, BYTES, STRING, COMPLEX, INTERFACE = range(1, 9)
"""The ids of the types that need no definition."""

SHORT: Final = 128
"""Where a number takes more than one byte."""

ZERO: Final[Mapping[int, Any]] = {BOOL: False, INT: 0, UINT: 0, FLOAT: 0, STRING: ""}
"""What JSON has for the zero of a type; null for any other type."""

Decode = Callable[[bytes, int], tuple[Any, int]]
"""Reads the value at a place; gives it and the place after it."""

_WIDE_BYTES: Final = 8
_DOUBLE: Final = struct.Struct("<d")
_SINGLE: Final = struct.Struct("<f")
_FLOAT32_MAX: Final = 3.4028234663852886e38
_INTEGRAL: Final = 1e21
"""From here on Go's JSON writes a float with an exponent."""


class GobError(Exception):
    """The bytes are no gob; says why."""


def uint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Read an unsigned number: the length of a message is one.

    Args:
        data: Bytes.
        at: Where it starts.

    Returns:
        The number, and the place after it; beyond the end where the number is cut.

    Raises:
        GobError: It is longer than 64 bits.
        IndexError: Nothing is there.
    """
    first = data[at]
    at += 1
    if first < SHORT:
        return first, at
    end = at + 256 - first
    if end - at > _WIDE_BYTES:
        raise GobError("a number of more than 64 bits")
    return int.from_bytes(data[at:end], "big"), end


def integer(data: bytes, at: int) -> tuple[int, int]:
    """Read a signed number.

    Args:
        data: Bytes.
        at: Where it starts.

    Returns:
        The value, and the place after it.

    Raises:
        GobError: It is longer than 64 bits.
    """
    number = data[at]
    at += 1
    if number >= SHORT:
        end = at + 256 - number
        if end - at > _WIDE_BYTES:
            raise GobError("a number of more than 64 bits")
        number = int.from_bytes(data[at:end], "big")
        at = end
    return (~(number >> 1) if number & 1 else number >> 1), at


def _boolean(data: bytes, at: int) -> tuple[bool, int]:
    number, at = uint(data, at)
    return number != 0, at


def _number(data: bytes, at: int) -> tuple[float | int, int]:
    """A float as JSON has it: Go prints one without a fraction like an integer."""
    bits, at = uint(data, at)
    value: float = _DOUBLE.unpack(bits.to_bytes(8, "big"))[0]
    if abs(value) < _INTEGRAL and value.is_integer():
        return int(value), at
    return value, at


def _complex(data: bytes, at: int) -> tuple[list[float | int], int]:
    real, at = _number(data, at)
    imaginary, at = _number(data, at)
    return [real, imaginary], at


def base64_text(data: bytes, at: int) -> tuple[str, int]:
    """Read bytes as JSON has them, in base64.

    Args:
        data: Bytes.
        at: Where it starts.

    Returns:
        The value, and the place after it.
    """
    size, at = uint(data, at)
    return base64.b64encode(data[at : at + size]).decode(), at + size


def text(data: bytes, at: int) -> tuple[str, int]:
    """Read text as JSON has it.

    Args:
        data: Bytes.
        at: Where it starts.

    Returns:
        The value, and the place after it.
    """
    size = data[at]
    at += 1
    if size >= SHORT:
        size, at = uint(data, at - 1)
    end = at + size
    try:
        return data[at:end].decode(), end
    except UnicodeDecodeError:
        return _replaced(data[at:end]), end


BASIC: Final[Mapping[int, Decode]] = {
    BOOL: _boolean,
    INT: integer,
    UINT: uint,
    FLOAT: _number,
    BYTES: base64_text,
    STRING: text,
    COMPLEX: _complex,
}
"""What reads the values of the types that need no definition, but `INTERFACE`."""


def _replaced(raw: bytes) -> str:
    """Text that isn't UTF-8 as Go's JSON prints it: a replacement character for each bad byte."""
    found = raw.decode("utf-8", "surrogateescape")
    return "".join("\ufffd" if "\udc80" <= char <= "\udcff" else char for char in found)


def shortest(value: float) -> float:
    """A 32-bit float as JSON has it: the fewest digits that tell it from its neighbours.

    Args:
        value: It as a 64-bit float.

    Returns:
        The 64-bit float that these digits give.
    """
    if value != value or abs(value) > _FLOAT32_MAX:  # noqa: PLR0124
        return value
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short) <= _FLOAT32_MAX and _SINGLE.unpack(_SINGLE.pack(short))[0] == value:
            return short
    return float(f"{value:.9g}")
