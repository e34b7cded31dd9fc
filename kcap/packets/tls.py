"""The hello that opens a TLS connection, as JSON values: who is asked for, and what is offered."""

from __future__ import annotations

import struct
from typing import Any, Final

RECORD: Final = 22
"""The type of a TLS record that carries a handshake."""

_HELLOS: Final = {1: "client_hello", 2: "server_hello"}
_VERSIONS: Final = {
    0x0300: "SSL 3.0",
    0x0301: "TLS 1.0",
    0x0302: "TLS 1.1",
    0x0303: "TLS 1.2",
    0x0304: "TLS 1.3",
}
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_SUPPORTED_VERSIONS: Final = 43
_HEADER_BYTES: Final = 5
_HANDSHAKE_BYTES: Final = 4
_RANDOM_BYTES: Final = 32


class BadHelloError(ValueError):
    """This is no hello."""


class _Cut(Exception):  # noqa: N818
    """What was captured ends here."""


class _Reader:
    """Takes values one after another from bytes.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """So many bytes."""
        part = self.data[self.at : self.at + count]
        if len(part) < count:
            raise _Cut
        self.at += count
        return part

    def number(self, width: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        """Bytes with their count before them."""
        return self.take(self.number(width))


def hello(raw: bytes) -> dict[str, Any]:
    """Read what a client or a server opens a connection with.

    A hello is often longer than a segment: then what came so far is told, with ``truncated``.

    Args:
        raw: What a TCP segment carries, from a record's start.

    Returns:
        ``type``, ``record_version``, ``version``, ``session_id``, ``ciphers`` (of a server the
        chosen one), and where the extensions came so far ``server_name``, ``alpn`` and
        ``versions``.

    Raises:
        BadHelloError: It is none.
    """
    if len(raw) < _HEADER_BYTES + 1:
        raise BadHelloError("shorter than a hello")
    kind, version, _ = struct.unpack_from(">BHH", raw)
    handshake = _handshake(raw)
    message = handshake[0] if handshake else 0
    if kind != RECORD or version >> 8 != 3 or message not in _HELLOS:  # noqa: PLR2004
        raise BadHelloError("no record of a hello")
    size = int.from_bytes(handshake[1:_HANDSHAKE_BYTES], "big")
    body = handshake[_HANDSHAKE_BYTES:][:size]
    found: dict[str, Any] = {"type": _HELLOS[message], "record_version": _version(version)}
    try:
        _body(_Reader(body), found, client=message == 1)
    except _Cut:
        found["truncated"] = True
    if "version" not in found:
        raise BadHelloError("it ends before its version")
    return found


def _handshake(raw: bytes) -> bytes:
    """What the first records hold: a hello may be spread over several, to hide its server."""
    parts, at = [], 0
    while at + _HEADER_BYTES <= len(raw) and raw[at] == RECORD:
        size = int.from_bytes(raw[at + 3 : at + _HEADER_BYTES], "big")
        parts.append(raw[at + _HEADER_BYTES : at + _HEADER_BYTES + size])
        at += _HEADER_BYTES + size
    return b"".join(parts)


def _body(reader: _Reader, found: dict[str, Any], *, client: bool) -> None:
    version = reader.number(2)
    if version >> 8 != 3:  # noqa: PLR2004
        raise BadHelloError("no version of TLS")
    found["version"] = _version(version)
    reader.take(_RANDOM_BYTES)
    found["session_id"] = reader.vector(1).hex()
    if client:
        ciphers = reader.vector(2)
        reader.vector(1)
    else:
        ciphers = reader.take(2)
        reader.take(1)
    found["ciphers"] = _ciphers(ciphers)
    if reader.at == len(reader.data):
        return
    size = reader.number(2)
    stop = reader.at + size
    while reader.at < stop:
        extension = reader.number(2)
        data = reader.vector(2)
        try:
            _extension(extension, _Reader(data), found, client=client)
        except _Cut as error:
            raise BadHelloError("an extension lies about its length") from error


def _extension(kind: int, reader: _Reader, found: dict[str, Any], *, client: bool) -> None:
    if kind == _SERVER_NAME and client:
        names = _Reader(reader.vector(2))
        while names.at < len(names.data):
            is_host = names.number(1) == 0
            name = names.vector(2)
            if is_host:
                found.setdefault("server_name", name.decode("utf-8", "backslashreplace"))
    elif kind == _ALPN:
        names = _Reader(reader.vector(2))
        offered = []
        while names.at < len(names.data):
            offered.append(names.vector(1).decode("utf-8", "backslashreplace"))
        found["alpn"] = offered
    elif kind == _SUPPORTED_VERSIONS:
        listed = reader.vector(1) if client else reader.take(2)
        numbers = [version for (version,) in struct.iter_unpack(">H", listed[: len(listed) & ~1])]
        found["versions"] = [_version(v) for v in numbers if not _is_grease(v)]


def _ciphers(listed: bytes) -> list[str]:
    from dpkt.ssl_ciphersuites import BY_CODE

    numbers = [code for (code,) in struct.iter_unpack(">H", listed[: len(listed) & ~1])]
    return [
        BY_CODE[number].name if number in BY_CODE else f"0x{number:04x}"
        for number in numbers
        if not _is_grease(number)
    ]


def _is_grease(number: int) -> bool:
    """Whether it means nothing and is there to be ignored (RFC 8701)."""
    return number & 0x0F0F == 0x0A0A and number >> 8 == number & 0xFF  # noqa: PLR2004


def _version(number: int) -> str:
    return _VERSIONS.get(number, f"0x{number:04x}")
