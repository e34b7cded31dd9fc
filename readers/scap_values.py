"""Parameters of .scap events that are structures: socket addresses, tuples, polled descriptors.

Each is given as the text that sysdig prints for it, as that says all of it. A value that is none
of its kind is None: its bytes are kept instead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address
from typing import Final

_UNIX, _INET, _INET6 = 1, 2, 10
_IPV4_BYTES: Final = 4
_IPV6_BYTES: Final = 16

MAPPED: Final = bytes(10) + b"\xff\xff"
"""What an IPv6 address starts with that stands for an IPv4 one."""

_port = struct.Struct("<H").unpack_from
_IPV4_TUPLE: Final = struct.Struct("<x4BH4BH")
_pointers = struct.Struct("<QQ").unpack_from
_poll = struct.Struct("<qh")

_PTRACE_DATA: Final = {0: "<Q", 1: "<B"}
_SOCKET_OPTION: Final = {1: "<q", 2: "<I", 3: "<Q", 4: "<q"}
"""What a value of several types is, by its first byte: error, 32 bits, 64 bits, time in ns."""

_DESCRIPTOR_OR_ERROR: Final = {0: "<q", 1: "<q"}

DYNAMIC: Final = {
    "bpf": _DESCRIPTOR_OR_ERROR,
    "getsockopt": _SOCKET_OPTION,
    "ptrace": _PTRACE_DATA,
    "setsockopt": _SOCKET_OPTION,
}
"""Formats of a value of several types (``DYN``), by event and first byte."""


def ip_text(raw: bytes) -> str:
    """An address as text.

    Args:
        raw: Its 4 or 16 bytes.

    Returns:
        The text, as inet_ntop(3) spells it: an IPv4 address inside an IPv6 one is dotted.
    """
    if len(raw) == _IPV4_BYTES:
        return "{}.{}.{}.{}".format(*raw)
    if raw.startswith(MAPPED):
        return f"::ffff:{ip_text(raw[12:])}"
    if not any(raw[:12]) and any(raw[12:14]):
        return f"::{ip_text(raw[12:])}"
    return str(IPv6Address(raw))


def _c_text(raw: bytes) -> str | None:
    """A path behind its numbers; None where it is not text."""
    try:
        return raw.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None


def socket_address(raw: bytes) -> str | None:
    """One end of a connection.

    Args:
        raw: The family, then address and port, or a path.

    Returns:
        ``127.0.0.1:80``, ``::1:80``, a path; None where it is no such structure.
    """
    family = raw[0] if raw else None
    if family == _UNIX:
        return _c_text(raw[1:])
    size = {_INET: _IPV4_BYTES, _INET6: _IPV6_BYTES}.get(family or 0)
    if size is None or len(raw) != 1 + size + 2:
        return None
    return f"{ip_text(raw[1 : 1 + size])}:{_port(raw, 1 + size)[0]}"


def socket_tuple(raw: bytes) -> str | None:
    """Both ends of a connection.

    Args:
        raw: The family, then source and destination.

    Returns:
        ``10.0.0.1:4000->10.0.0.2:80``; for a Unix socket the kernel's two addresses and the path.
        None where it is no such structure.
    """
    family = raw[0] if raw else None
    if family == _INET and len(raw) == _IPV4_TUPLE.size:
        return "{}.{}.{}.{}:{}->{}.{}.{}.{}:{}".format(*_IPV4_TUPLE.unpack(raw))
    if family == _UNIX and len(raw) >= 1 + 16:
        source, peer = _pointers(raw, 1)
        path = _c_text(raw[17:])
        return None if path is None else f"{source:x}->{peer:x} {path}"
    if family != _INET6 or len(raw) != 1 + 2 * (_IPV6_BYTES + 2):
        return None
    ends = (raw[1:19], raw[19:37])
    return connection([(end[:_IPV6_BYTES], _port(end, _IPV6_BYTES)[0]) for end in ends])


def connection(ends: Sequence[tuple[bytes, int]]) -> str:
    """Both ends of a connection as text.

    Args:
        ends: The address and the port of each.

    Returns:
        ``10.0.0.1:4000->10.0.0.2:80``; what goes from IPv4 to IPv4 through an IPv6 socket reads
        like any other IPv4.
    """
    if all(address.startswith(MAPPED) for address, _ in ends):
        ends = [(address[len(MAPPED) :], port) for address, port in ends]
    return "->".join(f"{ip_text(address)}:{port}" for address, port in ends)


def descriptors(raw: bytes) -> str | None:
    """Descriptors that are polled.

    Args:
        raw: Their number, then each with its events.

    Returns:
        ``FD:EVENTS`` pairs joined by blanks, events in hexadecimal; None where it is none.
    """
    if len(raw) < 2 or len(raw) != 2 + _port(raw)[0] * _poll.size:  # noqa: PLR2004
        return None
    return " ".join(f"{fd}:{events & 0xFFFF:x}" for fd, events in _poll.iter_unpack(raw[2:]))


def address(raw: bytes) -> str | None:
    """An address alone.

    Args:
        raw: Its bytes.

    Returns:
        The text, None where it has another length.
    """
    return ip_text(raw) if len(raw) in (_IPV4_BYTES, _IPV6_BYTES) else None


def dynamic(event: str, raw: bytes) -> int | bytes | None:
    """A value whose type stands in its first byte.

    Args:
        event: Name of the event it is a parameter of, which says what that byte means.
        raw: The value.

    Returns:
        The number, or the bytes behind the first one for a type without a number; None where it
        is none.
    """
    form = DYNAMIC.get(event, {}).get(raw[0])
    if form is None:
        return raw[1:] if event in DYNAMIC else None
    try:
        number: int = struct.unpack(form, raw[1:])[0]
    except struct.error:
        return None
    return number


_READERS: Final[dict[str, Callable[[bytes], str | None]]] = {
    "FDLIST": descriptors,
    "IPV4ADDR": address,
    "IPV6ADDR": address,
    "SOCKADDR": socket_address,
    "SOCKTUPLE": socket_tuple,
}

_DYNAMIC_KIND: Final = "DYN"

KINDS: Final = frozenset({*_READERS, _DYNAMIC_KIND})
"""The kinds of parameters that `read` knows."""


def read(kind: str, event: str, raw: bytes) -> str | int | bytes | None:
    """The value of a structure.

    Args:
        kind: Its kind, one of `KINDS`.
        event: Name of the event it is a parameter of.
        raw: Its bytes, at least one.

    Returns:
        The value, None where it is no such structure.
    """
    return dynamic(event, raw) if kind == _DYNAMIC_KIND else _READERS[kind](raw)
