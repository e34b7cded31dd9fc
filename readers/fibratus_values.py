"""Values of a Fibratus capture: numbers, text, times, and parameters of every type.

What a type code means is not announced in a file: three dialects share the codes up to 20 and
differ from there. A reader of a value takes a record and a position and gives the value and the
position after it; whether the record was long enough shows at its end, by exact consumption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any, Final, NamedTuple

from kcap.model import jsonshape
from kcap.model.builder import RawText
from kcap.model.classes import I64_MAX, I64_MIN

Read = Callable[[bytes, int], tuple[Any, int]]
"""Reads a value of a record: the record and a position in; the value and the next position out."""

_COMMON: Final = (
    "null",
    "unicode",
    "ansi",
    "i8",
    "u8",
    "i16",
    "u16",
    "i32",
    "u32",
    "i64",
    "u64",
    "float",
    "double",
    "bool",
    "binary",
    "guid",
    "pointer",
    "sid",
    "pid",
    "tid",
    "wbemsid",
)
_HEX: Final = ("hex8", "hex16", "hex32", "hex64")
_OLD: Final = ("port", "ip", "ipv4", "ipv6", "time", "slice", "enum", "map", "object")
_NEW: Final = ("dospath", "path", "status", "key", "flags", "flags64", "address", "handletype")

DIALECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "1": (*_COMMON, *_HEX, *_OLD, "unknown"),
    "2.0": (*_COMMON, *_HEX, *_OLD, *_NEW),
    "2.2": (*_COMMON, *_OLD, *_NEW),
}
"""The first release of each dialect to its types by code; a release may write older captures."""

_FORMATS: Final = {
    **dict.fromkeys(("u8", "hex8"), "B"),
    **dict.fromkeys(("u16", "hex16", "port"), "H"),
    **dict.fromkeys(("u32", "hex32", "pid", "tid", "status", "flags"), "I"),
    **dict.fromkeys(("u64", "hex64", "address", "flags64"), "Q"),
    "i8": "b",
    "i16": "h",
    "i32": "i",
    "i64": "q",
    # The writer stores a float as 8 bytes and a double as 4.
    "float": "d",
    "double": "f",
}
_TEXTS: Final = ("unicode", "ansi", "dospath", "path", "key", "handletype")

_SID_HEAD: Final = 8
_SID_PARTS: Final = 15
_TOKEN_USER: Final = 16
_NS: Final = 10**9
_DIGITS: Final = 9


class BadRecordError(Exception):
    """The bytes are no such record; says why."""


class Order(NamedTuple):
    """How one byte order writes numbers and text."""

    sign: str
    """``<`` or ``>``, as for `struct`."""
    u16: Callable[[bytes, int], tuple[int]]
    u32: Callable[[bytes, int], tuple[int]]
    u64: Callable[[bytes, int], tuple[int]]
    text: Read
    """Text, `RawText` where it is not valid UTF-8."""

    def texts(self, data: bytes, at: int) -> tuple[list[str], int]:
        """Read a count and so many texts.

        Args:
            data: The record.
            at: Where the count stands.

        Returns:
            The texts, and the position after them.
        """
        (count,) = self.u16(data, at)
        at += 2
        found = []
        for _ in range(count):
            text, at = self.text(data, at)
            found.append(text)
        return found, at

    def pairs(self, data: bytes, at: int) -> tuple[list[tuple[str, str]], int]:
        """Read a count and so many pairs of texts.

        Args:
            data: The record.
            at: Where the count stands.

        Returns:
            The pairs, and the position after them.
        """
        (count,) = self.u16(data, at)
        at += 2
        found = []
        for _ in range(count):
            key, at = self.text(data, at)
            value, at = self.text(data, at)
            found.append((key, value))
        return found, at


@cache
def order(sign: str) -> Order:
    """A byte order.

    Args:
        sign: ``<`` or ``>``.

    Returns:
        Its readers.
    """
    u16 = Struct(f"{sign}H").unpack_from

    def text(data: bytes, at: int) -> tuple[str | RawText, int]:
        end = at + 2 + u16(data, at)[0]
        raw = data[at + 2 : end]
        try:
            return raw.decode(), end
        except UnicodeDecodeError:
            return RawText(raw), end

    return Order(sign, u16, Struct(f"{sign}I").unpack_from, Struct(f"{sign}Q").unpack_from, text)


@cache
def parameters(sign: str, dialect: str) -> tuple[Read, ...]:
    """The readers of a dialect's parameters.

    Args:
        sign: The byte order.
        dialect: One of `DIALECTS`.

    Returns:
        One for each type code.
    """
    of = order(sign)
    known: dict[str, Read] = dict.fromkeys(_TEXTS, of.text)
    known |= {name: _number(sign, form) for name, form in _FORMATS.items()}
    known["bool"] = _bool
    known["ipv4"] = _address(4, IPv4Address)
    known["ipv6"] = _address(16, IPv6Address)
    known["time"] = _timed(of)
    known["slice"] = _slice(of)
    known["binary"] = _binary(of)
    if dialect == "1":
        known |= {"enum": known["u8"], "sid": of.text, "wbemsid": of.text}
    else:
        known |= {"enum": known["u32"], "sid": _sid(of, 0), "wbemsid": _sid(of, _TOKEN_USER)}
    return tuple(known.get(name) or _unknown(name) for name in DIALECTS[dialect])


def _unknown(name: str) -> Read:
    def read(*_: object) -> tuple[Any, int]:
        raise BadRecordError(f"a parameter of type {name}, which is never written")

    return read


def _number(sign: str, form: str) -> Read:
    found = Struct(sign + form)
    unpack, size = found.unpack_from, found.size

    def read(data: bytes, at: int) -> tuple[Any, int]:
        return unpack(data, at)[0], at + size

    return read


def _bool(data: bytes, at: int) -> tuple[bool | int, int]:
    value = data[at]
    return (bool(value) if value <= 1 else value), at + 1


def _address(size: int, kind: type[IPv4Address | IPv6Address]) -> Read:
    def read(data: bytes, at: int) -> tuple[str, int]:
        raw = data[at : at + size]
        if len(raw) < size:
            raise BadRecordError("it ends inside an address")
        return str(kind(raw)), at + size

    return read


def _timed(of: Order) -> Read:
    def read(data: bytes, at: int) -> tuple[int | str, int]:
        text, at = of.text(data, at)
        ns = None if isinstance(text, bytes) else jsonshape.time_ns(text)
        if ns is None or not I64_MIN <= ns <= I64_MAX:
            return text, at
        return (ns if jsonshape.time_text(ns, jsonshape.TIME) == text else text), at

    return read


def _slice(of: Order) -> Read:
    numbers, texts = ord("8"), ord("s")

    def read(data: bytes, at: int) -> tuple[list[Any], int]:
        kind = data[at]
        if kind == texts:
            return of.texts(data, at + 1)
        if kind != numbers:
            raise BadRecordError(f"a list of unknown kind {kind}")
        (count,) = of.u16(data, at + 1)
        values = list(Struct(f"{of.sign}{count}Q").unpack_from(data, at + 3))
        return values, at + 3 + 8 * count

    return read


def _binary(of: Order) -> Read:
    def read(data: bytes, at: int) -> tuple[bytes, int]:
        end = at + 4 + of.u32(data, at)[0]
        return data[at + 4 : end], end

    return read


def _sid(of: Order, skipped: int) -> Read:
    """A security identifier; in some types a TOKEN_USER stands before it, a mere pointer to it."""
    binary = _binary(of)

    def read(data: bytes, at: int) -> tuple[str, int]:
        raw, at = binary(data, at)
        return sid_text(raw[skipped:]) or f"0x{raw.hex()}", at

    return read


def sid_text(raw: bytes) -> str | None:
    """Write a Windows security identifier the usual way.

    Args:
        raw: Its binary form.

    Returns:
        ``S-1-5-18``; None where the bytes are no such thing.
    """
    if len(raw) < _SID_HEAD or raw[0] != 1 or raw[1] > _SID_PARTS:
        return None
    if len(raw) != _SID_HEAD + 4 * raw[1]:
        return None
    parts = Struct(f"<{raw[1]}I").unpack_from(raw, _SID_HEAD)
    authority = int.from_bytes(raw[2:8], "big")
    spelt = str(authority) if authority < 1 << 32 else f"0x{authority:012x}"
    return "-".join(["S", "1", spelt, *map(str, parts)])


class Clock:
    """Reads event times: RFC 3339 with up to nine digits, many of them in one second."""

    def __init__(self) -> None:
        self._second = b""
        self._second_ns = 0

    def read(self, raw: bytes) -> tuple[int | None, str | None]:
        """Read a time.

        Args:
            raw: Its text.

        Returns:
            The ns since 1970 UTC, None where there are none that fit; and the text where the
            ns alone don't give it back.
        """
        digits = raw[20:-1]
        plain = digits.isdigit() and len(digits) <= _DIGITS and digits[-1:] != b"0"
        if plain and raw[:19] == self._second and raw[19:20] == b"." and raw[-1:] == b"Z":
            return self._second_ns + int(digits.ljust(_DIGITS, b"0")), None
        text = raw.decode("utf-8", "backslashreplace")
        ns = jsonshape.time_ns(text)
        if ns is None or not 0 < ns <= I64_MAX:
            return None, text
        self._second, self._second_ns = raw[:19], ns - ns % _NS
        if not raw.endswith(b"Z"):
            self._second = b""  # its seconds are those of another zone
        return ns, None if jsonshape.time_text(ns, jsonshape.TIME) == text else text
