"""Who signed a PE file, as its signature says; whether that is true is not found out here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

BYTES: Final = 1 << 20
"""What is looked at of a signature."""

_HEAD: Final = struct.Struct("<IHH")
_PKCS7: Final = 2
_INTEGER, _SEQUENCE, _SET, _CONTEXT = 0x02, 0x30, 0x31, 0xA0
_UTC_TIME: Final = 0x17
_BMP, _UNIVERSAL, _LATIN = 0x1E, 0x1C, 0x14
_ENCODINGS: Final = {_BMP: "utf-16-be", _UNIVERSAL: "utf-32-be", _LATIN: "latin-1"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PIVOT: Final = 50
_LONG: Final = 0x80
_LENGTH_BYTES: Final = 4
_PARTS: Final = 32
"""Parts of a name that are told of."""
_PART_CHARS: Final = 256
_CERTIFICATES: Final = 64


class _Value(NamedTuple):
    """A value in DER."""

    tag: int
    body: bytes
    whole: bytes


class _Certificate(NamedTuple):
    """What of a certificate is looked at."""

    serial: bytes
    issuer: _Value
    validity: _Value
    subject: _Value


def signer(raw: bytes) -> dict[str, Any]:
    """The certificate that an Authenticode signature is said to be made with.

    Args:
        raw: The security directory: certificates of Windows's form, the first of PKCS #7 counts.

    Returns:
        ``subject``, ``issuer``, ``serial`` (hex), and its validity ``after`` (its end) and
        ``before`` (its start) in ns UTC, as Fibratus calls them; empty where it can't be told.
    """
    signed = _first(raw)
    if signed is None:
        return {}
    try:
        found = _signers(signed)
        return {} if found is None else _said(found)
    except (IndexError, OverflowError, StopIteration, ValueError):
        return {}


def _said(found: _Certificate) -> dict[str, Any]:
    before, after = list(_values(found.validity.body))[:2]
    return {
        "subject": _name(found.subject),
        "issuer": _name(found.issuer),
        "serial": found.serial.hex().lstrip("0") or "0",
        "after": _ns(after),
        "before": _ns(before),
    }


def _ns(value: _Value) -> int:
    """A time: ``YYMMDDHHMMSSZ``, or with four digits of the year."""
    digits = value.body.decode("ascii").removesuffix("Z")
    if value.tag == _UTC_TIME:
        digits = ("20" if int(digits[:2]) < _PIVOT else "19") + digits
    at = datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    return (at - _EPOCH) // timedelta(seconds=1) * 10**9


def _name(name: _Value) -> str:
    """Its parts from the outermost on, as Fibratus writes them: ``US, Washington, Redmond, …``."""
    parts = []
    for part in _values(name.body):
        for one in _values(part.body):
            value = list(_values(one.body))[1]
            text = value.body.decode(_ENCODINGS.get(value.tag, "utf-8"), "backslashreplace")
            parts.append(text[:_PART_CHARS])
            if len(parts) == _PARTS:
                return ", ".join(parts)
    return ", ".join(parts)


def _first(raw: bytes) -> bytes | None:
    """The first certificate of PKCS #7."""
    at = 0
    while at + _HEAD.size <= len(raw):
        length, _, kind = _HEAD.unpack_from(raw, at)
        if length <= _HEAD.size:
            return None
        if kind == _PKCS7:
            return raw[at + _HEAD.size : at + length]
        at += (length + 7) // 8 * 8
    return None


def _signers(raw: bytes) -> _Certificate | None:
    """Of the certificates of a SignedData that of its signer."""
    content = next(_values(raw))
    (body,) = (one for one in _values(content.body) if one.tag == _CONTEXT)
    signed = list(_values(next(_values(body.body)).body))
    # Version, digests, what is signed; then maybe certificates and revocations; then the signers.
    (signers,) = (part for part in signed[2:] if part.tag == _SET)
    info = list(_values(next(_values(signers.body)).body))
    issuer, serial = list(_values(info[1].body))[:2]
    for part in signed[:_CERTIFICATES]:
        for one in _values(part.body) if part.tag == _CONTEXT else ():
            found = _certificate(one)
            if (found.issuer.whole, found.serial) == (issuer.whole, serial.body):
                return found
    return None


def _certificate(value: _Value) -> _Certificate:
    parts = list(_values(next(_values(value.body)).body))
    if parts[0].tag == _CONTEXT:  # its version
        parts = parts[1:]
    serial, _, issuer, validity, subject = parts[:5]
    return _Certificate(serial.body, issuer, validity, subject)


def _values(raw: bytes) -> Iterator[_Value]:
    """The values one behind the other in some DER."""
    at = 0
    while at + 2 <= len(raw):
        tag, size, start = raw[at], raw[at + 1], at + 2
        if size & _LONG:
            count = size & ~_LONG
            if not 0 < count <= _LENGTH_BYTES:
                return
            size = int.from_bytes(raw[start : start + count], "big")
            start += count
        if start + size > len(raw):
            return
        yield _Value(tag, raw[start : start + size], raw[at : start + size])
        at = start + size
